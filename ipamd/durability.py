"""What a reply waits for beyond the state file, where ``durability`` asks for it: the disk, or the store.

May import trio, core, and the writer, whose transactions it waits for.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Assigned, Fact, RangeAssigned, Released
from ipamd.core.ledger import Ledger
from ipamd.store.writer import Writer


class Durability:
    """Waits for facts that are in the state file to be where no power cut reaches them.

    ``append`` and ``sync`` are the journal's, ``hurry`` tells the writer that somebody waits. ``writer`` is None until
    the store is opened.
    """

    def __init__(
        self,
        ledger: Ledger,
        append: Callable[[Sequence[Fact]], None],
        sync: Callable[[], Awaitable[None]],
        hurry: Callable[[], None],
    ) -> None:
        self._ledger, self._append, self._sync, self._hurry = ledger, append, sync, hurry
        self.writer: Writer | None = None

    async def synced(self, facts: Sequence[Fact]) -> None:
        """Wait until the disk has all facts."""
        await self._sync()
        for fact in facts:
            if isinstance(fact, Assigned | RangeAssigned):
                self._refuse_released(fact)

    async def flushed(self, facts: Sequence[Fact]) -> None:
        """Wait until the store holds what these facts say, or the disk if it is never in the store."""
        if all(isinstance(fact, RangeAssigned) for fact in facts):
            await self.synced(facts)
            return
        while self.writer is None or any(self._pending(fact) for fact in facts):
            self._hurry()
            waited_for = trio.Event() if self.writer is None else self.writer.committed
            with trio.move_on_after(0.05):  # what was never sent is settled without a transaction
                await waited_for.wait()
        for fact in facts:
            if isinstance(fact, Assigned):
                self._refuse_released(fact)
                self._refuse_contested(fact)

    def _refuse_released(self, assigned: Assigned | RangeAssigned) -> None:
        """Refuse an ADD that holds its address no longer: a DEL came, or a repetition of it was refused below."""
        if isinstance(assigned, Assigned):
            held = self._ledger.holdings.get(assigned.attachment)
            holds = held is not None and set(assigned.places) <= set(held.places)
        else:
            ranges = self._ledger.ranges.holdings.get(assigned.attachment)
            holds = ranges is not None and set(assigned.addresses) <= set(ranges.addresses)
        if not holds:
            raise RefusedError(
                Code.TRY_AGAIN_LATER,
                f"cannot assign an address to container {assigned.attachment.container}: the one chosen was given up "
                "before it was durable; the runtime will try again",
            )

    def _refuse_contested(self, assigned: Assigned) -> None:
        """Take back an ADD whose address turned out to be somebody else's before anybody was told of it."""
        blocks = self._ledger.blocks
        if not any(p.block in blocks and p.ordinal in blocks[p.block].contested for p in assigned.places):
            return
        released = Released(assigned.attachment, assigned.handle, assigned.places, 0)
        self._ledger.apply(released)
        self._append((released,))
        raise RefusedError(
            Code.TRY_AGAIN_LATER,
            f"cannot assign an address to container {assigned.attachment.container}: the one chosen was taken by "
            "another node while the store was being told; the runtime will try again",
        )

    def _pending(self, fact: Fact) -> bool:
        if not isinstance(fact, Assigned | Released):
            return False
        blocks = self._ledger.blocks
        if isinstance(fact, Assigned):
            return any(
                place.block in blocks and place.ordinal in blocks[place.block].unflushed for place in fact.places
            )
        return any(place.block in blocks and place.ordinal in blocks[place.block].releasing for place in fact.places)
