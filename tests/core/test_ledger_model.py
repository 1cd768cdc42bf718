"""The promise, against a dumb model: no address in two live pods, no acknowledged address lost, nothing leaked.

A state machine of ADDs, DELs, flushes that stop at any stage, lost replies, strangers at the same records, operators'
hands, full disks and restarts. After every step the ledger is sound, equal to what its state file would make of a
fresh one, and every address that a live pod was told of is, in the store, the pod's or this node's reserve.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipamd.core import keys, supply
from ipamd.core.address import parse_cidr
from ipamd.core.block import Block
from ipamd.core.check import check
from ipamd.core.clock import Now
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Attachment, Committed, Fact, Place, Released, Withdrawn
from ipamd.core.ledger import Ledger
from ipamd.core.request import AddRequest, Shortage
from ipamd.core.reserve import ReservePolicy
from ipamd.store import batch
from ipamd.store.base import Change, Outcome
from ipamd.store.claim import claim
from ipamd.store.draft import Batch, Draft, Limits
from ipamd.store.known import Known, committed, observed
from tests.core.blocks import NODE, RESERVE
from tests.core.cluster import Cluster
from tests.core.snapshot import differences, replay, snapshot
from tests.nodes import pool_record
from tests.store.cases import written

POLICY = ReservePolicy(minimum=3, maximum=6)
POOLS = {4: ("four", "10.0.0.0/27", 29), 6: ("six", "fd00::/123", 125)}
SECOND = 1_000_000_000
CLUSTER_INFORMATION = b'{"spec":{"datastoreReady":%s}}'

containers = st.sampled_from(["a", "b", "c", "d", "e"])
interfaces = st.sampled_from(["eth0", "eth0", "eth0", "net1"])
families = st.sampled_from([(4,), (4,), (6,), (4, 6)])
ago = st.sampled_from([0, 0, 0, 1, 3, 10])
limits = st.sampled_from([Limits(), Limits(operations=4), Limits(size=1500)])


class Promise(RuleBasedStateMachine):
    """One node's ledger, its state file as a list of facts, and the cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.journal: list[Fact] = []
        self.ledger = Ledger(NODE, POLICY)
        self.ledger.synced = True
        self.known = Known()
        self.boot = 100
        self.live: dict[Attachment, tuple[Place, ...]] = {}
        self.began: dict[Attachment, int] = {}
        self.deleted: dict[Attachment, int] = {}
        self.foreign: dict[Place, str] = {}
        self.tainted: set[Place] = set()
        """Taken by an operator's hand from a living pod: whoever does this owns what follows."""
        self.forgotten: set[str] = set()
        """Handles of DELs that could not be written to the state file: a restart may bring them back, unused."""
        self.seen: dict[Place, str] = {}
        """The handles in the block images that the ledger has seen."""
        self.flight: Draft | Batch | None = None
        self.doubted: list[Block] = []
        self.outcome: Outcome | None = None
        self.doubt: set[str] = set()
        self.adrift: list[Draft | Batch] = []
        self.asked: list[tuple[Place, ...]] = []
        """What waiting ADDs asked for."""
        self.serial = 0
        self.cooldown = 0
        self.released: dict[Place, int] = {}
        """When a pod gave up an address, since the cooldown was last changed and nobody's hand touched the address."""

    def now(self) -> Now:
        """Both clocks, a nanosecond later each time."""
        self.boot += 1
        return Now(1_000_000 + self.boot, self.boot)

    def record(self, facts: list[Fact]) -> None:
        """Facts reach the state file and the ledger."""
        self.journal.extend(facts)
        for fact in facts:
            self.ledger.apply(fact)
            if isinstance(fact, Committed) and keys.is_block(fact.key):
                self.see(fact)

    def see(self, fact: Committed) -> None:
        """Remember the handles of an image that the ledger has taken in."""
        cidr = str(keys.cidr_of(fact.key))
        block = self.ledger.blocks.get(cidr)
        if block is not None and block.revision != fact.revision:
            return
        self.seen = {place: handle for place, handle in self.seen.items() if place.block != cidr}
        record = None if block is None else block.record
        if record is not None:
            for ordinal in range(record.cidr.size):
                owner = record.owner(ordinal)
                if owner is not None:
                    self.seen[Place(cidr, ordinal)] = owner.handle

    def put(self, key: str, value: bytes) -> None:
        """A setting changes, and the watch tells."""
        record = self.cluster.records.get(key)
        self.cluster.commit([Change(key, value, record.revision if record else 0)])
        self.record([Committed(key, self.cluster.revision, value)])

    @initialize()
    def pools_exist(self) -> None:
        """There is a pool of each IP version."""
        for name, cidr, size in POOLS.values():
            self.put(*pool_record(name, cidr, blockSize=size))

    # --- requests ---------------------------------------------------------------------------------------------

    def decide(
        self, container: str, interface: str, wanted: tuple[int, ...], started: int
    ) -> tuple[AddRequest, object]:
        """The ledger decides an ADD; a refusal or a shortage changes nothing."""
        who = Attachment("k8s-pod-network", container, interface)
        request = AddRequest(who, wanted, {"pod": container, "namespace": "ns"}, started)
        before = snapshot(self.ledger)
        try:
            decided = self.ledger.add(request, self.now())
        except RefusedError as error:
            decided = error
        if isinstance(decided, RefusedError):
            assert snapshot(self.ledger) == before
            assert decided.code in (Code.DELETED, Code.TRY_AGAIN_LATER, Code.NO_POOL)
            late = self.deleted.get(who, -1) >= started
            assert (decided.code is Code.DELETED) == late or who.handle in self.forgotten
            return request, None
        if isinstance(decided, Shortage):
            assert snapshot(self.ledger) == before
            assert self.ledger.available(decided.pool) == 0
            return request, None
        assert who in self.live or self.deleted.get(who, -1) < started or who.handle in self.forgotten
        return request, decided

    @rule(
        container=containers,
        interface=interfaces,
        wanted=families,
        ago=ago,
        durable=st.sampled_from([True] * 5 + [False]),
    )
    def add(self, container: str, interface: str, wanted: tuple[int, ...], ago: int, durable: bool) -> None:
        """An ADD, which may have begun a while ago, and whose facts may not reach the state file."""
        images = dict(self.seen)
        request, decided = self.decide(container, interface, wanted, self.boot - ago)
        if decided is None:
            return
        who, got = request.attachment, decided.assigned.places
        if who in self.live:
            assert (decided.facts, got) == ((), self.live[who])
            return
        if not decided.facts:  # no runtime does that: an ADD again, after a DEL that a restart forgot
            assert who.handle in self.forgotten
            self.tainted |= {place for place in got if self.cluster.allocations().get(place, ("",))[0] != who.handle}
        elif not durable:
            self.ledger.undo(decided)
            return
        else:
            assert [parse_cidr(place.block).family for place in got] == list(wanted)
            assert all(images[place] in (RESERVE, who.handle) for place in got)
            self.began[who] = request.started
        self.journal.extend(decided.facts)
        assert not {place for places in self.live.values() for place in places} & set(got)
        self.live[who] = got

    @precondition(lambda self: self.cluster.blocks())
    @rule(
        container=containers,
        interface=interfaces,
        data=st.data(),
        durable=st.sampled_from([True] * 5 + [False]),
        waits=st.booleans(),
    )
    def add_requested(self, container: str, interface: str, data: st.DataObject, durable: bool, waits: bool) -> None:
        """An ADD that asks for an address of some block, beside what the pod may have, and may wait for it."""
        cidr, block = data.draw(st.sampled_from(sorted(self.cluster.blocks().items(), key=lambda pair: pair[0])))
        place = Place(cidr, data.draw(st.integers(0, block.cidr.size - 1)))
        who = Attachment("k8s-pod-network", container, interface)
        addresses = {block.cidr.family: block.cidr.base + place.ordinal}
        request = AddRequest(who, (4,), {"pod": container, "namespace": "ns"}, self.boot, addresses=addresses)
        before, images = snapshot(self.ledger), dict(self.seen)
        try:
            decided = self.ledger.add(request, self.now())
        except RefusedError as error:
            decided = error
        if isinstance(decided, RefusedError):
            assert decided.code in (
                Code.DELETED,
                Code.TRY_AGAIN_LATER,
                Code.ADDRESS_TAKEN,
                Code.ADDRESS_NOT_ASSIGNABLE,
            )
            assert snapshot(self.ledger) == before
            return
        if isinstance(decided, Shortage):
            if waits and decided.wanted:
                self.ledger.want(decided.wanted)
                self.asked.append(decided.wanted)
            assert snapshot(self.ledger) == before
            return
        got, had = decided.assigned.places, self.live.get(who, ())
        assert place in got
        if not decided.facts:
            assert got == had or who.handle in self.forgotten
            if who not in self.live:  # as in ``add``
                self.tainted |= {p for p in got if self.cluster.allocations().get(p, ("",))[0] != who.handle}
        elif not durable:
            self.ledger.undo(decided)
            assert snapshot(self.ledger) == before
            return
        else:
            assert images[place] in (RESERVE, who.handle)
            self.began[who] = request.started
        self.journal.extend(decided.facts)
        others = {p for holder, places in self.live.items() if holder != who for p in places}
        assert not others & set(got)
        self.live[who] = got

    @precondition(lambda self: self.asked)
    @rule()
    def give_up(self) -> None:
        """The ADD that has waited the longest for an address waits no more."""
        self.ledger.unwant(self.asked.pop(0))

    @rule(container=containers, interface=interfaces, ago=ago, durable=st.sampled_from([True] * 5 + [False]))
    def delete(self, container: str, interface: str, ago: int, durable: bool) -> None:
        """A DEL, which succeeds also when the state file cannot be written, or when a later ADD had overtaken it."""
        who = Attachment("k8s-pod-network", container, interface)
        started = self.boot - ago
        overtaken = who in self.ledger.holdings and self.began[who] > started
        facts = self.ledger.delete(who, f"ns.{container}", started).facts
        if overtaken:
            assert facts == ()
            return
        held = self.live.pop(who, ())
        released = [place for fact in facts if isinstance(fact, Released) for place in fact.places]
        assert set(held) <= set(released)
        if self.cooldown and durable:
            self.released.update(dict.fromkeys(held, self.boot))
        assert who not in self.ledger.holdings
        self.deleted[who] = max(started, self.deleted.get(who, started))
        if durable:
            self.journal.extend(facts)
        else:
            self.forgotten.add(who.handle)

    # --- the writer, stage by stage ---------------------------------------------------------------------------

    def idle(self) -> bool:
        """The writer begins a transaction only after a full look, and when the outcome of the last one is known."""
        return self.ledger.synced and self.flight is None and not self.doubt

    @precondition(lambda self: self.idle())
    @rule(limits=limits)
    def gather(self, limits: Limits) -> None:
        """The writer makes its next transaction; what it takes back is withdrawn before it is sent."""
        self.ledger.settle()
        self.start(batch.gather(self.ledger, self.known, limits, self.now()))

    @rule()
    def settle(self) -> None:
        """An ADD finds the reserve empty, whatever the writer is about."""
        self.ledger.settle()

    @precondition(lambda self: self.idle() and not self.ledger.settings.locked)
    @rule()
    def retire(self) -> None:
        """A minute passes; an empty block goes back."""
        self.ledger.settle()
        supply.idle_block(self.ledger, self.now().boot)
        self.boot += supply.IDLE_BLOCK
        idle = supply.idle_block(self.ledger, self.boot)
        if idle is not None:
            self.start(batch.retire(self.ledger, self.known, idle))

    def start(self, draft: Draft | Batch | None) -> None:
        """A transaction is decided, and about to be written; what it takes back nobody holds."""
        if draft is None:
            return
        held = {place for places in self.live.values() for place in places}
        for fact in draft.before:
            assert isinstance(fact, Withdrawn)
            assert not held & {Place(fact.block, ordinal) for ordinal in fact.ordinals}
        self.record(list(draft.before))
        self.flight, self.outcome = draft, None
        self.doubted = self.ledger.doubt(draft.blocks)

    @precondition(lambda self: self.flight is not None and self.outcome is None)
    @rule()
    def arrive(self) -> None:
        """The transaction, written whatever happened since it was decided, reaches the store."""
        changes = written(self.flight).changes
        assert len({change.key for change in changes}) == len(changes)
        self.outcome = self.cluster.commit(changes)

    @precondition(lambda self: self.outcome is not None)
    @rule()
    def reply(self) -> None:
        """The writer hears what became of it."""
        flight, outcome = self.flight, self.outcome
        self.flight = self.outcome = None
        for block in self.doubted:
            block.doubtful = False
        if outcome.chosen is None:
            self.known.learn((change.key for change in flight.changes), outcome.records)
            self.record(list(observed(flight.changes, outcome)))
        else:
            self.known.wrote(flight.changes, outcome.revision)
            self.record(list(committed(flight.changes, outcome.revision)))

    @precondition(lambda self: self.flight is not None)
    @rule()
    def lose(self) -> None:
        """The transaction or its reply is lost: the outcome is not known, and if it did not arrive it still may."""
        if self.outcome is None:
            written(self.flight)
        self.doubt = {change.key for change in self.flight.changes}
        if self.outcome is None:
            self.adrift.append(self.flight)
        self.flight = self.outcome = None

    @precondition(lambda self: self.adrift)
    @rule()
    def drift_in(self) -> None:
        """A transaction that was given up arrives after all, if the records are still as it expects."""
        self.cluster.commit(self.adrift.pop(0).changes)

    @precondition(lambda self: self.doubt)
    @rule()
    def look_again(self) -> None:
        """The writer reads what became of its records."""
        self.known.learn(self.doubt, self.cluster.records)
        for key in self.doubt:
            self.watch(key)
        self.doubt = set()

    @precondition(lambda self: self.idle() and not self.ledger.settings.locked)
    @rule(family=st.sampled_from([4, 6]), index=st.integers(0, 3))
    def claim(self, family: int, index: int) -> None:
        """The writer claims a block, if it is free."""
        pool = self.ledger.settings.pools[POOLS[family][0]]
        if pool.disabled or not supply.wants_block(self.ledger, pool, self.boot):
            return
        changes = claim(self.ledger, self.known, pool, pool.block(index), self.now())
        self.start(Batch(tuple(changes)))
        self.arrive()
        self.reply()

    # --- the watch --------------------------------------------------------------------------------------------

    def watch(self, key: str) -> None:
        """The watch brings the current state of one block."""
        if not keys.is_block(key):
            return
        record = self.cluster.records.get(key)
        fact = Committed(key, record.revision, record.value) if record else Committed(key, self.cluster.revision, None)
        self.record([fact])

    @rule()
    def catch_up(self) -> None:
        """The watch, or after a restart the first look, brings all that strangers did to this node's blocks."""
        for cidr in list(self.ledger.blocks):
            self.watch(keys.block_key(parse_cidr(cidr)))
        for cidr, block in self.cluster.blocks().items():
            if block.affinity == f"host:{NODE}":
                self.watch(keys.block_key(parse_cidr(cidr)))
        self.ledger.synced = True

    # --- strangers --------------------------------------------------------------------------------------------

    def free_places(self) -> list[Place]:
        """All free ordinals of all blocks."""
        return [Place(cidr, ordinal) for cidr, block in self.cluster.blocks().items() for ordinal in block.unallocated]

    @precondition(lambda self: self.free_places())
    @rule(data=st.data())
    def borrow(self, data: st.DataObject) -> None:
        """Another node's pod takes a free address of our blocks."""
        place = data.draw(st.sampled_from(self.free_places()))
        self.serial += 1
        self.foreign[place] = f"k8s-pod-network.far{self.serial}"
        self.cluster.take(place, self.foreign[place], {"node": "n2", "pod": "far", "namespace": "x"})

    @precondition(lambda self: self.foreign)
    @rule(data=st.data())
    def give_borrowed_back(self, data: st.DataObject) -> None:
        """Another node's pod goes."""
        place = data.draw(st.sampled_from(sorted(self.foreign, key=str)))
        del self.foreign[place]
        self.cluster.free(place)

    @precondition(lambda self: self.free_places())
    @rule(data=st.data(), container=containers)
    def calicos_plugin_adds(self, data: st.DataObject, container: str) -> None:
        """Calico's plugin on this node gives a container an address under the handle that we would use."""
        if any(who.container == container for who in self.live):
            return
        place = data.draw(st.sampled_from(self.free_places()))
        secondary = {"node": NODE, "pod": container, "namespace": "ns", "timestamp": "then"}
        self.cluster.take(place, f"k8s-pod-network.{container}", secondary)
        self.forgotten.add(f"k8s-pod-network.{container}")

    @precondition(lambda self: self.free_places())
    @rule(data=st.data())
    def take_tunnel_address(self, data: st.DataObject) -> None:
        """The node agent takes its tunnel address out of our block."""
        place = data.draw(st.sampled_from(self.free_places()))
        self.foreign[place] = f"vxlan-tunnel-addr-{NODE}"
        self.cluster.take(place, self.foreign[place], {"node": NODE, "type": "vxlanTunnelAddress"})

    @precondition(lambda self: any(h == RESERVE for h, _node, _kind in self.cluster.allocations().values()))
    @rule(data=st.data())
    def operator_frees_reserve(self, data: st.DataObject) -> None:
        """An operator frees reserved addresses, under a lock: before anybody else writes, the watch has told us."""
        places = [place for place, (handle, _n, _k) in self.cluster.allocations().items() if handle == RESERVE]
        place = data.draw(st.sampled_from(places))
        self.cluster.free(place)
        self.released.pop(place, None)
        self.tainted |= {place} & {held for places in self.live.values() for held in places}
        self.watch(keys.block_key(parse_cidr(place.block)))

    @precondition(lambda self: any(place not in self.tainted for places in self.live.values() for place in places))
    @rule(data=st.data())
    def operator_frees_a_pods_address(self, data: st.DataObject) -> None:
        """An operator frees the address of a living pod; nobody has told us yet."""
        there = self.cluster.allocations().keys() - self.foreign.keys()
        places = [place for places in self.live.values() for place in places if place in there]
        if places:
            place = data.draw(st.sampled_from(places))
            self.tainted.add(place)
            self.cluster.free(place)

    @precondition(lambda self: self.cluster.blocks())
    @rule(data=st.data())
    def another_node_reclaims_an_empty_block(self, data: st.DataObject) -> None:
        """A block in which the store shows no allocation is deleted, and perhaps claimed, by another node."""
        cidr = data.draw(st.sampled_from(sorted(self.cluster.blocks())))
        if not any(place.block == cidr for place in self.cluster.allocations()):
            self.cluster.drop(cidr, NODE)
            if data.draw(st.booleans()):
                self.cluster.make(cidr, "host:n2", self.boot)

    @precondition(lambda self: self.cluster.blocks())
    @rule(data=st.data())
    def operator_deletes_a_block(self, data: st.DataObject) -> None:
        """A block is deleted beneath the living pods; the watch tells us before anybody takes its addresses."""
        cidr = data.draw(st.sampled_from(sorted(self.cluster.blocks())))
        self.tainted |= {place for places in self.live.values() for place in places if place.block == cidr}
        self.foreign = {place: handle for place, handle in self.foreign.items() if place.block != cidr}
        self.released = {place: at for place, at in self.released.items() if place.block != cidr}
        self.cluster.drop(cidr, NODE)
        self.watch(keys.block_key(parse_cidr(cidr)))

    # --- the cluster's settings -------------------------------------------------------------------------------

    @rule(ready=st.sampled_from([b"true", b"true", b"false"]))
    def lock_or_unlock(self, ready: bytes) -> None:
        """The datastore is locked or unlocked."""
        self.put(keys.CLUSTER_INFORMATION, CLUSTER_INFORMATION % ready)

    @rule(family=st.sampled_from([4, 6]), disabled=st.sampled_from([False, False, True]))
    def disable_or_enable(self, family: int, disabled: bool) -> None:
        """A pool is disabled or enabled."""
        name, cidr, size = POOLS[family]
        self.put(*pool_record(name, cidr, blockSize=size, disabled=disabled))

    @rule(cooldown=st.sampled_from([0, 60]))
    def change_cooldown(self, cooldown: int) -> None:
        """Addresses are to cool, or not any more."""
        self.put(keys.CONFIG, b'{"auto_allocate_blocks":true,"ipCooldownSeconds":%d}' % cooldown)
        if cooldown != self.cooldown:
            self.cooldown, self.released = cooldown, {}

    @rule(seconds=st.sampled_from([1, 59, 62]))
    def time_passes(self, seconds: int) -> None:
        """So that addresses cool."""
        self.boot += seconds * SECOND

    @precondition(lambda self: self.cooldown and self.live)
    @rule(data=st.data())
    def operator_releases_a_pods_address(self, data: st.DataObject) -> None:
        """An operator releases the address of a living pod, and it cools; nobody has told us yet."""
        there = {p for p, (handle, _n, _k) in self.cluster.allocations().items() if handle} - self.foreign.keys()
        places = [place for places in self.live.values() for place in places if place in there]
        if places:
            place = data.draw(st.sampled_from(places))
            self.tainted.add(place)
            self.cluster.cool(place, self.boot)

    # --- crashes ----------------------------------------------------------------------------------------------

    @rule(checkpoint=st.booleans())
    def restart(self, checkpoint: bool) -> None:
        """The daemon is killed and started again from its state file; what was under way is in the store or not."""
        if checkpoint:
            self.checkpoint()
        self.ledger = replay(NODE, POLICY, self.journal)
        self.asked = []
        self.known = Known()
        if self.flight is not None and self.outcome is None:
            self.arrive()  # what a dead process has sent is in the store, or nowhere, by the time of the first look
        self.flight = self.outcome = None
        self.doubt = set()
        self.adrift = []
        self.seen = {}
        for cidr, block in self.ledger.blocks.items():
            self.see(Committed(keys.block_key(parse_cidr(cidr)), block.revision, block.value))

    @rule()
    def bare_checkpoint(self) -> None:
        """What is written where there is no room for images says the same, with the images that a start looks for.

        Those are of the blocks that it tells of, of the node's own, and of those in which its reserve has addresses.
        """
        bare = list(self.ledger.checkpoint(images=False))
        told = replay(NODE, POLICY, bare).blocks
        images = [
            Committed(keys.block_key(block.net), block.revision, block.value)
            for cidr, block in self.ledger.blocks.items()
            if block.value and (cidr in told or block.owned or block.available or block.kept_bits or block.withdrawn)
        ]
        assert differences(snapshot(replay(NODE, POLICY, [*bare, *images])), snapshot(self.ledger)) == []

    @rule()
    def checkpoint(self) -> None:
        """The state file is rewritten."""
        before = snapshot(self.ledger)
        self.journal = list(self.ledger.checkpoint())
        assert differences(snapshot(replay(NODE, POLICY, self.journal)), before) == []
        self.forgotten |= {who.handle for who in self.ledger.holdings if who not in self.live}

    # --- the promise ------------------------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_sound(self) -> None:
        """No invariant is broken, but where an operator gave a living pod's address away."""
        findings = [finding for finding in check(self.ledger) if "says the store" not in finding]
        assert findings == []
        for block in self.ledger.blocks.values():
            assert {block.place(o) for o in block.contested} <= self.tainted | self.unused()

    def unused(self) -> set[Place]:
        """What the ledger holds for attachments that are gone: DELs that a restart forgot."""
        return {p for who, held in self.ledger.holdings.items() if who not in self.live for p in held.places}

    @invariant()
    def every_live_pod_is_known(self) -> None:
        """No acknowledged address is lost, and nobody else is thought to be alive."""
        for who, places in self.live.items():
            assert self.ledger.holdings[who].places == places
        for who in self.ledger.holdings.keys() - self.live.keys():
            assert who.handle in self.forgotten

    @invariant()
    def no_address_is_in_two_live_pods(self) -> None:
        """One ordinal, one pod: here and on other nodes."""
        places = [place for held in self.live.values() for place in held]
        assert len(places) == len(set(places))
        assert set(places) & set(self.foreign) <= self.tainted

    @invariant()
    def what_cools_is_not_in_reserve(self) -> None:
        """An address that a pod gave up cannot be handed out before its time."""
        recent = {place: at for place, at in self.released.items() if self.boot - at < self.cooldown * SECOND}
        for place in recent:
            block = self.ledger.blocks.get(place.block)
            assert block is None or not block.reserve_bits >> place.ordinal & 1, place
        self.released = recent

    @invariant()
    def what_live_pods_hold_nobody_else_can_take(self) -> None:
        """In the store itself, at any instant, a living pod's ordinal is its own or in our reserve."""
        allocations = self.cluster.allocations()
        for who, places in self.live.items():
            for place in places:
                holder = allocations.get(place, ("", "", ""))[0]
                assert place in self.tainted or holder in (RESERVE, who.handle), (who, place, holder)
        # Until nobody's pod has it any more, and the ledger has seen what was done: else the next pod here may get it.
        unseen = {p for p in self.tainted if self.seen.get(p, "") != allocations.get(p, ("", "", ""))[0]}
        self.tainted &= unseen | {place for places in self.live.values() for place in places}

    @invariant()
    def the_state_file_makes_an_equal_ledger(self) -> None:
        """A restart at this very moment would change nothing."""
        if not self.forgotten:
            assert differences(snapshot(replay(NODE, POLICY, self.journal)), snapshot(self.ledger)) == []

    def teardown(self) -> None:
        """Left alone, the store becomes what this node wants, and nothing else."""
        if not self.ledger.settings.pools:
            return
        self.put(keys.CLUSTER_INFORMATION, CLUSTER_INFORMATION % b"true")
        self.flight = self.outcome = None
        while self.asked:
            self.give_up()
        while self.adrift:
            self.drift_in()
        self.look_again()
        self.known = Known()
        self.catch_up()
        for _round in range(40):
            self.gather(Limits())
            if self.flight is None:
                break
            self.arrive()
            self.reply()
        assert self.flight is None, "the writer never comes to rest"
        assert not any(block.dirty for block in self.ledger.blocks.values())
        allocations = self.cluster.allocations()
        for who, places in self.live.items():
            for place in places:
                assert allocations[place][0] == who.handle or place in self.tainted
        handles = {who.handle for who in self.live} | self.forgotten
        for place, (handle, node, kind) in allocations.items():
            if node == NODE and not kind:
                assert handle in handles, f"{place} leaked under {handle}"
        says, counted = self.cluster.handles(), self.cluster.counted()
        says.pop(RESERVE, None)
        counted.pop(RESERVE, None)
        assert says == counted


Promise.TestCase.settings = settings(
    max_examples=600,
    stateful_step_count=50,
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_the_promise = pytest.mark.filterwarnings("default")(Promise.TestCase)
