"""Handles of which somebody else released an address that this node has: their counts are looked at again. Pure.

Calico's programs release in two steps: they free the address in its block, then lower the count of its handle, whatever
it is by then. What this node has it writes again at once, mostly between the two, and the second step takes away the
count of what was just written: of a handle's record no watch tells. So it is read again, soon and then less and less
often, as nobody knows when that step comes, or whether.
"""

from collections.abc import Iterable

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
        """A handle that was due counts too little, and is looked at from the beginning, or it does not."""
        if low:
            self.low.add(handle)
            self.expect([handle], now)
            return
        self.low.discard(handle)
        taken, _at = self._looks.pop(handle)
        if taken + 1 < len(LOOKS):
            self._looks[handle] = taken + 1, now + LOOKS[taken + 1] * SECOND

    def pause(self, now: int) -> float | None:
        """In how many seconds the next look is due; None: there is none."""
        return max(min(at for _taken, at in self._looks.values()) - now, 0) / SECOND if self._looks else None


def short(ledger: Ledger, known: Known, handle: str) -> list[Block]:
    """The blocks of which a handle's record, as last seen, counts less than their images give it.

    One that counts more is let be: whoever freed the address lowers it, or died before.
    """
    counts = known.handle(handle).blocks
    images = ((block, block.record) for block in ledger.blocks.values())
    return [block for block, image in images if image and image.counts()[handle] > counts.get(block.cidr, 0)]
