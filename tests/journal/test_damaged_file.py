"""A state file cut at every byte, or with any bit of its end flipped, from the file to the node that goes on with it.

It is recovered or refused with words; and a node that starts with it gives nobody an address that a pod has, with the
store and without it.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from trio.testing import MockClock

from ipamd.core.errors import RefusedError
from ipamd.core.facts import Fact
from ipamd.core.request import Added
from ipamd.core.reserve import ReservePolicy
from ipamd.journal.errors import JournalError
from ipamd.journal.format import HEADER_SIZE
from ipamd.journal.journal import Journal
from ipamd.journal.recovery import recover
from tests.journal.examples import BOOT, OTHER_BOOT
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record

END = 4096
"""Bytes at the end of the file of which each bit is flipped."""
REFUSAL = re.compile(r"cannot read the state file \S+/state: .+; .+")
"""What is wrong, and what to do."""
FEW = ReservePolicy(minimum=8)


class History:
    """A node's life, with a neighbour on the same pool: its state file, and who held what when it had so many facts."""

    def __init__(self, directory: Path) -> None:
        self.store = MemoryStore()
        self.directory = directory
        self.held: list[tuple[int, dict[str, str]]] = [(0, {})]
        self.neighbour: set[str] = set()
        self.instance = ""
        self.data = b""
        self.ends: list[int] = [HEADER_SIZE]
        self._checked: dict[int, None] = {}

    async def live(self) -> None:
        """ADDs and DELs, some of which the store never hears of."""
        self.store.put(*pool_record("p", "10.0.0.0/26", blockSize=28))
        journal, _, _ = Journal.open(self.directory, "n1", BOOT)
        self.instance = journal.instance
        node, other = Node("n1", self.store, FEW, (), self.instance), Node("n2", self.store, FEW)
        held: dict[str, str] = {}
        async with other.running():
            self.neighbour = {
                other.addresses(await other.add(add_request(f"other-{number}")))[0] for number in range(6)
            }
            await other.flushed()
        async with node.running():
            for number in range(24):
                self.store.away = number >= 16
                gone = f"c{number - 2}"
                if number % 4 == 3 and gone in held:
                    del held[gone]
                    node.delete(gone)
                elif number < 16 or node.ledger.available("p"):
                    held[f"c{number}"] = node.addresses(await node.add(add_request(f"c{number}")))[0]
                self.held.append((len(node.journal), dict(held)))
                if number == 8:
                    await node.flushed()
        with closing(journal):
            for fact in node.journal:
                journal.append([fact])
                self.ends.append(journal.size)
        self.data = (self.directory / "state").read_bytes()

    def held_after(self, facts: int) -> dict[str, str]:
        """What pods held when so many facts were written."""
        return [held for count, held in self.held if count <= facts][-1]

    def decide(self, data: bytes, boot: str) -> int | None:
        """How many facts of these bytes a start would go on with; None if it would refuse them, with words."""
        refusal = ""
        try:
            return len(recover(data, "n1", boot, str(self.directory / "state")).facts)
        except JournalError as error:
            refusal = str(error)
        assert REFUSAL.fullmatch(refusal), refusal
        return None

    async def start(self, data: bytes, boot: str) -> int | None:
        """Start a node with this state file; returns how many facts it has, None if it was refused with words."""
        path = self.directory / "state"
        with path.open("r+b") as file:  # not emptied first, which some file systems answer by writing to the disk
            file.write(data)
            file.truncate()
        try:
            journal, facts, report = Journal.open(self.directory, "n1", boot)
        except JournalError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert REFUSAL.fullmatch(refusal), refusal
            assert path.read_bytes() == data, "a file that was refused was changed"
            return None
        journal.close()
        count = len(facts) - report.rebooted * bool(report.records)
        assert report.records == count
        if count not in self._checked:
            await self._check(facts, count)
            self._checked[count] = None
        return count

    async def _check(self, facts: list[Fact], count: int) -> None:
        """The node holds what it held when it had so many facts, and gives none of it, nor its neighbour's, away."""
        held = self.held_after(count)
        taken = set(held.values()) | self.neighbour
        for away in (True, False):
            store = MemoryStore()
            store.records, store.revision, store.away = dict(self.store.records), self.store.revision, away
            node = Node("n1", store, FEW, facts, self.instance)
            views = {who.container: node.addresses(what)[0] for who, what in node.ledger.holdings.items()}
            assert views == held
            if away:
                new = [node.addresses(added.assigned)[0] for added in self._from_memory(node)]
            else:
                async with node.running():
                    new = [node.addresses(await node.add(add_request(f"new-{number}")))[0] for number in range(12)]
            assert len({*new}) == len(new)
            assert not taken & set(new)

    @staticmethod
    def _from_memory(node: Node) -> Iterator[Added]:
        """All that the node gives away without asking anybody."""
        for number in range(64):
            try:
                added = node.ledger.add(add_request(f"new-{number}"), now())
            except RefusedError:
                return
            if not isinstance(added, Added):
                return
            yield added


@pytest.fixture
async def history(tmp_path: Path, autojump_clock: MockClock) -> History:
    """A life that has ended."""
    history = History(tmp_path)
    await history.live()
    assert len(history.data) > HEADER_SIZE + END
    assert await history.start(history.data, BOOT) == len(history.ends) - 1
    return history


async def test_cut_at_every_byte(history: History, autojump_clock: MockClock) -> None:
    """A shorter file is refused while the machine runs; after a power cut it gives the life up to that moment."""
    for length in range(len(history.data)):
        assert await history.start(history.data[:length], BOOT) is None
        found = await history.start(history.data[:length], OTHER_BOOT)
        assert found == (sum(end <= length for end in history.ends) - 1 if length >= HEADER_SIZE else None)


async def test_each_bit_of_the_end_flipped(history: History, autojump_clock: MockClock) -> None:
    """While the machine runs it is refused; after a power cut at most the last fact is given up.

    Each bit is put to what decides about a file's bytes, and one of each byte, in turn, to a node that starts with the file.
    """
    recovered = 0
    for bit in range(8 * (len(history.data) - END), 8 * len(history.data)):
        flipped = bytearray(history.data)
        flipped[bit // 8] ^= 1 << bit % 8
        data = bytes(flipped)
        assert history.decide(data, BOOT) is None
        found = history.decide(data, OTHER_BOOT)
        if bit // 8 % 8 == bit % 8:
            assert await history.start(data, BOOT) is None
            assert await history.start(data, OTHER_BOOT) == found
        assert found in (None, len(history.ends) - 2)
        recovered += found is not None
    assert recovered == 8 * (history.ends[-1] - history.ends[-2])
