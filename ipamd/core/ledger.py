"""Everything one node knows and has promised: the decisions of ADD and DEL, and the facts they consist of.

A call decides and changes memory in one step, with no await inside, so two tasks cannot get one ordinal and no lock
is needed. It returns the facts; the caller makes them durable and then replies. Replay after a crash goes through
the same ``apply``. What comes from the store arrives as ``Committed`` facts, whoever wrote it and in any order of
arrival: an older revision than the known one is ignored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from operator import attrgetter

from msgspec import Struct
from msgspec.structs import replace

from ipamd.core import keys, requested
from ipamd.core.address import FAMILIES
from ipamd.core.block import Block, ordinals_of
from ipamd.core.clock import Now
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import (
    NOBODY,
    Assigned,
    Attachment,
    Committed,
    Draining,
    Fact,
    Place,
    RangeAssigned,
    RangeCursors,
    RangeReleased,
    Rebooted,
    Released,
    SetBack,
    Withdrawn,
)
from ipamd.core.pool import Pool
from ipamd.core.range_ledger import RangeLedger
from ipamd.core.records import BlockRecord, RecordError
from ipamd.core.request import Added, AddRequest, Deleted, RangeAdded, RangeRequest, Shortage
from ipamd.core.reserve import RETRY_AFTER, Reserve, ReservePolicy
from ipamd.core.settings import Settings


class Quarantine(Struct, frozen=True):
    """What the reserve of another instance holds, and since when (CLOCK_BOOTTIME, ns) it holds just that."""

    places: frozenset[Place]
    since: int


TOMBSTONE_AGE = 15 * 60 * 1_000_000_000
"""How long a DEL is remembered at least, against ADDs that began before it (ns): no runtime waits as long for one."""

MAX_TOMBSTONES = 100_000
"""How many DELs are remembered, the last ones: a hundred a second for as long. Some 25 MB of memory, 10 of the file."""

MAX_STRAYS = 1000
"""How many deleted handles that nothing was known of wait to be looked up in the store: a bound, not a promise."""


_LIMITING = (keys.Kind.POOL, keys.Kind.RESERVATION, keys.Kind.CONFIG)
"""The records that decide whether a pool can give addresses."""


# To pass over a full node's blocks, most of which have neither a reserve nor anything to release, without a step of the
# interpreter for each: it would show in every ADD and flush.
_reserve_of = attrgetter("reserve_bits")
_releasing_of = attrgetter("releasing")


class Ledger:
    """The state of one node. ``blocks`` by CIDR text, ``holdings`` by attachment, ``reserves`` by pool name.

    ``wanted`` are the places that waiting ADDs asked for. ``strays`` are handles of deleted attachments that the
    store may have more of than this node knows, to be looked up there.
    ``labels`` are the node's while the store has no Node record. ``instance`` names the state file: what another
    instance reserved for this node may have been promised to pods that this one knows nothing of.
    ``ranges`` is what was given out of host-local ranges: of all here it has the tombstones in common.
    """

    def __init__(
        self, node: str, policy: ReservePolicy, labels: Mapping[str, str] | None = None, instance: str = ""
    ) -> None:
        self.node = node
        self.policy = policy
        self.reserve_handle = keys.reserve_handle(node, instance)
        self.quarantine: dict[str, Quarantine] = {}
        self.settings = Settings(node, labels)
        self.blocks: dict[str, Block] = {}
        self.holdings: dict[Attachment, Assigned] = {}
        self.tombstones: dict[Attachment, int] = {}
        self.reserves: dict[str, Reserve] = {}
        self.damaged: dict[str, str] = {}
        self.strays: dict[str, Released] = {}
        self.ranges = RangeLedger()
        self.wanted: dict[Place, requested.Want] = {}
        self.unclaimed_in: dict[str, None] = {}
        """The blocks, by CIDR, in which somebody may hold what no attachment here is known to: mostly none."""
        self.haste = False
        """Whether somebody may soon wait, here or elsewhere, for what the next transaction does."""
        self.synced = False
        self.histories = 0
        """How often the store's revisions were found to mean nothing any more."""
        self._draining = False
        self._rival = ""
        self._closed = ""
        """Why nothing is assigned at all, in words; "" if something is."""
        self.drain_ordered = False
        """Whether an operator wants that: it lasts over a restart."""
        self._revisions: dict[str, int] = {}
        self._by_pool: dict[str, list[Block]] = {}
        self._pools: dict[str, str] = {}
        """The names of the pools of ``_by_pool`` by block."""

    # --- whether anything is assigned at all ------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether the node is to give back all that no pod holds, and to assign nothing."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        """Begin a drain, or end it."""
        self._draining = draining
        self._close()

    @property
    def rival(self) -> str:
        """The other host that serves this node, and was there first; "" if there is none: this one yields to it."""
        return self._rival

    @rival.setter
    def rival(self, rival: str) -> None:
        """Yield to another host, or ("") no more."""
        self._rival = rival
        self._close()

    def _close(self) -> None:
        self._closed = ""
        if self._draining:
            remedy = "schedule the pod on another node, or POST /v1/undrain"
            self._closed = f"node {self.node} is being drained of its addresses; {remedy}"
        if self._rival:
            remedy = "give one of the two hosts another node name, or stop ipamd on it"
            self._closed = f"host {self._rival} serves node {self.node}, too, and was there first; {remedy}"

    # --- requests ---------------------------------------------------------------------------------------------

    def add(self, request: AddRequest, now: Now) -> Added | Shortage:
        """Decide an ADD; the same attachment gets what it already has.

        Raises RefusedError if no pool serves the request, or none will have an address soon.
        """
        if request.addresses:
            return self._add_requested(request, now)
        held = self.holdings.get(request.attachment)
        if held is not None:
            return Added(held, ())
        self.refuse_late(request)
        handle = request.attachment.handle
        places: list[Place] = []
        for family in request.families:
            found = self._adopt(handle, family) or self.choose(request, family, now.boot)
            if isinstance(found, Shortage):
                return found
            places.append(found)
        assigned = Assigned(request.attachment, handle, tuple(places), request.labels, now.unix, request.started)
        self.apply(assigned)
        self._note_drain(places, now.boot)
        return Added(assigned, (assigned,))

    def add_from_ranges(self, request: RangeRequest, now: Now) -> RangeAdded:
        """Decide an ADD from host-local ranges: no pool, block or store has a part in it.

        Raises RefusedError, see ``RangeLedger.add``.
        """
        if request.attachment not in self.ranges.holdings:
            self.refuse_ended(request)
        return self.ranges.add(request, now)

    def _add_requested(self, request: AddRequest, now: Now) -> Added | Shortage:
        """Decide an ADD that asks for addresses: these or none, beside what the attachment has of the other IP version.

        Calico's main plugin asks for an IPv4 and an IPv6 address of one pod in two ADDs.
        """
        held = self.holdings.get(request.attachment)
        families = [family for family in request.addresses if not self._has_requested(request, family, held)]
        if held is not None and not families:
            return Added(held, ())
        self.refuse_late(request)
        if not self.synced and not self.settings.pools:
            return Shortage("")
        handle = request.attachment.handle
        found = [requested.locate(self.settings, request, family) for family in families]
        missing = ""
        for family, (pool, place) in zip(families, found, strict=True):
            block = self.blocks.get(place.block)
            if block is not None and (block.ready(place.ordinal) or place.ordinal in block.adopted.get(handle, ())):
                continue
            self.refuse_requested(request, family, block, place)
            missing = pool.name
        places = tuple(place for _pool, place in found)
        if missing:
            return Shortage(missing, places)
        assigned = Assigned(
            request.attachment,
            handle,
            (held.places if held else ()) + places,
            request.labels,
            now.unix,
            request.started,
            (held.asked if held else ()) + tuple(families),
        )
        self.apply(assigned)
        return Added(assigned, (assigned,), held)

    def _has_requested(self, request: AddRequest, family: int, held: Assigned | None) -> bool:
        """Whether the attachment has the address already; raises RefusedError if it has another of that IP version."""
        for place in held.places if held else ():
            block = self.blocks[place.block]
            if block.net.family == family:
                if block.net.base + place.ordinal == request.addresses[family]:
                    return True
                why = f"it has {block.address(place.ordinal)} already; delete the pod first, or ask for that address"
                raise requested.refused(request, family, Code.ADDRESS_NOT_ASSIGNABLE, why)
        return False

    def refuse_requested(self, request: AddRequest, family: int, block: Block | None, place: Place) -> None:
        """Raise RefusedError if it is known that the place cannot be had; what is not known is worth the wait."""
        holder = block.desired.get(place.ordinal) if block else None
        if holder is not None:
            raise requested.refused(request, family, Code.ADDRESS_TAKEN, requested.taken(requested.tenant(holder)))
        want = self.wanted.get(place)
        if want is not None and want.refusal is not None:
            raise requested.refused(request, family, want.refusal.code, want.refusal.why)

    def want(self, places: Iterable[Place]) -> None:
        """Keep these places, as soon as the store gives them to this node, for who asked for them."""
        for place in places:
            self.wanted.setdefault(place, requested.Want()).waiting += 1
            if place.block in self.blocks:
                self.blocks[place.block].want(place.ordinal)

    def unwant(self, places: Iterable[Place]) -> None:
        """Undo one ``want`` of these places."""
        for place in places:
            want = self.wanted[place]
            want.waiting -= 1
            if want.waiting:
                continue
            del self.wanted[place]
            block = self.blocks.get(place.block)
            if block is not None:
                block.unwant(place.ordinal)
                self._withdraw_reserved(block)
                self._drop_irrelevant(block)

    def delete(
        self,
        attachment: Attachment,
        also: str,
        started: int,
        *,
        from_pools: bool = True,
        told: Callable[[], Set[tuple[int, int]]] = frozenset,
    ) -> Deleted:
        """Decide a DEL that began at ``started`` (CLOCK_BOOTTIME, ns); an unknown attachment is a success too.

        Releases what the attachment holds, and what the store has under its handle or under ``also`` (the older
        ``<namespace>.<pod>``, or "") without telling whose interface it is: allocations of Calico's own plugin. If
        there is nothing here, the handles become ``strays``: they may have addresses in blocks of other nodes, unless
        the attachment's network has its addresses not ``from_pools``.
        ``told`` gives the addresses that the runtime says the attachment had: another interface of the container may
        have others under the same handle.
        A DEL that began before the ADD it would undo was kept somewhere on its way: the attachment lives again.
        """
        held, ranged = self.holdings.get(attachment), self.ranges.holdings.get(attachment)
        if (held is not None and held.began > started) or (ranged is not None and ranged.began > started):
            return Deleted(())
        handles = tuple(filter(None, (attachment.handle, also)))
        released = Released(attachment, attachment.handle, held.places if held else (), started)
        facts: tuple[Fact, ...] = (
            released,
            *self.ranges.released(attachment),
            *self.unclaimed(attachment, handles, started, told),
        )
        if from_pools and held is None and len(facts) == 1 and len(self.strays) < MAX_STRAYS:
            self.strays.update((handle, released) for handle in handles)
        for fact in facts:
            self.apply(fact)
        return Deleted(facts)

    def unclaimed(
        self,
        attachment: Attachment,
        handles: Iterable[str],
        started: int,
        told: Callable[[], Set[tuple[int, int]]] = frozenset,
    ) -> list[Released]:
        """The facts that release what the store has under these handles and no attachment is known to hold.

        Of a handle that has some of the addresses ``told`` (IP version and integer) only these are released.
        """
        facts: list[Released] = []
        if not self.unclaimed_in:
            return facts
        blocks = self._unclaimed_blocks()
        for handle in handles:
            under = [(block, ordinal) for block in blocks for ordinal in block.under(handle)]
            known = told() if under else frozenset()
            named = [(b, o) for b, o in under if (b.net.family, b.net.base + o) in known]
            places = tuple(block.place(ordinal) for block, ordinal in named or under)
            if places:
                facts.append(Released(attachment, handle, places, started))
        return facts

    def _unclaimed_blocks(self) -> list[Block]:
        """Those of ``unclaimed_in``, in the order of all: which of two allocations is taken depends on no history."""
        return [self.blocks[cidr] for cidr in filter(self.unclaimed_in.__contains__, self.blocks)]

    def undo(self, added: Added | RangeAdded) -> None:
        """Take back an ADD whose facts could not be made durable, in the same step: nobody knows of it yet."""
        if isinstance(added, RangeAdded):
            self.ranges.undo(added.assigned)
            return
        assigned, earlier = added.assigned, added.earlier
        del self.holdings[assigned.attachment]
        for place in assigned.places:
            if earlier is None or place not in earlier.places:
                self.blocks[place.block].unassign(place.ordinal)
                self._withdraw_reserved(self.blocks[place.block])
        if earlier is not None:
            self.holdings[earlier.attachment] = earlier
            for place in earlier.places:
                self.blocks[place.block].restate(place.ordinal, earlier)

    def refuse_ended(self, request: AddRequest | RangeRequest) -> None:
        """Raise RefusedError if no ADD of the attachment can be served: it was deleted, or the node is drained."""
        if self.tombstones.get(request.attachment, -1) >= request.started:
            raise late(request)
        if self._closed:
            raise RefusedError(Code.TRY_AGAIN_LATER, f"cannot assign an address to {request.subject}: {self._closed}")

    def refuse_late(self, request: AddRequest) -> None:
        """Raise RefusedError if the ADD cannot be served whatever the pools have: deleted, drained, locked."""
        self.refuse_ended(request)
        if self.settings.locked:
            raise RefusedError(
                Code.TRY_AGAIN_LATER,
                f"cannot assign an address to {request.subject}: the datastore is locked (ClusterInformation "
                "datastoreReady is false: an upgrade or a migration is under way); try again when it is unlocked",
            )

    def _adopt(self, handle: str, family: int) -> Place | None:
        for block in self._unclaimed_blocks() if self.unclaimed_in else ():
            if block.net.family == family:
                ordinals = block.adopted.get(handle) or block.tunnels.get(handle)
                if ordinals:
                    return block.place(ordinals[0])
        return None

    def choose(self, request: AddRequest, family: int, now: int) -> Place | Shortage:
        """The place that an ADD which names no address gets next, or what it waits for; changes nothing.

        Raises RefusedError.
        """
        if not self.synced and not self.settings.pools:
            return Shortage("")
        pools = self.settings.selection_for(request.use).choose(request, family)
        for pool in pools:
            for block in filter(_reserve_of, self._by_pool.get(pool.name, ())):
                ordinal = block.head()
                if ordinal is not None:
                    return block.place(ordinal)
            reserve = self.reserves.get(pool.name)
            if reserve is None or (reserve.closed is None and reserve.refusal is None) or self._has_free(pool.name):
                return Shortage(pool.name, named=bool(request.named.get(family)))
        # Only when there is no block to claim in any pool, addresses of other nodes' blocks come in.
        hopeful, refusals = [], []
        for pool in pools:
            refusal = self.reserves[pool.name].refusal
            if refusal is None or (now - refusal.at >= RETRY_AFTER and refusal.at < request.started):
                hopeful.append(pool.name)  # what was refused a while ago is looked at again, once for an ADD
            else:
                refusals.append((pool, refusal))
        if hopeful:
            return Shortage(hopeful[0], also=tuple(hopeful[1:]), named=bool(request.named.get(family)))
        reasons = "; ".join(f"pool {pool.name} ({pool.cidr}): {refusal.why}" for pool, refusal in refusals)
        raise RefusedError(
            refusals[-1][1].code, f"cannot assign an IPv{family} address to {request.subject}: {reasons}"
        )

    def _has_free(self, pool: str) -> bool:
        """Whether this node's blocks of a pool have addresses that it did not reserve yet."""
        return any(
            block.owned and (block.unreserved_bits | block.cooled) & ~self.settings.barred_in(block.net)
            for block in self._by_pool.get(pool, ())
        )

    def _note_drain(self, places: list[Place], now: int) -> None:
        for place in places:
            pool = self._pools.get(place.block)
            if pool is not None and self.reserve(pool, now).drained(self.available(pool), now):
                self.haste = True

    def settle(self) -> bool:
        """Take back what was given up and needs no transaction (``Block.settle``); whether there was any."""
        cooldown = self.settings.config.cooldown > 0
        releasing = list(filter(_releasing_of, self.blocks.values()))
        settled = [block for block in releasing if block.settle(cooldown=cooldown)]
        for block in settled:
            self._withdraw_reserved(block)
        for block in releasing:
            if block.record is None:
                self._drop_irrelevant(block)
        return bool(settled)

    def end_doubt_of_absent(self) -> None:
        """Nothing that was given up can arrive any more: a block that is not there is not written by it again."""
        for block in self.blocks.values():
            if block.record is None:
                block.doubtful = False

    def doubt(self, record_keys: Iterable[str]) -> list[Block]:
        """A transaction was just made that changes these records: its blocks are in doubt (``Block.doubt``).

        Returns those that were not before: they are ``doubtful`` no more as soon as its outcome is known.
        """
        cidrs = {str(keys.cidr_of(key)) for key in record_keys if keys.kind_of(key) is keys.Kind.BLOCK}
        blocks = [self.blocks[cidr] for cidr in cidrs & self.blocks.keys()]
        doubted = [block for block in blocks if not block.doubtful]
        for block in blocks:
            block.doubt()
        return doubted

    # --- facts ------------------------------------------------------------------------------------------------

    def replay(self, facts: Iterable[Fact]) -> None:
        """Apply the facts of an earlier life, whose last transaction may still be on its way to the store."""
        for fact in facts:
            self.apply(fact)
        for block in self.blocks.values():
            block.doubt()

    def apply(self, fact: Fact) -> None:
        """Make a fact part of the state: one just decided, one from the store, or one replayed."""
        match fact:
            case Committed():
                self._apply_committed(fact)
            case Assigned():
                self._apply_assigned(fact)
            case Released():
                self._apply_released(fact)
            case Withdrawn():
                self._block(fact.block).withdraw(fact.ordinals)
            case Rebooted():
                self._apply_rebooted()
            case SetBack():
                self.forget_revisions()
            case Draining():
                self.draining = self.drain_ordered = fact.on
            case RangeAssigned() | RangeReleased() | RangeCursors():
                self.ranges.apply(fact)

    def _apply_assigned(self, fact: Assigned) -> None:
        earlier: dict[Attachment, Assigned] = {}
        held = self.holdings.get(fact.attachment)
        if held is not None:
            earlier[held.attachment] = held
        for place in fact.places:
            held = self._block(place.block).desired.get(place.ordinal)
            if held is not None:
                earlier[held.attachment] = held
        for held in earlier.values():
            if held.attachment == fact.attachment and set(held.places) <= set(fact.places):
                continue  # it got an address of the other IP version beside what it has
            # Only in a replay: somebody's address is given to nobody else, so its DEL never reached the state file.
            self._apply_released(Released(held.attachment, held.handle, held.places, 0))
        self.holdings[fact.attachment] = fact
        for place in fact.places:
            block = self._block(place.block)
            block.assign(place.ordinal, fact)
            if block.contested:
                self.unclaimed_in[place.block] = None

    def _apply_released(self, fact: Released) -> None:
        held = self.holdings.get(fact.attachment)
        if held is not None and held.handle == fact.handle and set(held.places) <= set(fact.places):
            del self.holdings[fact.attachment]
        for place in fact.places:
            self._block(place.block).release(place.ordinal, fact.handle)
        if fact.started:
            earlier = self.tombstones.pop(fact.attachment, 0)  # and the last in the order from now on
            self.tombstones[fact.attachment] = max(fact.started, earlier)

    def _apply_rebooted(self) -> None:
        self.tombstones.clear()
        self.ranges.forget_boot()
        for attachment, held in self.holdings.items():
            self.holdings[attachment] = earlier = replace(held, began=0)
            for place in held.places:
                self._block(place.block).restate(place.ordinal, earlier)

    def knows(self, key: str, revision: int) -> bool:
        """Whether a record as of a revision or a later one is part of the state: to apply it changes nothing."""
        return revision <= self._revisions.get(key, -1)

    def _apply_committed(self, fact: Committed) -> None:
        if self.knows(fact.key, fact.revision):
            return
        self._revisions[fact.key] = fact.revision
        if self.damaged.pop(fact.key, None):
            self._sort_blocks()
        kind, before = keys.kind_of(fact.key), self.settings.records.get(fact.key)
        if kind in _LIMITING and fact.value != before:
            for reserve in self.reserves.values():
                reserve.reopen()  # what was refused by the old rules is to be looked at again
        try:
            if kind is keys.Kind.BLOCK:
                self._apply_block(fact)
            elif self.settings.apply(fact.key, fact.value):
                self._sort_blocks()
            elif kind is keys.Kind.RESERVATION:
                for block in self.blocks.values():
                    self._withdraw_reserved(block)
        except RecordError as error:
            self.damaged[fact.key] = str(error)
            self._sort_blocks()

    def _apply_block(self, fact: Committed) -> None:
        cidr = str(keys.cidr_of(fact.key))
        record = None if fact.value is None else BlockRecord(fact.value)
        if record is not None and str(record.cidr) != cidr:
            raise RecordError(f"the block at the key of {cidr} says that it is {record.cidr}")
        if record is not None and not record.deleted:
            block = self._block(cidr)
            owned = block.owned
            block.merge(record, fact.value or b"", fact.revision)
            if block.undone:
                self.haste = True  # anybody may take what a living pod has
            if block.owned != owned:
                self._sort_blocks()
            self._withdraw_reserved(block)
            self._give_way(block)
        elif cidr in self.blocks:
            block = self.blocks[cidr]
            block.merge(None, fact.value or b"", fact.revision)
            for each in self.settings.pools.values():
                if each.name in self.reserves and each.cidr.overlaps(block.net):
                    self.reserves[each.name].reopen()  # there is room where the block was
        else:
            return
        if block.unclaimed:
            self.unclaimed_in[cidr] = None
        else:
            self.unclaimed_in.pop(cidr, None)
        if (
            not self._drop_irrelevant(block)
            and block.available
            and (pool := self.pool_of(block))
            and pool.name in self.reserves
        ):
            self.reserves[pool.name].refusal = None
            self.reserves[pool.name].supplied += 1

    def _give_way(self, block: Block) -> None:
        """What the store gives to another is no longer held by a pod of an earlier boot: no pod outlives its host.

        A collector frees what dead pods held, and is right, before the node hears of their end.
        """
        for held in [block.desired[o] for o in block.contested if not block.desired[o].began]:
            if held.attachment in self.holdings:  # not yet given way, with another of its addresses
                self._apply_released(Released(held.attachment, held.handle, held.places, 0))

    def _drop_irrelevant(self, block: Block) -> bool:
        if block.relevant:
            return False
        del self.blocks[block.cidr]
        self.unclaimed_in.pop(block.cidr, None)
        self._sort_blocks()
        if block.value:  # who looks at it again must be told what is known already, but nothing older
            self._revisions[keys.block_key(block.net)] = block.revision - 1
        return True

    def _withdraw_reserved(self, block: Block) -> None:
        """Take what an IPReservation keeps from everybody out of the reserve, in the step in which it is known."""
        barred = self.settings.barred_in(block.net) & block.reserve_bits
        if barred:
            block.withdraw(ordinals_of(barred))

    def _block(self, cidr: str) -> Block:
        block = self.blocks.get(cidr)
        if block is None:
            block = self.blocks[cidr] = Block(cidr, self.node, self.reserve_handle)
            for place in self.wanted:
                if place.block == cidr:
                    block.want(place.ordinal)
            self._sort_blocks()
        return block

    def _sort_blocks(self) -> None:
        self._by_pool = {name: [] for name in self.settings.pools}
        self._pools = {}
        for block in self.blocks.values():
            pool = self.pool_of(block)
            if pool is not None and keys.block_key(block.net) not in self.damaged:
                self._by_pool[pool.name].append(block)
                self._pools[block.cidr] = pool.name
        for blocks in self._by_pool.values():
            blocks.sort(key=lambda block: not block.owned)

    def checkpoint(self, *, images: bool = True) -> Iterator[Fact]:
        """A sequence of facts that makes an empty ledger equal to this one.

        Without ``images`` it is half as long, and the ledger that it makes has all promises and nothing to hand out: it
        has to ask the store what the blocks are like.
        """
        for attachment, started in self.tombstones.items():
            yield Released(attachment, attachment.handle, (), started)
        present = {keys.block_key(block.net) for block in self.blocks.values() if block.value}
        for key, revision in self._revisions.items():
            if key not in self.settings.records and key not in present:
                yield Committed(key, revision, None)  # else an older word of the store could bring it back
        for key, value in self.settings.records.items():
            yield Committed(key, self._revisions[key], value)
        yield from self.holdings.values()  # before the images: one that gives this node nothing is kept for its pods
        for block in self.blocks.values():
            if block.value and (images or block.telling):
                key = keys.block_key(block.net)
                # Of a store that was set back the next word counts, however old.
                yield Committed(key, block.revision if self._revisions[key] >= 0 else 0, block.value)
            if block.withdrawn:
                yield Withdrawn(block.cidr, tuple(ordinals_of(block.withdrawn)))
        for block in self.blocks.values():
            for ordinal, handle in (block.releasing | block.overruled).items():
                yield Released(NOBODY, handle, (block.place(ordinal),), 0)
        yield from self.ranges.checkpoint()
        if self.drain_ordered:
            yield Draining(on=True)

    @property
    def revision(self) -> int:
        """The highest revision of the store that anything known here has."""
        return max(self._revisions.values(), default=0)

    def distrust(self, key: str) -> None:
        """Take the store's next word on one record whatever its revision."""
        self._revisions[key] = -1

    def forget_revisions(self) -> None:
        """Take the store's next word whatever its revision: its history was rolled back, or it is another store.

        It may give addresses to containers again whose DEL is remembered: they are looked up as strays. A handle is one
        container's, and no container id comes twice; not so a tunnel's. Who was added after its DEL is left alone.
        """
        self._revisions = dict.fromkeys(self._revisions, -1)
        self.histories += 1
        self.haste = True
        self.synced = False
        for attachment, started in self.tombstones.items():
            if attachment.network and attachment not in self.holdings:
                self.strays[attachment.handle] = Released(attachment, attachment.handle, (), started)

    def forget_tombstones(self, now: int) -> None:
        """Drop the marks of DELs too old to matter, too many, or of another boot; ``now`` is CLOCK_BOOTTIME (ns).

        Only what is dropped is looked at, and the first that is not: they are in the order in which the DELs came. A
        DEL that began long before it came may be remembered longer, for as long as those that came before it, and then
        takes a place of those that are too many.
        """
        surplus = len(self.tombstones) - MAX_TOMBSTONES
        over: list[Attachment] = []
        for attachment, started in self.tombstones.items():
            if len(over) >= surplus and now - TOMBSTONE_AGE < started <= now:
                break
            over.append(attachment)
        for attachment in over:
            del self.tombstones[attachment]

    # --- views ------------------------------------------------------------------------------------------------

    def pool_of(self, block: Block) -> Pool | None:
        """The pool that a block is cut from, if there is one."""
        return next((pool for pool in self.settings.pools.values() if pool.cuts(block.net)), None)

    def blocks_of(self, pool: str) -> list[Block]:
        """This node's blocks of a pool, then those of others in which it holds or reserves addresses."""
        return self._by_pool.get(pool, [])

    def available(self, pool: str) -> int:
        """How many addresses of a pool can be handed out from memory."""
        return sum(map(int.bit_count, map(_reserve_of, self._by_pool.get(pool, ()))))

    @property
    def drained(self) -> bool:
        """Whether the store holds nothing for this node but what pods hold, and knows all of them."""
        return not any(
            block.available or block.dirty or (block.owned and block.empty) for block in self.blocks.values()
        )

    def reserve(self, pool: str, now: int) -> Reserve:
        """The reserve of a pool."""
        reserve = self.reserves.get(pool)
        if reserve is None:
            reserve = self.reserves[pool] = Reserve(self.policy, now)
        return reserve

    def pools_in_use(self) -> list[Pool]:
        """The pools to keep a reserve in.

        Of each IP version the first that serves this node's pods whatever their namespace (the next too, while it
        cannot be filled), any other in which this node holds addresses, as long as it serves, and any for which an ADD
        waits, be it for a tunnel.
        """
        pools = {}
        if self.draining:
            return []
        for family in FAMILIES:
            for pool in self.settings.selection.serving(family):
                pools[pool.name] = pool
                if pool.name not in self.reserves or self.reserves[pool.name].closed is None:
                    break
        for pool in self.settings.pools.values():
            waiting = pool.name in self.reserves and self.reserves[pool.name].waiting
            held = any(block.desired for block in self.blocks_of(pool.name))
            if waiting or (held and self.serves(pool)):
                pools[pool.name] = pool
        return list(pools.values())

    def serves(self, pool: Pool) -> bool:
        """Whether an ADD here may get an address of the pool: by its selectors, or because ADDs here do name it."""
        if self.draining:
            return False
        if self.settings.selection.exclusion(pool) is None:
            return True
        named = pool.manual or (pool.name in self.reserves and self.reserves[pool.name].named)
        return named and not pool.disabled and "Workload" in pool.allowed_uses


def late(request: AddRequest | RangeRequest) -> RefusedError:
    """The refusal of an ADD that a DEL of the same attachment overtook."""
    return RefusedError(
        Code.DELETED,
        f"cannot assign an address to {request.subject}: container {request.attachment.container} was deleted "
        "after this ADD began; the runtime has given it up, nothing needs to be done",
    )
