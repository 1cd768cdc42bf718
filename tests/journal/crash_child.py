"""A process that is to be killed: appends numbered facts, says so after each append, and makes checkpoints meanwhile.

``python crash_child.py <state directory>``. Writes a line with the number of facts to its standard output
when they are in the journal; those found at the start count.
"""

import os
import sys
from pathlib import Path

import trio

from ipamd.journal.journal import Journal
from tests.journal.examples import BOOT, NODE, assigned


async def main(directory: Path) -> None:
    """Append for ever."""
    journal, facts, _ = Journal.open(directory, NODE, BOOT)

    async def checkpoint() -> None:
        while True:
            await journal.checkpoint(facts)

    async def sync() -> None:
        while True:
            await journal.sync()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkpoint)
        nursery.start_soon(sync)
        while True:
            number = len(facts)
            group = [assigned(n) for n in range(number, number + 1 + number % 3)]
            journal.append(group)
            facts += group
            os.write(1, b"%d\n" % len(facts))
            if number % 4 == 0:
                await trio.lowlevel.checkpoint()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
