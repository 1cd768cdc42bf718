"""A parent that runs ipamd.service as systemd does: the socket, readiness, the watchdog, starting again.

It speaks sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), and reads what it does from the unit file.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from tests.daemon_process import Daemon, wait_for

UNITS = Path(__file__).resolve().parent.parent.parent / "systemd"

_ACTIVATE = 'fd=$1; shift; [ "$fd" = 3 ] || eval "exec 3<&$fd"; LISTEN_FDS=1 LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$@"'
"""The shell becomes the daemon, so that its process id is the one that the variables name."""


def missing(text: str) -> NoReturn:
    """What a test needs is not there: no reason to pass in CI."""
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, each with its values in order; sections do not matter, the names are apart."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def seconds(text: str) -> float:
    """A time of a unit."""
    for suffix, factor in (("min", 60.0), ("ms", 0.001), ("s", 1.0)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


class Service(Daemon):
    """The service, started again whenever it ends, until the context is left. ``watchdog``: in place of the unit's (s)."""

    def __init__(
        self, directory: Path, *flags: str, watchdog: float, main: str = "-m ipamd", ready: bool = True
    ) -> None:
        super().__init__(directory, "node-a", *flags, ready=ready)
        self._watchdog, self._main = watchdog, main.split(" ", 1)
        self._unit = unit("ipamd.service")
        assert self._unit["Type"] == ["notify"]
        assert self._unit["Restart"] == ["always"]
        self.heard: list[str] = []
        """The lines that came, without the watchdog's, in order; and "killed" when it was not fed."""
        self._over = False

    def start(self, *, ready: bool = True) -> None:
        """Open the sockets and begin to keep the service running."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket))
        self._listener.listen(4096)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(self.directory / "notify"))
        self._notices.setblocking(False)
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()
        if ready:
            self.wait_starts(1)

    @property
    def starts(self) -> int:
        """How often it said that it is ready."""
        return self.heard.count("READY=1")

    def wait_starts(self, count: int) -> None:
        """Wait until it was ready so many times."""
        wait_for(lambda: self.starts >= count, 20.0, lambda: f"{self.heard}\n{self.log.read_text()[-4000:]}")

    def __exit__(self, *_exc: object) -> None:
        self._over = True
        self.kill()
        self._thread.join(20)
        self._listener.close()
        self._notices.close()

    def _keep_running(self) -> None:
        while not self._over:
            self._start()
            self._attend()
            if not self._over:
                time.sleep(seconds(self._unit["RestartSec"][-1]))

    def _start(self) -> None:
        flags = ["--node", self.node, "--state-dir", str(self.directory / "state"), *self.flags]
        command = [sys.executable, *self._main, "run", "--socket", str(self.directory / "unused.sock"), *flags]
        variables = dict(setting.split("=", 1) for setting in self._unit["Environment"])
        variables |= {"NOTIFY_SOCKET": str(self.directory / "notify"), "WATCHDOG_USEC": str(int(self._watchdog * 1e6))}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", _ACTIVATE, "activate", str(self._listener.fileno()), *command],
                pass_fds=(self._listener.fileno(),), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("IPAMD_")} | variables,
            )  # fmt: skip

    def _attend(self) -> None:
        """Until the process has ended: hear what it says, kill it when it says nothing."""
        assert self._process is not None
        deadline = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._notices, selectors.EVENT_READ)
            while self._process.poll() is None:
                for _ in selector.select(0.02):
                    lines = self._notices.recv(4096).decode().splitlines()
                    self.heard += [line for line in lines if line != "WATCHDOG=1"]
                    if "READY=1" in lines or (deadline is not None and "WATCHDOG=1" in lines):
                        deadline = time.monotonic() + self._watchdog
                    if "STOPPING=1" in lines:
                        deadline = None
                if deadline is not None and time.monotonic() > deadline:
                    self.heard.append("killed")
                    self._end()
                    return

    def _end(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGABRT)
        try:
            self._process.wait(seconds(self._unit["TimeoutAbortSec"][0]))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
