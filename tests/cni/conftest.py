"""The compiled plugin, a way to run it, and a stand-in for the daemon that the test scripts byte by byte."""

import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipamd.cni import build
from tests.cni.sanitized import compile_sanitized

TIMEOUT = 30.0
"""Seconds after which a plugin that should have ended fails its test."""


@pytest.fixture(scope="session")
def release() -> Path:
    """Return the plugin as the wheel carries it, compiled if the source is newer."""
    build.build()
    return build.binary(platform.machine())


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build that ends with a report on stderr at the first bad access or undefined operation."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler of the system, for its sanitizers")
    return compile_sanitized(tmp_path_factory.mktemp("sanitized") / "ipamd-cni")


@pytest.fixture(params=["release", "sanitized"])
def plugin(request: pytest.FixtureRequest) -> Path:
    """Return each build in turn, so that what holds for one is shown for both."""
    path: Path = request.getfixturevalue(request.param)
    return path


class Daemon:
    """Accepts on a Unix socket and gives each connection to the next of the test's answers (the last one stays).

    An answer is bytes to send once the whole request is read, or a function that has the connection to itself.
    """

    def __init__(self, path: Path, *answers: bytes | Callable[[socket.socket], None]) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._failure: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Daemon":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the accept of the thread, which a close alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        if self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(TIMEOUT)
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                try:
                    self._answer(connection, answer)
                except ConnectionError:
                    pass  # the plugin may have enough of a hostile answer
                except Exception as failure:  # noqa: BLE001 - raised again in the test's own thread
                    self._failure = failure

    def _answer(self, connection: socket.socket, answer: bytes | Callable[[socket.socket], None]) -> None:
        if callable(answer):
            answer(connection)
            return
        self.requests.append(read_request(connection))
        connection.sendall(answer)


def read_request(connection: socket.socket) -> bytes:
    """Read one request, or what of it comes before the end."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        if not (more := connection.recv(65536)):
            return bytes(received)
        received += more
    head, _, _ = bytes(received).partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
    whole = len(head) + 4 + length
    while len(received) < whole:
        if not (more := connection.recv(1 << 20)):
            break
        received += more
    return bytes(received)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Return the path at which the plugin looks for the daemon (IPAMD_SOCKET) unless a test says otherwise."""
    return tmp_path / "ipamd.sock"


@pytest.fixture
def serve(where: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon with the given answers until the end of the test."""
    with ExitStack() as stack:
        yield lambda *answers, at=where: stack.enter_context(Daemon(at, *answers))


@pytest.fixture
def environment(where: Path) -> dict[str, str]:
    """Return what an ordinary ADD has in its environment, with short waits."""
    return {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "0123abcd",
        "CNI_NETNS": "/var/run/netns/cni-1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
        "CNI_PATH": "/opt/cni/bin",
        "IPAMD_SOCKET": str(where),
        "IPAMD_CONNECT_TIMEOUT": "5000",
        "IPAMD_TIMEOUT": "20000",
        "UNRELATED": "1",
    }


@pytest.fixture
def start(plugin: Path, environment: dict[str, str]) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Return a function that starts the plugin; ``NAME=value`` changes its environment, None removes a variable."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*, name: str = "calico-ipam", **changes: object) -> "subprocess.Popen[bytes]":
        options = {key: changes.pop(key) for key in list(changes) if key.islower()}
        changed: dict[str, object] = {**environment, **changes}
        env = {key: value for key, value in changed.items() if value is not None}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(**{"args": [name], "executable": plugin, "env": env, **pipes, **options})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def run(start: Callable[..., "subprocess.Popen[bytes]"]) -> Callable[..., tuple[int, bytes]]:
    """Return a function that runs the plugin with a configuration and returns its exit code and stdout."""

    def run(configuration: bytes = b"{}", **changes: object) -> tuple[int, bytes]:
        process = start(**changes)
        stdout, stderr = process.communicate(configuration if process.stdin else None, timeout=TIMEOUT)
        assert not stderr, stderr.decode()
        return process.returncode, stdout

    return run


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits for a condition of a real process."""

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.002)

    return until


@pytest.fixture
def asleep(until: Callable[[Callable[[], bool]], None]) -> Callable[["subprocess.Popen[bytes]"], None]:
    """Return a function that waits until a started plugin waits for something itself."""

    def asleep(process: "subprocess.Popen[bytes]") -> None:
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")

    return asleep
