"""Reading the store: the first look, the watch, leftovers of other programs' claims, and settings that change."""

import json
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Committed, Place
from ipamd.core.records import BlockRecord, affinity_record, attribute, new_block
from ipamd.store.base import Snapshot
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import at_rest, view

FOUR = "10.0.0.0/26"


@pytest.fixture
def store() -> MemoryStore:
    """A store that takes a millisecond a call, with one IPv4 pool of four blocks."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.0.0.0/24"))
    return made


def affinity_key(cidr: str, node: str = "n1") -> str:
    """The key of a node's affinity."""
    return keys.affinity_key(node, parse_cidr(cidr))


def block_key(cidr: str) -> str:
    """The key of a block."""
    return keys.block_key(parse_cidr(cidr))


def block(cidr: str, owner: str | None, *handles: str) -> bytes:
    """A block's record, its first ordinals held by these handles."""
    record = new_block(parse_cidr(cidr), owner or "", 1)
    record.affinity = owner
    for ordinal, handle in enumerate(handles):
        record.take({ordinal}, attribute(handle, {"node": "n1"}))
    return record.encode()


async def test_the_reserves_of_nodes_with_a_longer_name_are_not_read(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of node ``n1`` the reserve of each state file is read, not that of ``n10``."""
    ours = {
        keys.handle_key(handle) for handle in ("ipamd-reserve-n1", "ipamd-reserve-n1.aaaa", "ipamd-reserve-n1.bbbb")
    }
    theirs = {keys.handle_key(handle) for handle in ("ipamd-reserve-n10", "ipamd-reserve-n10.cccc")}
    for key in ours | theirs:
        store.put(key, b'{"block":{},"deleted":false}')
    read, found = store.read, set()

    async def see(*arguments: Sequence[str]) -> Snapshot:
        snapshot = await read(*arguments)
        found.update(record.key for record in snapshot.records)
        return snapshot

    monkeypatch.setattr(store, "read", see)
    node = Node("n1", store, instance="aaaa")
    await node.sync.look()
    assert ours <= found
    assert not theirs & found


@pytest.mark.parametrize("late", [False, True])
async def test_what_an_earlier_life_reserved_in_anothers_block_is_found(
    autojump_clock: MockClock, store: MemoryStore, late: bool
) -> None:
    """Borrowed in a transaction whose outcome that life did not live to write down, before this start or after it."""

    def borrow() -> None:
        store.put(block_key(FOUR), block(FOUR, "host:n2", "ipamd-reserve-n1"))
        counts = {FOUR: 1}
        if handle := store.records.get(keys.handle_key("ipamd-reserve-n1")):
            counts |= json.loads(handle.value)["block"]
        store.put(keys.handle_key("ipamd-reserve-n1"), json.dumps({"block": counts, "deleted": False}).encode())

    store.put(affinity_key(FOUR, "n2"), affinity_record("confirmed"))
    if not late:
        borrow()
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        if late:
            assert FOUR not in node.ledger.blocks
            borrow()
            await trio.sleep(1)
        assert node.ledger.blocks[FOUR].available == 1
        at_rest(store, [node])


# --- marks of deletion -----------------------------------------------------------------------------------------------


async def test_a_block_marked_as_deleted_beneath_its_pods_comes_back(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Its own pods, a borrower's and whoever took a pod's address keep theirs; soon there are no more conflicts."""
    node = Node("n1", store)
    async with node.running():
        first, second = await node.add(add_request("a")), await node.add(add_request("b"))
        await node.flushed()
        block = node.ledger.blocks[first.places[0].block]
        record = BlockRecord(block.value)
        free = record.unallocated[0]
        record.take({free}, attribute("k8s-pod-network.other", {"node": "n2"}))
        record.give(second.places[0].ordinal, attribute("k8s-pod-network.thief", {"node": "n2"}))
        key = keys.block_key(block.net)
        store.put(key, record.encode().replace(b'"deleted":false', b'"deleted":true'))
        await trio.sleep(2)
        after = BlockRecord(store.records[key].value)
        assert not after.deleted
        owners = {ordinal: owner.handle for ordinal in range(64) if (owner := after.owner(ordinal)) is not None}
        assert owners[first.places[0].ordinal] == "k8s-pod-network.a"
        assert owners[free] == "k8s-pod-network.other"
        assert block.contested == {second.places[0].ordinal: "k8s-pod-network.thief"}
        conflicts = node.writer.progress.conflicts
        await node.add(add_request("c"))
        await node.flushed()
        await trio.sleep(60)
        assert node.writer.progress.conflicts == conflicts < 5


async def test_a_mark_of_deletion_that_a_state_file_remembers_is_overcome(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """The node died before it could write the block again: its next life does."""
    async with Node("n1", store).running() as node:
        (place,) = (await node.add(add_request("a"))).places
        await node.flushed()
        key = keys.block_key(node.ledger.blocks[place.block].net)
    store.put(key, store.records[key].value.replace(b'"deleted":false', b'"deleted":true'))
    marked = store.records[key]
    node.record([Committed(key, marked.revision, marked.value)])
    async with Node("n1", store, facts=list(node.ledger.checkpoint())).running() as again:
        await again.flushed()
        assert not BlockRecord(store.records[key].value).deleted
        assert view(store).allocations()[place][0] == "k8s-pod-network.a"
        assert again.writer.progress.conflicts < 5


# --- leftovers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "confirmed"])
async def test_an_affinity_without_a_block_gets_its_block(
    autojump_clock: MockClock, store: MemoryStore, state: str
) -> None:
    """Calico's claim that ended after its first write is finished: the block is made, the affinity confirmed."""
    store.put(affinity_key(FOUR), affinity_record(state))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert list(node.ledger.blocks) == [FOUR]
        assert store.records[affinity_key(FOUR)].value == affinity_record("confirmed")
        assert node.reports == ["finished a claim that was left half done"]
        at_rest(store, [node])


async def test_a_pending_affinity_of_the_own_block_is_confirmed(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A claim that ended before its third write is finished."""
    store.put(affinity_key(FOUR), affinity_record("pending"))
    store.put(block_key(FOUR), block(FOUR, "host:n1"))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert store.records[affinity_key(FOUR)].value == affinity_record("confirmed")
        at_rest(store, [node])


@pytest.mark.parametrize("owner", ["host:n2", None, "virtual:lb"])
async def test_an_affinity_of_anothers_block_is_dropped(
    autojump_clock: MockClock, store: MemoryStore, owner: str | None
) -> None:
    """A claim that another node won leaves a stale affinity: it goes, the block stays as it is."""
    store.put(affinity_key(FOUR), affinity_record("pending"))
    value = block(FOUR, owner)
    store.put(block_key(FOUR), value)
    async with Node("n1", store).running() as node:
        await trio.sleep(0.5)
        assert affinity_key(FOUR) not in store.records
        assert store.records[block_key(FOUR)].value == value
        assert FOUR not in node.ledger.blocks


async def test_another_history_is_read_at_once_whoever_was_told(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The watch that is followed may have nothing to say of it, as where two backups are put back one after the other."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        looks = node.sync.looks
        store.distrust()
        assert not node.ledger.synced
        await trio.sleep(1)
        assert node.ledger.synced
        assert node.sync.looks == looks + 1


async def test_another_history_in_the_middle_of_a_look_makes_it_begin_anew(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """What was read so far is the earlier history's: nothing is written by it."""
    async with Node("n1", store).running() as node:
        store.delay = 1.0
        store.distrust()
        await trio.sleep(1.5)
        looks = node.sync.looks
        store.distrust()
        await trio.sleep(1)
        assert not node.ledger.synced
        assert node.sync.looks == looks
        await trio.sleep(2)
        assert node.ledger.synced


async def test_an_affinity_outside_of_all_pools_is_dropped(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A claim of a block that no pool cuts any more is not finished."""
    store.put(affinity_key("10.9.0.0/26"), affinity_record("pending"))
    async with Node("n1", store).running():
        await trio.sleep(0.5)
        assert affinity_key("10.9.0.0/26") not in store.records
        assert block_key("10.9.0.0/26") not in store.records


async def test_an_affinity_that_is_being_deleted_is_left_alone(autojump_clock: MockClock, store: MemoryStore) -> None:
    """PendingDeletion is another program's work in progress."""
    store.put(affinity_key(FOUR), affinity_record("pendingDeletion"))
    async with Node("n1", store).running():
        await trio.sleep(0.5)
        assert store.records[affinity_key(FOUR)].value == affinity_record("pendingDeletion")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (affinity_key(FOUR), b"nonsense"),
        (keys.affinities_prefix("n1") + "ipv4/block/nonsense", b"{}"),
        (keys.affinities_prefix("n1") + "nonsense", b""),
        (keys.POOLS + "broken", b"nonsense"),
        (keys.RESERVATIONS + "broken", b"[]"),
        (keys.CONFIG, b"nonsense"),
        (keys.CLUSTER_INFORMATION, b"1"),
        (keys.HANDLES + "ipamd-reserve-n1", b"nonsense"),
        (keys.HANDLES + "k8s-pod-network.a", b"nonsense"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["before", "while-running"])
async def test_a_record_that_cannot_be_understood_stops_nothing(
    autojump_clock: MockClock, store: MemoryStore, key: str, value: bytes, late: bool
) -> None:
    """Nonsense under any key that concerns the node, found or appearing: it goes on serving and flushing the rest."""
    if not late:
        store.put(key, value)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        if late:
            store.put(key, value)
            await trio.sleep(1)
        for container in ("a", "b"):
            with trio.fail_after(5):
                await node.add(add_request(container))
        await trio.sleep(2)
        held = {handle for handle, _node, _kind in view(store).allocations().values()}
        assert "k8s-pod-network.b" in held


async def test_a_damaged_block_of_this_node_is_told_and_kept(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A block record that cannot be understood keeps its affinity, is listed as damaged, and nobody overwrites it."""
    store.put(affinity_key(FOUR), affinity_record("confirmed"))
    store.put(block_key(FOUR), b"nonsense")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert block_key(FOUR) in node.ledger.damaged
        assert store.records[affinity_key(FOUR)].value == affinity_record("confirmed")
        assert store.records[block_key(FOUR)].value == b"nonsense"
        await node.add(add_request("a"))


# --- the watch ------------------------------------------------------------------------------------------------


async def test_only_what_concerns_the_node_is_read_and_watched(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A hundred blocks, pods and nodes of others cause no event and are not read."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        events = node.sync.events
        for number in range(100):
            store.put(affinity_key("10.0.0.64/26", f"other-{number}"), affinity_record("confirmed"))
            store.put(keys.HANDLES + f"k8s-pod-network.far{number}", b'{"block":{"10.1.0.0/26":1},"deleted":false}')
            store.put(keys.NODES + f"other-{number}", b"{}")
            store.put(block_key(f"10.1.{number}.0/26"), block(f"10.1.{number}.0/26", "host:n2"))
        await trio.sleep(1)
        assert node.sync.events == events


async def test_a_block_that_calicos_plugin_claims_on_this_node_is_noticed(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Calico's three writes, one after another: the block becomes this node's, its pod is known, the rest is usable."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        theirs = next(f"10.0.0.{base}/26" for base in (0, 64, 128, 192) if f"10.0.0.{base}/26" != own)
        store.put(affinity_key(theirs), affinity_record("pending"))
        await trio.sleep(0.01)
        store.put(block_key(theirs), block(theirs, "host:n1", "k8s-pod-network.theirs"))
        await trio.sleep(0.01)
        store.put(affinity_key(theirs), affinity_record("confirmed"))
        store.put(keys.HANDLES + "k8s-pod-network.theirs", b'{"block":{"%s":1},"deleted":false}' % theirs.encode())
        await trio.sleep(1)
        assert node.ledger.blocks[theirs].adopted == {"k8s-pod-network.theirs": [0]}
        node.delete("theirs")
        await trio.sleep(1)
        assert Place(theirs, 0) not in {
            p for p, (h, _n, _k) in view(store).allocations().items() if h.endswith("theirs")
        }
        at_rest(store, [node])


async def test_what_a_node_wrote_itself_is_in_its_state_file_once(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """The watch tells a node of its own transactions as well; what it knows already is not written down again."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        for number in range(3):
            await node.add(add_request(f"c{number}"))
            await node.flushed()
        await trio.sleep(1)
        committed = [(fact.key, fact.revision) for fact in node.journal if isinstance(fact, Committed)]
        blocks = {event.key for event in store.history if keys.kind_of(event.key) is keys.Kind.BLOCK}
        assert {event.key: event.revision for event in store.history if event.key in blocks}.items() <= set(committed)
    assert len(committed) == len(set(committed))


async def test_a_watch_that_lost_its_place_reads_everything_again(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Compaction while the watch is away: one full look, and nothing that happened meanwhile is missed."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        looks = node.sync.looks
        store.away = True
        cluster = view(store)
        free = Place(own, cluster.blocks()[own].unallocated[0])
        record = cluster.block(own)
        assert record is not None
        record.take({free.ordinal}, attribute("k8s-pod-network.theirs", {"node": "n1"}))
        store.put(block_key(own), record.encode())
        store.put(*pool_record("q", "10.1.0.0/24"))
        store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":3}')
        store.compact()
        store.away = False
        await trio.sleep(2)
        assert node.sync.looks > looks
        assert "watch lost its place, reading everything again" in node.reports
        assert node.ledger.blocks[own].adopted == {"k8s-pod-network.theirs": [free.ordinal]}
        assert set(node.ledger.settings.pools) == {"p", "q"}
        assert node.ledger.settings.config.block_limit == 3


async def test_a_store_that_was_rolled_back_is_believed(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A restored backup has older revisions: the node says so, and its pods' addresses are written again."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        records, revision = dict(store.records), store.revision
        assigned = await node.add(add_request("a"))
        await node.flushed()
        store.records, store.revision = records, revision
        store.history = [event for event in store.history if event.revision <= revision]
        node.ledger.blocks[assigned.places[0].block].idle_since = None
        store.compact()
        restarted = Node("n1", store, facts=node.journal)
        node.ledger = restarted.ledger  # the old one is gone
    async with restarted.running():
        await trio.sleep(2)
        assert "the store was set back, to a backup perhaps; writing again what living pods hold" in restarted.reports
        at_rest(store, [restarted])
        assert restarted.ledger.holdings


# --- settings -------------------------------------------------------------------------------------------------


async def test_a_pool_made_later_is_used(autojump_clock: MockClock) -> None:
    """A node without a pool refuses with the reason; from the moment that there is one, it claims and serves."""
    store = MemoryStore(delay=0.001)
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError, match="there is no IPv4 pool") as refused:
            await node.add(add_request("a"))
        assert refused.value.code is Code.NO_POOL
        store.put(*pool_record("p", "10.0.0.0/24"))
        await trio.sleep(0.01)
        assert (await node.add(add_request("a"))).places
        await node.flushed()
        at_rest(store, [node])


async def test_a_disabled_pools_reserve_goes_back(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A pool that is disabled gets this node's reserve back, then the empty block; a pod keeps its address."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        await node.add(add_request("a"))
        await node.flushed()
        store.put(*pool_record("p", "10.0.0.0/24", disabled=True))
        await trio.sleep(1)
        assert {handle for handle, _n, _k in view(store).allocations().values()} == {"k8s-pod-network.a"}
        at_rest(store, [node])
        with pytest.raises(RefusedError, match="pool p is disabled"):
            await node.add(add_request("b"))
        node.delete("a")
        await trio.sleep(70)
        assert [key for key in store.records if keys.kind_of(key) is not keys.Kind.POOL] == []
        assert not node.ledger.blocks


async def test_a_pool_that_is_enabled_again_serves_again(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Disabled and enabled: the reserve comes back."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.put(*pool_record("p", "10.0.0.0/24", disabled=True))
        await trio.sleep(1)
        store.put(*pool_record("p", "10.0.0.0/24"))
        await trio.sleep(1)
        assert node.ledger.available("p") == 16
        at_rest(store, [node])


async def test_a_lock_stops_claims_and_its_end_starts_them(autojump_clock: MockClock, store: MemoryStore) -> None:
    """While the datastore is locked nothing is claimed or reserved; afterwards the node catches up by itself."""
    store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
    async with Node("n1", store).running() as node:
        await trio.sleep(30)
        assert store.calls["commit"] == 0
        with pytest.raises(RefusedError, match="the datastore is locked"):
            await node.add(add_request("a"))
        store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":true}}')
        await trio.sleep(1)
        assert node.ledger.available("p") == 16


async def test_a_reservation_made_later_is_respected(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Addresses that an IPReservation names leave the reserve and are given to no pod."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        first = node.ledger.blocks[own].address(0).rsplit(".", 1)
        cidr = f"{first[0]}.{first[1]}/28"
        store.put(keys.RESERVATIONS + "r", json.dumps({"spec": {"reservedCIDRs": [cidr]}}).encode())
        await trio.sleep(1)
        got = [(await node.add(add_request(f"c{number}"))).places[0].ordinal for number in range(20)]
        assert min(got) >= 16
        await node.flushed()
        at_rest(store, [node])
