"""The daemon below a service manager: sockets kept over a restart, readiness, a watchdog that bites, its own user."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.daemon_process import POOLS, Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.systemd.service_manager import Service, missing

pytestmark = pytest.mark.real

ADDS, AT_ONCE = 500, 8

BLOCKED = (
    "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600)); "
    "from ipamd.cli.main import main; sys.exit(main())"
)
"""The daemon's own program, whose event loop hangs in a call that never returns once SIGUSR1 arrives."""


class Activated(Daemon):
    """A daemon below ``systemd-socket-activate``, which opens the socket and waits for the first plugin."""

    def start(self, *, ready: bool = True) -> None:
        """Open the socket; what starts the daemon then, again and again, is a shell that keeps the socket open."""
        flags = ["--node", self.node, "--state-dir", str(self.directory / "state"), *self.flags]
        command = [sys.executable, "-m", "ipamd", "run", "--socket", str(self.directory / "unused.sock"), *flags]
        again = (
            'pid=$1; shift; while :; do sh -c \'LISTEN_PID=$$ exec "$@"\' run "$@" & echo $! > "$pid.new"; '
            'mv "$pid.new" "$pid"; wait $!; done'
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["systemd-socket-activate", "-l", str(self.socket), "sh", "-c", again, "again", str(self.pid_file), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for(self.socket.exists)
        if ready:
            self.wait_ready()

    @property
    def pid_file(self) -> Path:
        """Names the daemon's process."""
        return self.directory / "pid"

    def __exit__(self, *_exc: object) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def test_no_add_fails_while_the_daemon_is_restarted(tmp_path: Path) -> None:
    """500 ADDs, eight at once, through the socket that systemd-socket-activate holds, while it is stopped and killed."""
    if shutil.which("systemd-socket-activate") is None:
        missing("cannot activate by a socket without systemd-socket-activate; install systemd (tests/system.sh)")
    with Activated(tmp_path / "d", "node-a", *POOLS) as daemon, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [pool.submit(daemon.add, f"c{number}") for number in range(ADDS)]
        seen = set()
        for share, number in ((100, signal.SIGTERM), (200, signal.SIGKILL), (300, signal.SIGTERM)):
            wait_for(lambda share=share: sum(answer.done() for answer in answers) >= share, 60)
            process = int(daemon.pid_file.read_text())
            seen.add(process)
            os.kill(process, number)
            wait_for(lambda process=process: int(daemon.pid_file.read_text()) != process, 20)
        addresses = [address for answer in answers for address in answer.result(60)]
        assert len(seen) == 3
        assert len(addresses) == len(set(addresses)) == ADDS
        assert not (tmp_path / "d" / "unused.sock").exists()


def test_a_blocked_loop_is_killed_and_what_was_asked_meanwhile_is_answered(tmp_path: Path) -> None:
    """The watchdog is fed by the loop that serves; SIGABRT makes the daemon say where it hung."""
    with Service(tmp_path, *POOLS, watchdog=2.0, main=f"-c {BLOCKED}") as service:
        first = service.add("a")
        service.signal(signal.SIGUSR1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(service.add, "b")
            service.wait_starts(2)
            assert service.heard.count("killed") == 1
            assert waiting.result(20)
        assert service.add("a") == first
        log = service.log.read_text()
        assert "Fatal Python error: Aborted" in log
        assert "in <lambda>\n  File" in log


def test_a_loop_that_turns_is_left_alone_and_a_stop_is_told(tmp_path: Path) -> None:
    """For several intervals of the watchdog nothing happens; SIGTERM is announced and answered by a new start."""
    with Service(tmp_path, *POOLS, watchdog=0.5) as service:
        service.add("a")
        wait_for(lambda: any(line.startswith("STATUS=serving: 1 attachments, ") for line in service.heard))
        service.signal(signal.SIGTERM)
        service.wait_starts(2)
        assert "killed" not in service.heard
        stopping = service.heard.index("STOPPING=1")
        assert service.heard[stopping + 1].startswith("STATUS=stopping: 1 attachments, ")
        assert service.heard.index("READY=1") < stopping


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """A running etcd."""
    with EtcdProcess(tmp_path / "etcd") as process:
        yield process


def test_it_is_up_when_an_add_can_be_served_and_says_how_it_is(tmp_path: Path, etcd: EtcdProcess) -> None:
    """While etcd hangs a new node is not up and says why; then it is, serves at once, and tells of the next outage."""
    etcd.pause()
    flags = ("--etcd-endpoints", etcd.endpoint, *POOLS)
    with Service(tmp_path / "s", *flags, watchdog=3.0, ready=False) as service:

        def said(words: str) -> bool:
            return any(line.startswith("STATUS=") and words in line for line in service.heard)

        wait_for(lambda: said("no ADD from pools can be served: no pool is known yet; "), 20)
        assert service.starts == 0
        etcd.resume()
        service.wait_starts(1)
        up = service.heard.index("READY=1")
        assert service.heard[up + 1].startswith("STATUS=serving: 0 attachments, ")
        assert service.add("a", timeout_ms=1000)
        wait_for(lambda: said("serving: 1 attachments, ") and said(" 0 not in the store yet"), 20)
        etcd.pause()
        try:
            service.add("b")
            wait_for(lambda: said("serving: the store cannot be "), 40)
            assert "killed" not in service.heard
        finally:
            etcd.resume()


USER = 64123
"""No user of this host: what the daemon needs it has by its own files and one capability, never by a name."""


@pytest.fixture
def as_own_user(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with the user, the capability and the bounds of ipamd.service, as far as they can be had without it."""
    if os.geteuid() != 0:
        missing("cannot become another user; run this as root")
    for directory in (tmp_path / "d", tmp_path / "d" / "state"):
        directory.mkdir()
        os.chown(directory, USER, USER)
    bounds = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"]
    capability = "+dac_read_search"
    bounds += ["--inh-caps", f"-all,{capability}", "--ambient-caps", f"-all,{capability}"]
    bounds += ["--bounding-set", f"-all,{capability}"]
    results = tmp_path / "results"
    flags = (*POOLS, "--runtime-results-dir", str(results))
    with Daemon(tmp_path / "d", "node-a", *flags, wrapper=["setpriv", *bounds]) as daemon:
        yield daemon


@pytest.mark.root
def test_as_its_own_user_the_daemon_reads_what_roots_programs_leave(tmp_path: Path, as_own_user: Daemon) -> None:
    """Root's plugin asks, is answered, and its kept DEL is carried out; the runtime's private cache is read."""
    daemon = as_own_user
    assert Path(f"/proc/{daemon.pid}").stat().st_uid == USER
    daemon.add("a")
    assert daemon.stop() == 0
    daemon.delete("a", connect_ms=50)
    (kept,) = (daemon.directory / "state" / "del.d").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    results = tmp_path / "results"
    results.mkdir(mode=0o700)
    (results / "k8s-pod-network-b-eth0").touch(mode=0o600)
    daemon.start()
    assert daemon.get("/v1/allocations") == []
    assert list((daemon.directory / "state" / "del.d").iterdir()) == []
    wait_for(lambda: daemon.get("/v1/status")["runtime"]["attachments"] == 1)
