"""A real daemon in a process of its own, and the real plugin: start, ask, kill."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipamd.cni.install import binary_for

PLUGIN = binary_for(os.uname().machine)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        super().__init__("ipamd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Daemon:
    """``ipamd run`` with its files below ``directory``. Use it as a context manager; ``start`` it again after a kill."""

    def __init__(
        self,
        directory: Path,
        node: str = "node-a",
        *flags: str,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        ready: bool = True,
    ) -> None:
        self.directory = directory
        self.node = node
        self.socket = directory / "ipamd.sock"
        self.flags = flags
        self.env = dict(env or {})
        self.wrapper = wrapper
        self._ready_on_entry = ready
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Daemon":
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self.start(ready=self._ready_on_entry)
        except BaseException:
            self.kill()  # what does not get ready must not live on
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, ready: bool = True) -> None:
        """Start the process; with ``ready``, wait until an ADD can be served."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self.wrapper, sys.executable, "-m", "ipamd", "run", "--node", self.node, "--socket", str(self.socket),
                    "--state-dir", str(self.directory / "state"), "--log-level", "info", *self.flags,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("IPAMD_")} | self.env,
            )  # fmt: skip
        if ready:
            self.wait_ready()

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(timeout=20)

    def signal(self, number: int) -> None:
        """Send a signal to the process, which lives on."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """End it as an operator does (SIGTERM)."""
        return self.kill(signal.SIGTERM)

    def wait_end(self, timeout: float = 20.0) -> int:
        """Wait until the process ends by itself; returns its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def wait_ready(self, timeout: float = 15.0) -> None:
        """Wait until ``/readyz`` says yes."""
        wait_for(lambda: self._process_lives() and self.get("/readyz", quiet=True).get("ready"), timeout, self._why)

    def _process_lives(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self._process.returncode}:\n{self.log.read_text()[-4000:]}")
        return True

    def _why(self) -> str:
        return f"the daemon is not ready: {self.get('/readyz', quiet=True)}\n{self.log.read_text()[-4000:]}"

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own; returns status and body."""
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, path, body=body or None, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str, *, quiet: bool = False) -> Any:
        """The JSON of a GET; ``quiet``: {} if nobody answers."""
        try:
            return json.loads(self.request("GET", path)[1])
        except (OSError, http.client.HTTPException):
            if quiet:
                return {}
            raise

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.request("GET", "/metrics")[1].decode().splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert found, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def plugin(
        self,
        command: str,
        container: str,
        config: Mapping[str, object] | None = None,
        *,
        interface: str = "eth0",
        args: str | None = None,
        name: str = "ipamd",
        timeout_ms: int = 60_000,
        connect_ms: int = 5000,
    ) -> "Answer":
        """Run the real plugin against this daemon."""
        conf = config or network()
        env = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": "/var/run/netns/x",
            "CNI_IFNAME": interface, "CNI_PATH": "/opt/cni/bin", "IPAMD_SOCKET": str(self.socket),
            "IPAMD_SPOOL_DIR": str(self.directory / "state" / "del.d"), "IPAMD_TIMEOUT": str(timeout_ms),
            "IPAMD_CONNECT_TIMEOUT": str(connect_ms),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}" if args is None else args,
        }  # fmt: skip
        done = subprocess.run(
            [name],
            executable=PLUGIN,
            env=env,
            input=json.dumps(conf).encode(),
            capture_output=True,
            check=False,
            timeout=60,
        )
        return Answer(done.returncode, done.stdout)

    def add(self, container: str, config: Mapping[str, object] | None = None, **options: Any) -> list[str]:
        """ADD by the plugin; returns the addresses, and fails if it was refused."""
        answer = self.plugin("ADD", container, config, **options)
        assert answer.code == 0, answer.text
        return answer.addresses

    def delete(self, container: str, config: Mapping[str, object] | None = None, **options: Any) -> None:
        """DEL by the plugin; fails if it was refused."""
        answer = self.plugin("DEL", container, config, **options)
        assert answer.code == 0, answer.text

    def post(self, command: str, container: str, config: bytes = b"", args: str | None = None) -> tuple[int, bytes]:
        """What the plugin sends, without a process: for tests that need many."""
        pod = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}" if args is None else args
        headers = {
            "Cni-Command": command, "Cni-Containerid": container, "Cni-Netns": "/var/run/netns/x", "Cni-Ifname": "eth0",
            "Cni-Path": "/opt/cni/bin", "Cni-Args": pod,
            "Ipamd-Plugin": "calico-ipam",
        }  # fmt: skip
        return self.request("POST", "/v1/cni", config or json.dumps(network()).encode(), headers)


class Answer:
    """What the plugin printed, and its exit code."""

    def __init__(self, code: int, output: bytes) -> None:
        self.code = code
        self.output = output

    @property
    def text(self) -> str:
        """Its output."""
        return self.output.decode()

    @property
    def json(self) -> Any:
        """Its output, decoded."""
        return json.loads(self.output)

    @property
    def addresses(self) -> list[str]:
        """The addresses of a result of version 0.3.0 and later, without their masks."""
        return addresses_of(self.output)


def addresses_of(output: bytes) -> list[str]:
    """The addresses in a result of version 0.3.0 and later, without their masks."""
    return [entry["address"].partition("/")[0] for entry in json.loads(output)["ips"]]


def network(version: str = "1.0.0", kind: str = "calico-ipam", **ipam: object) -> dict[str, object]:
    """A network configuration."""
    return {"cniVersion": version, "name": "k8s-pod-network", "type": "calico", "ipam": {"type": kind, **ipam}}


def dual_stack(version: str = "1.0.0") -> dict[str, object]:
    """A network configuration that asks for both IP versions."""
    return network(version, assign_ipv4="true", assign_ipv6="true")


def wait_for(condition: Any, timeout: float = 10.0, why: Any = lambda: "") -> None:
    """Poll a condition on real processes until it is true or the deadline has passed."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s; {why()}")
        time.sleep(0.005)


POOLS: Sequence[str] = ("--default-pools-ipv4-cidr", "192.168.0.0/16", "--default-pools-ipv6-cidr", "fd00:10:244::/64")
"""Flags that make the first start create one pool of each IP version."""
