"""``ipamctl`` on a terminal of a given size."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import click

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 60
ROWS = 50

INTERRUPTIBLE = ("env", "--default-signal=INT")
"""Before a command that is ended by Ctrl-C: counts even if the tests were started in a shell's background."""
_TERMINAL = (*INTERRUPTIBLE, "setsid", "--ctty")


class Screen:
    """A command on a terminal: what it wrote so far can be waited for. ``piped``: but for its standard output."""

    def __init__(self, argv: Sequence[str], columns: int, *, piped: bool = False) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*_TERMINAL, sys.executable, "-m", "ipamd.ctl", *argv],
            stdin=theirs,
            stdout=subprocess.PIPE if piped else theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
        )
        os.close(theirs)
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._ours)

    def until(self, text: str, *, plain: bool = False) -> str:
        """All that it wrote since the last call, up to ``text``; ``plain``: whatever the colours."""
        while text not in (click.unstyle(self._seen) if plain else self._seen):
            assert self._read(), f"it ended without {text!r}: {self._seen!r}"
        shown, self._seen = self._seen, ""
        return shown

    def type(self, text: str) -> None:
        """Type something: Ctrl-C is the character 3."""
        os.write(self._ours, text.encode())

    def to_the_end(self) -> str:
        """All that it writes."""
        while self._read():
            pass
        return self._seen

    def _read(self) -> bool:
        assert select.select([self._ours], [], [], SECONDS)[0], f"nothing came after {self._seen!r}"
        try:
            some = os.read(self._ours, 65536)
        except OSError:  # nobody has the other end any more
            some = b""
        self._seen += some.decode()
        return bool(some)


def on_terminal(argv: Sequence[str], columns: int, *, piped: bool = False) -> tuple[str, str]:
    """What a command shows on a terminal, and what it prints into a pipe if its output is one; it must succeed."""
    with Screen(argv, columns, piped=piped) as screen:
        shown = screen.to_the_end().replace("\r\n", "\n")
        printed = b"" if screen.process.stdout is None else screen.process.stdout.read()
        assert screen.process.wait(SECONDS) == 0, shown
        return shown, printed.decode()
