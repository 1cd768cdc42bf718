"""Gets addresses of other nodes' blocks for the ADDs that wait for a pool of which no block can be claimed.

Part of the writer's one task: each call does one read of a few blocks, and the transactions that reserve what is free
in them; in between the writer flushes. All who wait share one hunt. May import core and store.
"""

from collections.abc import Awaitable, Callable, Sequence

from ipamd.core import keys, supply
from ipamd.core.address import Cidr
from ipamd.core.clock import Now
from ipamd.core.errors import Code
from ipamd.core.facts import Fact
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import BlockRecord, RecordError
from ipamd.core.reserve import RETRY_AFTER
from ipamd.store import batch
from ipamd.store.base import ChangeSet, Outcome, Record, Store
from ipamd.store.borrow import ROUND, Hunt, affinity_key_of, borrow, free_in, reclaimable, take_over
from ipamd.store.claim import keys_among

ATTEMPTS = 5
"""How often a block is tried again that others write at the same time."""

Choice = Callable[[BlockRecord], Sequence[int]]
"""Which of a block's free ordinals to reserve, given its image; none: leave it."""


class Borrower:
    """Hunts in the pools whose ADDs wait.

    ``send`` commits one change set, ``record`` makes facts part of the ledger and of the journal.
    """

    def __init__(
        self,
        ledger: Ledger,
        known: batch.Known,
        store: Store,
        send: Callable[[ChangeSet], Awaitable[Outcome]],
        record: Callable[[Sequence[Fact]], None],
        now: Callable[[], Now],
    ) -> None:
        self._ledger, self._known, self._store = ledger, known, store
        self._send, self._record, self._now = send, record, now
        self._hunts: dict[Pool, Hunt] = {}

    async def hunt(self, pool: Pool) -> float | None:
        """Look at the next few blocks of a pool for what its waiting ADDs need.

        Returns when to go on, in seconds from now; None: nobody has an address to give.
        """
        now = self._now().boot
        hunt = self._hunts.setdefault(pool, Hunt(self._ledger.node, pool))
        if not hunt.began:
            if hunt.listed is None or now - hunt.listed >= RETRY_AFTER:
                hunt.learn(await self._list(pool), now)
            hunt.begin(now)
        if hunt.over(now):
            hunt.end()
            return None
        chunk = hunt.due(now)
        if not chunk:
            return ROUND / 1e9
        snapshot = await self._store.read(chunk)
        for index, found in enumerate(snapshot.records):
            await self._use(pool, hunt, found)
            if not supply.to_borrow(self._ledger, pool, self._now().boot):
                hunt.end()
                for unused in reversed(snapshot.records[index + 1 :]):
                    hunt.again(unused.key)
                break
        return 0.0

    def rest(self, now: int) -> None:
        """End the hunts of pools that need nothing any more."""
        for pool, hunt in self._hunts.items():
            if hunt.began and not supply.wants_block(self._ledger, pool, now):
                hunt.end()

    async def reserve_in(self, cidr: Cidr, choose: Choice) -> Sequence[int]:
        """Read a block of another node, or of none, and reserve in it for this node what ``choose`` says.

        Returns the ordinals that the store now has under this node's reserve handle; none if there is no such block,
        if it cannot be understood, or if there was nothing to choose.
        """
        snapshot = await self._store.read([keys.block_key(cidr)])
        return await self._reserve(snapshot.records[0], choose) if snapshot.records else ()

    # --- one block --------------------------------------------------------------------------------------------

    async def _use(self, pool: Pool, hunt: Hunt, found: Record) -> None:
        """Take of a block what is needed, or the whole block if it may be taken over."""
        more = False

        def choose(image: BlockRecord) -> Sequence[int]:
            nonlocal more
            free = free_in(self._ledger, image)
            wanted = supply.to_borrow(self._ledger, pool, self._now().boot)
            more = len(free) > wanted
            return free[:wanted]

        if await self._take_over(pool, found):
            return
        if await self._reserve(found, choose):
            self._ledger.reserve(pool.name, 0).borrowed_at = self._now().boot
        if more:
            hunt.again(found.key)

    async def _take_over(self, pool: Pool, found: Record) -> bool:
        closed = self._ledger.reserve(pool.name, 0).closed
        image = _understood(found)
        own = keys.host_affinity(self._ledger.node)
        if closed is None or closed.code is not Code.EXHAUSTED:  # this node may not have another block
            return False
        if image is None or image.affinity == own or not reclaimable(image, self._now()):
            return False
        if image.affinity is not None:
            key = affinity_key_of(image)
            affinity = await self._store.read([key])
            self._known.learn([key], {record.key: record for record in affinity.records})
        changes = take_over(self._ledger, self._known, pool, found, image, self._now())
        return bool(changes) and await self._commit(changes) is None

    async def _reserve(self, found: Record | None, choose: Choice) -> Sequence[int]:
        for _ in range(ATTEMPTS):
            image = _understood(found)
            ordinals = choose(image) if image else ()
            if found is None or not ordinals:
                break
            refused = await self._commit(borrow(self._ledger, self._known, found, ordinals, self._now()))
            if refused is None:
                return ordinals
            found = refused.get(found.key)
        return ()

    async def _commit(self, changes: ChangeSet) -> dict[str, Record] | None:
        """Send a change set; None: it is in the store and in the ledger, else the records that are there instead."""
        outcome = await self._send(changes)
        if outcome.chosen is None:
            self._known.learn((change.key for change in changes), outcome.records)
            return outcome.records
        self._known.wrote(changes, outcome.revision)
        self._record(batch.committed(changes, outcome.revision))
        return None

    async def _list(self, pool: Pool) -> Sequence[str]:
        """The keys of a pool's blocks that are not this node's own."""
        own = {keys.block_key(block.net) for block in self._ledger.blocks.values() if block.owned}
        found: list[str] = []
        window = keys_among(pool)
        while True:
            _revision, page = await self._store.list_keys(window)
            found += page
            if len(page) < window.limit:
                return [key for key in found if key not in own]
            window = keys_among(pool, page[-1])


def _understood(found: Record | None) -> BlockRecord | None:
    """The image of a block; None if it is gone, or somebody's mistake that is not ours to mend."""
    if found is None:
        return None
    try:
        image = BlockRecord(found.value)
    except RecordError:
        return None
    return None if image.deleted or keys.block_key(image.cidr) != found.key else image
