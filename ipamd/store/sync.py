"""The one task that reads the store: a full look at what concerns this node, then a watch of exactly that.

What concerns one node: pools, reservations, configuration, ClusterInformation, which pools are pressed, its own Node,
its own affinities, its reserve's handle, and the blocks it has a part in, key by key. Never all blocks: the watch
traffic of a node must not grow with the cluster.

Leftovers of Calico's three-step claim are repaired here: an affinity without a block, of another node's block, or
never confirmed. May import trio, core and store.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import trio
from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_address
from ipamd.core.clock import Now
from ipamd.core.facts import Committed, Fact, SetBack
from ipamd.core.ledger import Ledger
from ipamd.core.records import (
    BlockRecord,
    RecordError,
    affinity_record,
    affinity_state,
    cluster_guid,
    handle_blocks,
    new_block,
    pressure_at,
)
from ipamd.core.reserve import PRESSURE
from ipamd.store.base import (
    Change,
    CompactedError,
    Event,
    OtherClusterError,
    Record,
    Snapshot,
    Store,
    StoreRefusedError,
    StoreUnavailableError,
    Watch,
)

BACK_OFF = (0.1, 0.5)
"""First and longest wait after a failure (s)."""

PREFIXES = (keys.POOLS, keys.RESERVATIONS)

OLD_PRESSURE = 10 * PRESSURE
"""How old a pressure may be, by the clocks of two nodes (ns): one that nobody takes back any more is not heeded."""


_UNREADABLE = "unreadable"
"""In place of the owner of a block whose record cannot be understood."""


class _Claim(Struct, frozen=True):
    """An affinity of this node, understood."""

    record: Record
    cidr: Cidr
    state: str


class Sync:
    """Keeps the ledger as new as the store. ``run`` it in a nursery; ``first`` is set after the first full look."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        record: Callable[[Sequence[Fact]], None],
        now: Callable[[], Now],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._store, self._record, self._now, self._report = ledger, store, record, now, report
        self._watch: Watch | None = None
        self._following = trio.CancelScope()
        self._distrusts = 0
        store.distrust = self.distrust
        self._followed: set[str] = set()
        self._pressures: dict[str, int] = {}
        self._affinities = keys.affinities_prefix(ledger.node)
        self._reserve = keys.handle_key(ledger.reserve_handle)
        # The reserves of all instances: one without a name, and those with one. Not those of node-10 for node-1.
        self._unnamed = keys.handle_key(keys.reserve_handle(ledger.node))
        self._named = self._unnamed + "."
        self._single = (keys.CONFIG, keys.CLUSTER_INFORMATION, keys.NODES + ledger.node)
        self.first = trio.Event()
        self.looks = 0
        self.events = 0
        self.last_error = ""

    async def run(self) -> None:
        """Look and watch for ever; after a loss of history look at everything again."""
        pause = BACK_OFF[0]
        while True:
            try:
                revision = await self.look()
                self.first.set()
                pause = BACK_OFF[0]
                await self._follow_changes(revision)
            except CompactedError:
                self._report("watch lost its place, reading everything again", {})
            except OtherClusterError:
                raise
            except (StoreUnavailableError, StoreRefusedError) as error:
                if str(error) != self.last_error:
                    self._report("cannot read the store", {"error": str(error)})
                self.last_error = str(error)
                await trio.sleep(pause)
                pause = min(pause * 2, BACK_OFF[1])

    def distrust(self) -> None:
        """What answers has another history than what was read: nothing is written before all is read again."""
        self._distrusts += 1
        self._ledger.synced = False
        self._following.cancel()

    # --- the full look ----------------------------------------------------------------------------------------

    async def look(self) -> int:
        """Read everything that concerns this node, repair leftovers of claims; returns the revision.

        Raises OtherClusterError before anything of another cluster is taken in.
        """
        distrusts = self._distrusts
        before = self._ledger.revision  # the writer may learn newer ones while the answer is on its way
        prefixes = (*PREFIXES, keys.PRESSURE, self._affinities, self._named)
        snapshot = await self._store.read((*self._single, self._unnamed), prefixes)
        self._refuse_other_cluster(snapshot.records)
        if snapshot.revision < before or not self._ledger.synced:
            if snapshot.revision < before:
                self._report(
                    "the store was set back, to a backup perhaps; writing again what living pods hold",
                    {"revision": str(snapshot.revision), "seen": str(before)},
                )
            if snapshot.revision < before or self.looks:
                self._record([SetBack()])
            else:
                self._ledger.forget_revisions()
            self._pressures.clear()
        for record in snapshot.records:
            self._heed(record.key, record.value, record.revision)
        self._take_in_settings(snapshot)
        await self._look_at_blocks(snapshot.records, distrusts)
        self.looks += 1
        self.last_error = ""
        return snapshot.revision

    async def look_at_settings(self) -> None:
        """Read what decides which pools serve this node: what the watch may not have brought yet."""
        snapshot = await self._store.read(self._single, PREFIXES)
        self._refuse_other_cluster(snapshot.records)
        self._take_in_settings(snapshot)

    def _refuse_other_cluster(self, records: Sequence[Record]) -> None:
        known = self._ledger.settings.cluster
        for record in records:
            if known and record.key == keys.CLUSTER_INFORMATION:
                with suppress(RecordError):
                    found = cluster_guid(record.value)
                    if found not in ("", known):
                        raise OtherClusterError(known, found)

    def _take_in_settings(self, snapshot: Snapshot) -> None:
        settings = {record.key: record for record in snapshot.records if self._is_fact(record.key)}
        gone = [key for key in {*self._single, *self._ledger.settings.records} if key not in settings]
        self._record(
            [Committed(key, snapshot.revision, None) for key in gone]
            + [Committed(record.key, record.revision, record.value) for record in settings.values()]
        )

    async def _look_at_blocks(self, records: Sequence[Record], distrusts: int) -> None:
        claims = self._claims(records)
        wanted = {keys.block_key(block.net) for block in self._ledger.blocks.values()}
        wanted |= {keys.block_key(claim.cidr) for claim in claims} | self._reserved_in(records)
        blocks = await self._store.read(sorted(wanted))
        unsettled = [claim for claim in claims if not self._settled(claim, blocks)]
        if unsettled and not self._ledger.settings.locked:
            for claim in unsettled:
                await self._repair(claim, blocks)
            blocks = await self._store.read(sorted(wanted))
        if self._distrusts != distrusts:
            raise StoreUnavailableError("another history answered before all of the store was read; reading again")
        self._ledger.synced = True
        self._record(blocks.facts(wanted))

    def _reserved_in(self, records: Sequence[Record]) -> set[str]:
        """The keys of the blocks in which the handle of the reserve, if it is among the records, counts addresses.

        Some may be other nodes', reserved by an earlier life that was killed before it wrote that down, or whose state
        file was lost.
        """
        node = self._ledger.node
        handles = (r for r in records if self._is_reserve(r.key) and keys.is_reserve_of(keys.name_of(r.key), node))
        return {keys.block_key(cidr) for record in handles for cidr in handle_blocks(record.value)}

    def _claims(self, records: Sequence[Record]) -> list[_Claim]:
        """Those of the records that are affinities of this node."""
        affinities = (record for record in records if record.key.startswith(self._affinities))
        return [claim for claim in map(self._claim, affinities) if claim is not None]

    async def look_up(self, handle: str) -> None:
        """Learn what a handle holds, in whosever blocks. Raises StoreUnavailableError, StoreRefusedError."""
        found = await self._store.read([keys.handle_key(handle)])
        cidrs = {cidr for record in found.records for cidr in handle_blocks(record.value)}
        if cidrs:
            blocks = await self._store.read(sorted(map(keys.block_key, cidrs)))
            self._record(blocks.facts())

    def _is_reserve(self, key: str) -> bool:
        return key == self._unnamed or key.startswith(self._named)

    def _is_fact(self, key: str) -> bool:
        return not self._is_reserve(key) and not key.startswith((self._affinities, keys.PRESSURE))

    def _heed(self, key: str, value: bytes | None, revision: int) -> None:
        """A pool is pressed, or no more: nothing that this node must remember longer than it lasts."""
        if key.startswith(keys.ASKED):
            self._give_back(key, value)
            return
        if not key.startswith(keys.PRESSURE) or revision <= self._pressures.get(key, 0):
            return
        self._pressures[key] = revision
        reserve, now = self._ledger.reserves.get(keys.name_of(key)), self._now()
        if reserve is None:
            return
        if value is None:
            reserve.relieve()
        elif (at := pressure_at(value)) is not None and now.unix - at <= OLD_PRESSURE:
            reserve.press(now.boot)
            self._ledger.haste = True

    def _give_back(self, key: str, value: bytes | None) -> None:
        """A pod elsewhere asks for an address: if it is in reserve here, and promised to nobody, it is given back."""
        at = pressure_at(value) if value is not None else None
        if at is None or self._now().unix - at > OLD_PRESSURE:
            return
        try:
            family, address = parse_address(keys.name_of(key))
        except ValueError:
            return
        for block in self._ledger.blocks.values():
            ordinal = address - block.net.base
            if block.net.has(family, address) and block.reserve_bits >> ordinal & 1:
                block.withdraw([ordinal])  # a fact when the writer frees it
                self._ledger.haste = True
                return

    def _claim(self, record: Record) -> _Claim | None:
        """Read one of this node's affinities; None, and a word about it, if it cannot be understood."""
        try:
            return _Claim(record, keys.cidr_of(record.key), affinity_state(record.value))
        except ValueError as error:
            self._report(
                "cannot understand an affinity of this node, leaving it alone", {"key": record.key, "error": str(error)}
            )
            return None

    def _settled(self, claim: _Claim, blocks: Snapshot) -> bool:
        return claim.state == "confirmed" and _block_owner(claim.cidr, blocks) == keys.host_affinity(self._ledger.node)

    async def _repair(self, claim: _Claim, blocks: Snapshot) -> None:
        """Finish or undo a claim that was left half done; a conflict means that somebody else just did."""
        owner = _block_owner(claim.cidr, blocks)
        if claim.state not in ("confirmed", "pending") or owner == _UNREADABLE:
            return
        affinity = claim.record
        confirmed = Change(affinity.key, affinity_record("confirmed", affinity.value), affinity.revision)
        cut = any(pool.cuts(claim.cidr) for pool in self._ledger.settings.pools.values())
        if owner is None and cut:
            block = new_block(claim.cidr, keys.host_affinity(self._ledger.node), self._now().unix)
            changes = [confirmed, Change(keys.block_key(claim.cidr), block.encode(), 0)]
        elif owner == keys.host_affinity(self._ledger.node):
            changes = [confirmed]
        else:
            changes = [Change(affinity.key, None, affinity.revision)]
        outcome = await self._store.commit(changes)
        done = "finished" if changes[0].value else "dropped"
        if outcome.chosen is not None:
            self._report(
                f"{done} a claim that was left half done", {"block": str(claim.cidr), "owner": owner or "none"}
            )

    # --- the watch --------------------------------------------------------------------------------------------

    async def _follow_changes(self, revision: int) -> None:
        self._following = trio.CancelScope()
        with self._following:
            await self._follow_from(revision)

    async def _follow_from(self, revision: int) -> None:
        async with self._store.watch() as watch:
            self._watch, self._followed = watch, set()
            try:
                for key in (*self._single, self._reserve):
                    watch.add(key, revision)
                for prefix in (*PREFIXES, keys.PRESSURE, self._affinities):
                    watch.add(prefix, revision, prefix=True)
                self.follow(revision)
                async for events in watch:
                    await self._take_in(events)
            finally:
                self._watch = None

    def follow(self, revision: int) -> None:
        """Watch the blocks that the ledger now has, and no others, from ``revision`` on."""
        if self._watch is None:
            return
        wanted = {keys.block_key(block.net) for block in self._ledger.blocks.values()}
        for key in wanted - self._followed:
            self._watch.add(key, revision)
        for key in self._followed - wanted:
            self._watch.remove(key)
        self._followed = wanted

    async def _take_in(self, events: Sequence[Event]) -> None:
        self.events += len(events)
        self._refuse_other_cluster([Record(e.key, e.value, e.revision) for e in events if e.value is not None])
        for event in events:
            self._heed(event.key, event.value, event.revision)
        # What this node wrote itself comes back, and needs no second place in the state file. Without a fact too: what
        # was heeded is the writer's to act on.
        news = [e for e in events if self._is_fact(e.key) and not self._ledger.knows(e.key, e.revision)]
        self._record([Committed(e.key, e.revision, e.value) for e in news])
        # Calico's plugin on this host claimed a block, or a transaction of an earlier life arrived late.
        records = [Record(event.key, event.value, event.revision) for event in events if event.value is not None]
        claimed = {keys.block_key(claim.cidr) for claim in self._claims(records)}
        unknown = (claimed | self._reserved_in(records)) - self._followed
        if unknown:
            blocks = await self._store.read(sorted(unknown))
            self._record(blocks.facts())


def _block_owner(cidr: Cidr, blocks: Snapshot) -> str | None:
    """Whose block this is: its affinity ("" if it has none), or None if there is no such block."""
    key = keys.block_key(cidr)
    for record in blocks.records:
        if record.key == key:
            try:
                return BlockRecord(record.value).affinity or ""
            except RecordError:
                return _UNREADABLE
    return None
