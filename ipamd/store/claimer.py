"""Claims blocks: for the reserve of a pool, for addresses that were asked for, and again where a pool was full before.

Part of the writer's one task. A search goes on over as many transactions as it takes to find a free block, or to know
that there is none (``claim``); then the pool is closed to claims. May import trio, core and store.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio
from msgspec.structs import replace

from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.clock import Now
from ipamd.core.errors import Code
from ipamd.core.facts import Fact
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.reserve import Refusal
from ipamd.store import requested
from ipamd.store.base import Change, ChangeSet, Outcome, Store
from ipamd.store.claim import Search, claim, keys_among, neighbours, overlaps
from ipamd.store.known import Known, committed

RECONSIDER_AFTER = 60_000_000_000
"""How long an exhausted pool is left alone while nobody waits for it (ns)."""


class Claimer:
    """``send`` commits one of some change sets, ``record`` makes facts part of the ledger and of the journal.

    ``on_supply`` is called when it is known that a pool, or an address that was asked for, cannot be had.
    """

    def __init__(
        self,
        ledger: Ledger,
        known: Known,
        store: Store,
        send: Callable[[Sequence[ChangeSet], Search | None], Awaitable[Outcome]],
        record: Callable[[Sequence[Fact]], None],
        now: Callable[[], Now],
        on_supply: Callable[[], None],
    ) -> None:
        self._ledger, self._known, self._store = ledger, known, store
        self._send, self._record, self._now, self._on_supply = send, record, now, on_supply

    async def claim(self, pool: Pool) -> None:
        """Claim a block of a pool, or close the pool because it has none."""
        search = self._search(pool)
        while sets := await self._options(pool, search):
            outcome = await self._send(list(sets.values()), search)
            if outcome.chosen is not None:
                self._claimed(pool, list(sets.values())[outcome.chosen], outcome.revision)
                return
            self._known.learn({change.key for changes in sets.values() for change in changes}, outcome.records)
            search.learn(list(sets), outcome)
        why, remedy = f"none of its {pool.blocks} blocks is free", "add a pool, or free addresses"
        cooling = sum(len(block.cooling) for block in self._ledger.blocks.values() if pool.cidr.contains(block.net))
        if cooling:
            why, remedy = f"{why}, {cooling} of this node's addresses cool (ipCooldownSeconds)", f"wait, {remedy}"
        if self._wholly_reserved(pool):
            why, remedy = "an IPReservation keeps all of its addresses", "add a pool, or change the IPReservation"
        self.close(pool, Code.EXHAUSTED, why, remedy)

    def close(self, pool: Pool, code: Code, why: str, remedy: str) -> None:
        """No block of a pool can be claimed: addresses of other nodes' blocks may do, unless that is forbidden."""
        now = self._now().boot
        strict = self._ledger.settings.config.strict_affinity
        reserve = self._ledger.reserve(pool.name, now)
        reserve.closed = closed = Refusal(code, why, now, remedy)
        reserve.tight = code is Code.EXHAUSTED and not strict
        forbidden = "strictAffinity forbids addresses of other nodes' blocks"
        reserve.refusal = closed.because(forbidden, now) if strict else None  # else only a hunt can tell
        self._on_supply()

    async def reconsider(self, pool: Pool, now: int) -> bool:
        """See now and then whether a tight pool has a free block again: then the reserve may be large again."""
        reserve = self._ledger.reserve(pool.name, now)
        if not reserve.tight or reserve.closed is None or now - reserve.closed.at < RECONSIDER_AFTER:
            return False
        search = self._search(pool)
        for page in await pages_of(self._store, pool):
            search.learn_all(page)
        if await self._options(pool, search):
            reserve.reopen()
            return True
        reserve.closed = replace(reserve.closed, at=now)
        return False

    async def claim_wanted(self) -> bool:
        """Claim a block that nobody has, for the addresses of it that were asked for; whether one was tried."""
        found = requested.to_claim(self._ledger)
        if found is None or self._ledger.settings.locked:
            return False
        pool, cidr, ordinals = found
        if await self._overlapped(cidr):
            requested.refuse_overlapped(self._ledger, cidr, self._now().boot)
            self._on_supply()
            return True
        changes = claim(self._ledger, self._known, pool, cidr, self._now(), wanted=ordinals)
        outcome = await self._send([changes], None)
        if outcome.chosen is not None:
            self._claimed(pool, changes, outcome.revision)
        else:
            self._known.learn((change.key for change in changes), outcome.records)
            if any(keys.block_key(larger) in outcome.records for larger in pool.enclosing(cidr)):
                requested.refuse_overlapped(self._ledger, cidr, self._now().boot)
                self._on_supply()
            requested.forget_look(self._ledger, cidr)
        return True

    def _claimed(self, pool: Pool, changes: Sequence[Change], revision: int) -> None:
        self._ledger.reserve(pool.name, self._now().boot).reopen()
        self._known.wrote(changes, revision)
        self._record(committed(changes, revision))

    # --- what to try ------------------------------------------------------------------------------------------

    def _search(self, pool: Pool) -> Search:
        search = Search(self._ledger.node, pool)
        for block in self._ledger.blocks.values():
            search.bar(block.net)
        return search

    async def _options(self, pool: Pool, search: Search) -> dict[Cidr, Sequence[Change]]:
        """The next few blocks that may be free, each with the change set that claims it; none: the pool has no more."""
        sets: dict[Cidr, Sequence[Change]] = {}
        while not sets and not self._wholly_reserved(pool) and (tried := search.candidates()):
            now = self._now()
            sets = {cidr: claim(self._ledger, self._known, pool, cidr, now) for cidr in tried}
            for cidr in [cidr for cidr in tried if not sets[cidr] or await self._overlapped(cidr)]:
                search.bar(cidr)
                del sets[cidr]
            await trio.lowlevel.checkpoint()
        return sets

    def _wholly_reserved(self, pool: Pool) -> bool:
        reservations = self._ledger.settings.reservations.values()
        return any(cidr.contains(pool.cidr) for cidrs in reservations for cidr in cidrs)

    async def _overlapped(self, cidr: Cidr) -> bool:
        """Whether blocks of another size lie in this one: left from before its pool got another block size.

        A larger block around it is looked for in the transaction itself; smaller ones inside cannot be named there.
        """
        if any(block.net.overlaps(cidr) for block in self._ledger.blocks.values()):
            return True
        if cidr.size == 1:
            return False
        _revision, found = await self._store.list_keys(neighbours(cidr))
        return overlaps(cidr, found)


async def pages_of(store: Store, pool: Pool) -> list[tuple[str, ...]]:
    """The keys among which those of all blocks of a pool are, a window at a time; the last is not full."""
    pages: list[tuple[str, ...]] = []
    window = keys_among(pool)
    while True:
        _revision, page = await store.list_keys(window)
        pages.append(page)
        if len(page) < window.limit:
            return pages
        window = keys_among(pool, page[-1])
