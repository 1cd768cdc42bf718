"""The daemon, which is killed with -9 at a chosen moment: between two system calls that no signal from outside hits.

``python -P killed_at.py MOMENT COUNT SEED <the command that runs the daemon>``, as a wrapper of ``Daemon``. It counts
from SIGUSR1 on, and ends the process when the moment has come for the COUNT-th time.
"""

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from ipamd.cli.main import main
from ipamd.journal import statefile
from ipamd.journal.format import HEADER_SIZE
from ipamd.store.etcd import EtcdStore

TORN, WRITTEN, COMMITTED, SENT, ANSWERED = MOMENTS = (
    "a record half written",
    "a record written and not committed",
    "a record committed",
    "a transaction sent",
    "a transaction answered",
)
SOON = 0.003
"""Seconds within which etcd has carried out a transaction or has not: the kill comes anywhere between."""


def die() -> None:
    """End as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trap:
    """Counts the moments once it is armed."""

    def __init__(self, moment: str, count: int, seed: int) -> None:
        self._moment, self._left, self._armed = moment, count, False
        self._choose = random.Random(seed)  # noqa: S311 - a repeatable moment

    def arm(self, *_signal: object) -> None:
        """Begin to count."""
        self._armed = True

    def has_come(self, moment: str) -> bool:
        """Whether this is the moment to die at."""
        if not self._armed or moment != self._moment:
            return False
        self._left -= 1
        return self._left == 0

    def write(self, real: Callable[[int, bytes, int], None], fd: int, data: bytes, offset: int) -> None:
        """The state file's write of a record, of a commit slot or of the header's page."""
        if offset < HEADER_SIZE:
            real(fd, data, offset)
            if offset and self.has_come(COMMITTED):
                die()
            return
        if self.has_come(TORN):
            real(fd, data[: self._choose.randrange(len(data))], offset)
            die()
        real(fd, data, offset)
        if self.has_come(WRITTEN):
            die()

    async def commit(self, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The store's transaction."""
        if self.has_come(SENT):
            threading.Timer(self._choose.uniform(0, SOON), die).start()
        outcome = await real(*arguments, **options)
        if self.has_come(ANSWERED):
            die()
        return outcome


def set_trap(trap: Trap) -> None:
    """Put the trap between the daemon and its files and its store."""
    write, commit = statefile._write, EtcdStore.commit

    async def committing(*arguments: Any, **options: Any) -> Any:
        return await trap.commit(commit, *arguments, **options)

    statefile._write = lambda fd, data, offset: trap.write(write, fd, data, offset)
    EtcdStore.commit = committing  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, trap.arm)


if __name__ == "__main__":
    set_trap(Trap(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    sys.exit(main(sys.argv[sys.argv.index("ipamd") + 1 :]))
