"""Gets addresses of other nodes' blocks for the ADDs that wait for a pool of which no block can be claimed.

Part of the writer's one task: each call does one read of a few blocks, and the transactions that reserve what is free
in them; in between the writer flushes. All who wait share one hunt. May import core and store.
"""

from collections.abc import Awaitable, Callable, Sequence

from ipamd.core import keys, supply
from ipamd.core.clock import Now
from ipamd.core.errors import Code
from ipamd.core.facts import Fact, Place
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import BlockRecord, RecordError, pressure_record
from ipamd.core.reserve import PRESSURE
from ipamd.store.base import Change, ChangeSet, Outcome, Record, Store, StoreRefusedError
from ipamd.store.borrow import ROUND, Hunt, affinity_key_of, borrow, free_in, is_of, reclaimable, take_over
from ipamd.store.claimer import pages_of
from ipamd.store.known import Known, committed

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
        known: Known,
        store: Store,
        send: Callable[[ChangeSet], Awaitable[Outcome]],
        record: Callable[[Sequence[Fact]], None],
        now: Callable[[], Now],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._known, self._store = ledger, known, store
        self._send, self._record, self._now, self._report = send, record, now, report
        self._hunts: dict[Pool, Hunt] = {}
        self._pressed: set[str] = set()
        self._asked: dict[Place, str] = {}

    def turn(self, pool: Pool) -> int:
        """By what to sort pools: where nothing was found, those that were looked at the longest ago come first."""
        hunt = self._hunts.get(pool)
        return hunt.looked if hunt is not None and hunt.baffled else 0

    async def hunt(self, pool: Pool) -> float | None:
        """Look at the next few blocks of a pool for what its waiting ADDs need.

        Returns when to go on, in seconds from now; None: nobody has an address to give.
        """
        now = self._now().boot
        hunt = self._hunts.setdefault(pool, Hunt(self._ledger.node, pool))
        if not hunt.began:
            if hunt.outdated(now):
                await self._list(pool, hunt)
            hunt.begin(now)
        supplied = self._ledger.reserve(pool.name, now).supplied
        if hunt.supplied != supplied:
            hunt.begin(now)
            hunt.supplied = supplied
        if hunt.over(now) and hunt.outdated(now):
            await self._list(pool, hunt)  # nobody is refused for want of a block that was claimed meanwhile
        if hunt.over(now):
            hunt.end()
            return None
        chunk = hunt.due(now, {keys.block_key(block.net) for block in self._ledger.blocks_of(pool.name) if block.owned})
        if not chunk:
            await self._press(pool)
            return ROUND / 1e9
        read = {record.key: record for record in (await self._store.read(chunk)).records}
        line = [read[key] for key in chunk if key in read]  # the node's own order: in the keys' all would meet
        for index, found in enumerate(line):
            await self._use(pool, hunt, found)
            if not supply.to_borrow(self._ledger, pool, self._now().boot):
                hunt.end()
                for unused in reversed(line[index + 1 :]):
                    hunt.again(unused.key)
                break
        return 0.0

    async def _list(self, pool: Pool, hunt: Hunt) -> None:
        now = self._now().boot
        hunt.learn({key for page in await pages_of(self._store, pool) for key in page if is_of(pool, key)}, now)

    def rest(self, now: int) -> None:
        """End the hunts of pools that need nothing any more."""
        for pool, hunt in self._hunts.items():
            if hunt.began and not supply.wants_block(self._ledger, pool, now):
                hunt.end()

    # --- pressure ---------------------------------------------------------------------------------------------

    async def _press(self, pool: Pool) -> None:
        """Ask all daemons to give their reserve of a pool back, unless somebody just did."""
        now, key = self._now(), keys.pressure_key(pool.name)
        reserve = self._ledger.reserve(pool.name, now.boot)
        if reserve.pressed_until - now.boot > PRESSURE // 2:
            return
        reserve.press(now.boot)
        if await self._say(key):
            self._pressed.add(pool.name)

    async def ask_for(self, places: Sequence[Place]) -> None:
        """Ask whoever has one of these places in reserve to give it back: a pod here wants this very address.

        Not by the pool's pressure: all nodes would give up all of their reserve for the sake of one address.
        """
        for place in places:
            key = keys.asked_key(self._ledger.blocks[place.block].address(place.ordinal))
            if await self._say(key):
                self._asked[place] = key

    async def _say(self, key: str) -> bool:
        """Write one of the keys that others heed; whether it is there."""
        value = pressure_record(self._ledger.node, self._now().unix)
        try:
            return await self._put(key, value) or await self._put(key, value)  # again if one from before is there
        except StoreRefusedError as error:  # the others may give what they have all the same
            self._report("cannot ask other nodes for addresses", {"key": key, "error": str(error)})
            return False

    async def relieve(self) -> None:
        """Take back what this node said of pools that are no longer pressed, of addresses that nobody waits for."""
        for place in [place for place in self._asked if place not in self._ledger.wanted]:
            await self._put(self._asked.pop(place), None)
        for pool in sorted(self._pressed):
            reserve = self._ledger.reserves.get(pool)
            if reserve is None or not reserve.pressed_until:
                self._pressed.remove(pool)
                await self._put(keys.pressure_key(pool), None)  # or another node has said so since: it is its own now

    async def _put(self, key: str, value: bytes | None) -> bool:
        return await self._commit((Change(key, value, self._known.revision(key)),)) is None

    # --- one block --------------------------------------------------------------------------------------------

    async def _use(self, pool: Pool, hunt: Hunt, found: Record) -> None:
        """Take of a block what is needed, or the whole block if it may be taken over."""
        more, chosen = False, 0

        def choose(image: BlockRecord) -> Sequence[int]:
            nonlocal more, chosen
            free = free_in(self._ledger, image, self._now())
            wanted = supply.to_borrow(self._ledger, pool, self._now().boot)
            more, chosen = len(free) > wanted, len(free[:wanted])
            return free[:wanted]

        if await self._take_over(pool, found):
            return
        if await self._reserve(found, choose):
            self._ledger.reserve(pool.name, 0).borrowed_at = self._now().boot
        elif chosen:  # others were faster, again and again: there is something to be had
            hunt.begin(self._now().boot)
            more = True
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
        self._record(committed(changes, outcome.revision))
        return None


def _understood(found: Record | None) -> BlockRecord | None:
    """The image of a block; None if it is gone, or somebody's mistake that is not ours to mend."""
    if found is None:
        return None
    try:
        image = BlockRecord(found.value)
    except RecordError:
        return None
    return None if image.deleted or keys.block_key(image.cidr) != found.key else image
