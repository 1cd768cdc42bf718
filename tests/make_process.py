"""A copy of the checkout as a newcomer has it, and ``make run`` in it: a real make, a real daemon, real pasted lines.

The copy's virtual environment is made here, without the network: it finds the dependencies of the environment that
the tests run in. What fills one from the network is exercised by ``make test`` on a fresh clone, as CI runs it.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipamd.cni import build
from tests.daemon_process import wait_for
from tests.etcd_process import free_port

ROOT = Path(__file__).resolve().parent.parent
READY = "ipamd is ready."
START_SECONDS = 20.0
DEPENDENCIES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))


class Checkout:
    """A copy below ``folder``, in a directory with a name that shells split and quote.

    ``user``: who it belongs to, if not to this process; ``python``: whose version is that of this one.
    """

    def __init__(self, folder: Path, user: int | None = None, python: str = sys.executable) -> None:
        self.path = folder / "newcomer's copy"
        self.user = user
        self.metrics = f"127.0.0.1:{free_port()}"
        build.build()
        self.path.mkdir()
        for name in ("Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
            shutil.copy2(ROOT / name, self.path)
        for name in ("ipamd", "tests"):
            shutil.copytree(ROOT / name, self.path / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._make_environment(python)
        if user is not None:
            for path in (self.path, *self.path.rglob("*")):
                os.chown(path, user, -1, follow_symlinks=False)

    def _make_environment(self, python: str) -> None:
        subprocess.run([python, "-m", "venv", "--without-pip", self.path / ".venv"], check=True, timeout=30)
        (site,) = (self.path / ".venv" / "lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text("\n".join(dict.fromkeys(DEPENDENCIES)) + "\n")
        for name in ("bin/pip", ".run-stamp"):
            (self.path / ".venv" / name).touch()
        script = self.path / ".venv" / "bin" / "ipamctl"  # as pip makes it of the entry point
        script.write_text('#!/bin/sh\nexec "${0%/*}/python" -m ipamd.ctl "$@"\n')
        script.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What a newcomer's shell has, and a port of the test's own for the metrics."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.path), "METRICS": self.metrics}

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A program in the copy, as its owner."""
        settings = {"cwd": self.path, "env": self.environment, **options}
        return subprocess.run(
            command, user=self.user, capture_output=True, text=True, check=False, timeout=30, **settings
        )

    def paste(self, line: str) -> subprocess.CompletedProcess[str]:
        """A line pasted into a shell that is somewhere else."""
        return self.run("sh", "-c", line, cwd="/")


class MakeRun:
    """``make run`` in a copy, from a terminal of its own."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._log = checkout.path.parent / "output"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["make", "run"],
                cwd=checkout.path,
                env=checkout.environment,
                user=checkout.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What the terminal shows."""
        return self._log.read_text()

    def lines(self) -> list[str]:
        """The lines to paste; waits until the daemon says that it is ready."""
        wait_for(lambda: self._lines() or self._process.poll() is not None, START_SECONDS, lambda: self.output)
        assert self._lines(), f"make run ended:\n{self.output}"
        return self._lines()

    def _lines(self) -> list[str]:
        _, found, rest = self.output.partition(READY)
        parts = rest.split("\n\n")
        return parts[1].splitlines() if found and len(parts) > 2 else []

    @property
    def pid(self) -> int:
        """The daemon's process, as its lock says."""
        return int((self._checkout.path / ".run" / "state" / "lock").read_text())

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def interrupt(self) -> int:
        """Press Ctrl-C: the terminal tells make and the daemon; returns the exit code of make."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit code of make."""
        return self._process.wait(timeout=20)

    def kill(self) -> None:
        """End whatever still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=20)


@contextmanager
def make_run(checkout: Checkout) -> Iterator[MakeRun]:
    """``make run`` until the block's end."""
    running = MakeRun(checkout)
    try:
        yield running
    finally:
        running.kill()
