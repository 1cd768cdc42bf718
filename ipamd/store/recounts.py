"""Handles of which somebody else released an address that this node has: their counts are looked at again. Pure.

Calico's programs release in two steps: they free the address in its block, then lower the count of its handle, whatever
it is by then. What this node has it writes again at once, mostly between the two, and the second step takes away the
count of what was just written: of a handle's record no watch tells. So it is read again, soon and then less and less
often, as nobody knows when that step comes, or whether.
"""

from collections.abc import Collection, Iterable

from ipamd.core import keys
from ipamd.core.block import Block
from ipamd.core.clock import SECOND
from ipamd.core.ledger import Ledger
from ipamd.store.known import Known

LOOKS = (1, 2, 4, 8, 16, 32)
"""How long after the release, or the look before, each look follows (s): who needs more than a minute has died."""


class Recounts:
    """The handles to be looked at, each as often as ``LOOKS`` says; ``now`` is CLOCK_BOOTTIME (ns)."""

    def __init__(self) -> None:
        self._looks: dict[str, tuple[int, int]] = {}
        """By handle: how many looks were taken, and when the next is due (ns)."""
        self.low: set[str] = set()
        """Those that counted too little at the last look: the next transactions mend that."""

    def expect(self, handles: Iterable[str], now: int) -> None:
        """Somebody released of these handles just now."""
        for handle in handles:
            self._looks[handle] = 0, now + LOOKS[0] * SECOND

    def due(self, now: int) -> list[str]:
        """The handles to look at now."""
        return [handle for handle, (_taken, at) in self._looks.items() if at <= now]

    def looked(self, handle: str, now: int, *, low: bool) -> None:
        """A handle that was due counts too little, and is looked at until it does not, or it does not."""
        taken, last = self._looks.pop(handle)[0] + 1, len(LOOKS) - 1
        if low:
            self.low.add(handle)
        else:
            self.low.discard(handle)
        if low or taken <= last:
            self._looks[handle] = taken, now + LOOKS[min(taken, last)] * SECOND

    def pause(self, now: int) -> float | None:
        """In how many seconds the next look is due; None: there is none."""
        return max(min(at for _taken, at in self._looks.values()) - now, 0) / SECOND if self._looks else None


def short(ledger: Ledger, known: Known, handles: Collection[str]) -> dict[str, list[Block]]:
    """By handle the blocks of which its record, as last seen, counts less than their images give it; often none.

    One that counts more is let be: whoever freed the address lowers it, or died before. A block that cannot be read
    cannot be written.
    """
    found: dict[str, list[Block]] = {}
    counted = {handle: known.handle(handle).blocks for handle in handles}
    for block in ledger.blocks.values() if handles else ():
        if block.record is None or keys.block_key(block.net) in ledger.damaged:
            continue
        held = block.record.counts()
        for handle, counts in counted.items():
            if held[handle] > counts.get(block.cidr, 0):
                found.setdefault(handle, []).append(block)
    return found
