"""What nobody clears away by himself goes, slowly: handles that no block knows, and the reserves of deleted nodes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.facts import Assigned
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord, attribute, new_block
from ipamd.core.reserve import ReservePolicy
from ipamd.store import leftovers
from ipamd.store.base import ChangeSet, Outcome
from ipamd.store.leftovers import Walk
from tests.calico.cluster import Calicoctl
from tests.memory_store import MemoryStore
from tests.nodes import EPOCH, Node, add_request, now, pool_record
from tests.store.truth import view

MINUTE = 60
GRACE = 15 * MINUTE
ROUND = 5 * MINUTE
"""Enough for the walk to come by twice, in a store with few handles."""
NODE_RECORD = b'{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"x"},"spec":{}}'


@pytest.fixture
def store() -> MemoryStore:
    """A store with one IPv4 pool of four blocks."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.0.0.0/24"))
    return made


class Walking:
    """A walk that does a step a minute; ``reports`` are the words it said."""

    def __init__(self, ledger: Ledger, store: MemoryStore) -> None:
        self.reports: list[tuple[str, dict[str, str]]] = []
        self.walk = Walk(
            ledger, store, GRACE * 1_000_000_000, now, lambda event, values: self.reports.append((event, values))
        )

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.walk.step()
            await trio.sleep(MINUTE)


@asynccontextmanager
async def walking(store: MemoryStore) -> AsyncIterator[tuple[Node, Walking]]:
    """Node ``n1`` with one block and one pod, registered, and a walk beside it."""
    store.put(keys.NODES + "n1", NODE_RECORD)
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        await node.add(add_request("lives"))
        await node.flushed()
        made = Walking(node.ledger, store)
        nursery.start_soon(made.run)
        yield node, made
        nursery.cancel_scope.cancel()


def leak(store: MemoryStore, handle: str, *cidrs: str) -> str:
    """Write a handle that says that it has an address of each of these blocks; returns its key."""
    blocks = ",".join(f'"{cidr}":1' for cidr in cidrs)
    store.put(keys.handle_key(handle), f'{{"block":{{{blocks}}},"deleted":false}}'.encode())
    return keys.handle_key(handle)


def other_block(store: MemoryStore, cidr: str, *known: str) -> None:
    """A block of another node, that knows these handles."""
    record = new_block(parse_cidr(cidr), "host:n2", EPOCH)
    for ordinal, handle in enumerate(known):
        record.take({ordinal}, attribute(handle, {"node": "n2"}))
    store.put(keys.block_key(parse_cidr(cidr)), record.encode())


def before_commits(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, of: str, do: Callable[[], None]
) -> list[ChangeSet]:
    """Let somebody do this right before each commit that writes the key; returns these commits as they come."""
    commit, seen = store.commit, []

    async def meddled(*alternatives: ChangeSet, **options: object) -> Outcome:
        if any(change.key == of for change in alternatives[0]):
            do()
            seen.append(alternatives[0])
        return await commit(*alternatives, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "commit", meddled)
    return seen


# --- handles that no block knows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cidrs",
    [["own"], ["10.0.9.0/26"], ["10.9.0.128/26"], ["own", "10.9.0.128/26"], []],
    ids=["the node's own block", "a block that is gone", "another node's block", "several blocks", "no block"],
)
async def test_a_handle_that_no_block_knows_goes(
    autojump_clock: MockClock, store: MemoryStore, cidrs: list[str]
) -> None:
    """Not before it has been so for the grace time; what pods and the reserve hold by stays as it is."""
    other_block(store, "10.9.0.128/26")
    async with walking(store) as (node, walk):
        (own,) = node.ledger.blocks
        before = set(store.records)
        key = leak(store, "k8s-pod-network.gone", *(own if cidr == "own" else cidr for cidr in cidrs))
        await trio.sleep(GRACE - MINUTE)
        assert key in store.records
        await trio.sleep(ROUND)
        assert set(store.records) == before
        assert walk.walk.handles == 1
        assert walk.reports == [("removed a handle that no block knows", {"handle": "k8s-pod-network.gone"})]


async def test_a_handle_that_one_of_its_blocks_knows_is_kept(autojump_clock: MockClock, store: MemoryStore) -> None:
    """It counts an address of this node's block that is gone, and one of another's that is there."""
    other_block(store, "10.9.0.128/26", "k8s-pod-network.half")
    async with walking(store) as (node, _walk):
        (own,) = node.ledger.blocks
        key = leak(store, "k8s-pod-network.half", own, "10.9.0.128/26")
        await trio.sleep(4 * GRACE)
        assert key in store.records


async def test_a_handle_that_cannot_be_understood_is_left_alone(autojump_clock: MockClock, store: MemoryStore) -> None:
    """It may be of a later release, and of use to somebody."""
    async with walking(store) as (_node, walk):
        values = (b"nonsense", b'{"block":[]}', b'{"block":{"nonsense":1},"deleted":false}', b"")
        made = {keys.handle_key(f"k8s-pod-network.odd{n}"): value for n, value in enumerate(values[:3])}
        for key, value in made.items():
            store.put(key, value)
        await trio.sleep(4 * GRACE)
        assert made.keys() <= store.records.keys()
        assert walk.walk.handles == 0


@pytest.mark.parametrize("how", ["nonsense", "marked as deleted"])
async def test_a_block_that_cannot_be_read_may_know_every_handle(
    autojump_clock: MockClock, store: MemoryStore, how: str
) -> None:
    """Nothing is removed that names it."""
    async with walking(store) as (node, _walk):
        (own,) = node.ledger.blocks
        key = leak(store, "k8s-pod-network.unclear", own, "10.9.0.128/26")
        other_block(store, "10.9.0.128/26")
        block = keys.block_key(parse_cidr("10.9.0.128/26"))
        marked = store.records[block].value.replace(b'"deleted":false', b'"deleted":true')
        store.put(block, b"nonsense" if how == "nonsense" else marked)
        await trio.sleep(4 * GRACE)
        assert key in store.records


async def test_a_handle_that_changes_is_somebodys(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Who allocates writes the handle first: with each change the time begins anew."""
    async with walking(store) as (node, _walk):
        (own,) = node.ledger.blocks
        for _ in range(20):
            key = leak(store, "k8s-pod-network.busy", own)
            await trio.sleep(GRACE - ROUND)
            assert key in store.records


async def test_a_handle_that_is_taken_in_the_last_moment_is_kept(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calico's plugin counts up the handle between the look and the removal: the removal is refused."""
    async with walking(store) as (node, walk):
        (own,) = node.ledger.blocks
        key = leak(store, "k8s-pod-network.late", own)
        refused = before_commits(store, monkeypatch, key, lambda: leak(store, "k8s-pod-network.late", own) and None)
        await trio.sleep(3 * GRACE)
        assert refused
        assert key in store.records
        assert walk.walk.handles == 0


async def test_many_handles_cost_a_few_calls_a_minute(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A thousand leaked ones go at no more than ten a minute, for at most three reads and ten transactions."""
    async with walking(store) as (node, walk):
        (own,) = node.ledger.blocks
        before = set(store.records)
        for number in range(1000):
            leak(store, f"k8s-pod-network.gone{number}", own)
        await trio.sleep(GRACE)
        removed = 0
        while set(store.records) != before:
            calls = dict(store.calls)
            await trio.sleep(MINUTE)
            assert store.calls["read"] + store.calls["list"] - calls["read"] - calls["list"] <= 5
            assert store.calls["commit"] - calls["commit"] <= leftovers.REMOVALS
            assert walk.walk.handles - removed <= leftovers.REMOVALS
            removed = walk.walk.handles
        assert removed == 1000
        assert BlockRecord(store.records[keys.block_key(parse_cidr(own))].value).count("k8s-pod-network.lives") == 1


# --- the reserves of deleted nodes ----------------------------------------------------------------------------

GONE = "ipamd-reserve-gone.example.aaaaaaaa"


async def past(store: MemoryStore, *, pods: int = 1) -> list[Assigned]:
    """A node ``gone.example`` lived here, with these pods, and its machine burnt down."""
    store.put(keys.NODES + "gone.example", NODE_RECORD)
    async with Node("gone.example", store, ReservePolicy(minimum=4, maximum=4), instance="aaaaaaaa").running() as node:
        given = [await node.add(add_request(f"lost{number}")) for number in range(pods)]
        await node.flushed()
        while node.ledger.available("p") < 4:
            await trio.sleep(0.1)
        await node.flushed()
    return given


async def bury(store: MemoryStore) -> None:
    """An operator deletes the node."""
    await Calicoctl(store, lambda: now().unix).delete_node("gone.example")


def reserved(store: MemoryStore, handle: str = GONE) -> int:
    """How many addresses a reserve has in the store."""
    return sum(holder == handle for holder, _node, _kind in view(store).allocations().values())


async def test_what_a_deleted_node_had_in_reserve_is_released(autojump_clock: MockClock, store: MemoryStore) -> None:
    """After the grace time; of its pod, and of who lives, nothing is touched. The block goes with its last address."""
    (pod,) = await past(store)
    async with walking(store) as (_node, walk):
        await bury(store)
        before = view(store).allocations()
        own = reserved(store, "ipamd-reserve-n1")
        await trio.sleep(GRACE - MINUTE)
        assert reserved(store) == 4
        await trio.sleep(ROUND)
        assert reserved(store) == 0
        kept = {place: held for place, held in before.items() if held[0] != GONE}
        assert view(store).allocations() == kept
        assert view(store).handles() == view(store).counted()
        assert pod.places[0] in kept
        assert reserved(store, "ipamd-reserve-n1") == own
        assert walk.walk.addresses == 4
        values = {"gone": "gone.example", "handle": GONE, "blocks": pod.places[0].block, "addresses": "4"}
        assert walk.reports == [("released what a node that is gone had in reserve", values)]


async def test_a_block_of_nobody_goes_with_the_last_of_the_reserve(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """The deleted node had no pod: nothing of it is left."""
    await past(store, pods=0)
    async with walking(store) as (node, _walk):
        await bury(store)
        await trio.sleep(GRACE + ROUND)
        assert view(store).blocks().keys() == set(node.ledger.blocks)
        assert view(store).handles() == view(store).counted()


async def test_what_it_had_borrowed_is_released_too(autojump_clock: MockClock) -> None:
    """In the block of a node that lives, which learns of it by its watch and can use them."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/27", blockSize=27))
    async with walking(store) as (node, _walk):
        store.put(keys.NODES + "gone.example", NODE_RECORD)
        async with Node("gone.example", store, instance="aaaaaaaa").running() as other:
            await other.add(add_request("lost"))
            await other.flushed()
        assert reserved(store) > 0
        await bury(store)
        await trio.sleep(GRACE + ROUND)
        assert reserved(store) == 0
        (block,) = node.ledger.blocks.values()
        assert block.owned
        assert view(store).handles() == view(store).counted()


@pytest.mark.parametrize(
    "why", ["registered", "served", "an affinity", "nobody registers", "no reserve", "of several nodes"]
)
async def test_what_may_be_a_living_nodes_is_left_alone(
    autojump_clock: MockClock, store: MemoryStore, why: str
) -> None:
    """However long nothing is heard of it: it may be cut off, and hand out its reserve all the same."""
    (pod,) = await past(store)
    async with walking(store) as (_node, walk):
        await bury(store)
        cidr = parse_cidr(pod.places[0].block)
        block = store.records[keys.block_key(cidr)]
        if why == "registered":
            store.put(keys.NODES + "gone.example", NODE_RECORD)
        elif why == "served":
            store.put(keys.DAEMONS + "gone.example", b'{"host":"h"}')
        elif why == "an affinity":
            store.put(keys.affinity_key("gone.example", parse_cidr("10.7.0.0/26")), b'{"state":"confirmed"}')
        elif why == "nobody registers":
            store.put(keys.NODES + "n1", None)
        elif why == "no reserve":  # a network of this name, and a container
            store.put(block.key, block.value.replace(b"ipamd reserve", b"something else"))
        else:
            record = BlockRecord(block.value)
            held = next(o for o in range(64) if (owner := record.owner(o)) and owner.handle == GONE)
            record.give(held, attribute(GONE, {"node": "n3", "note": "ipamd reserve"}))
            store.put(block.key, record.encode())
        await trio.sleep(4 * GRACE)
        assert reserved(store) == 4
        assert walk.walk.addresses == walk.walk.handles == 0


async def test_a_reserve_that_changes_is_a_living_nodes(autojump_clock: MockClock, store: MemoryStore) -> None:
    """One address out, another in: the handle counts as before, the sequence numbers tell."""
    (pod,) = await past(store)
    key = keys.block_key(parse_cidr(pod.places[0].block))
    async with walking(store) as (_node, _walk):
        await bury(store)
        for _ in range(20):
            record = BlockRecord(store.records[key].value)
            held = next(o for o in range(64) if (owner := record.owner(o)) and owner.handle == GONE)
            raw = record.attributes[record.allocations[held] or 0]
            record.free(held)
            record.take({held}, raw)
            store.put(key, record.encode())
            await trio.sleep(GRACE - ROUND)
            assert reserved(store) == 4


@pytest.mark.parametrize("what", ["the node's record", "its daemon", "its affinity", "the handle", "the block"])
async def test_a_reserve_is_not_released_if_its_node_comes_back_in_the_last_moment(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the look and the release: the release is refused, whichever record tells of the node."""
    (pod,) = await past(store)
    async with walking(store) as (_node, walk):
        await bury(store)
        cidr = parse_cidr(pod.places[0].block)
        changed = {
            "the node's record": keys.NODES + "gone.example",
            "its daemon": keys.DAEMONS + "gone.example",
            "its affinity": keys.affinity_key("gone.example", cidr),
            "the handle": keys.handle_key(GONE),
            "the block": keys.block_key(cidr),
        }[what]
        value = store.records[changed].value if changed in store.records else NODE_RECORD
        refused = before_commits(store, monkeypatch, keys.handle_key(GONE), lambda: store.put(changed, value))
        await trio.sleep(GRACE + ROUND)
        assert refused
        assert reserved(store) == 4
        assert walk.walk.addresses == 0


async def test_what_was_suspect_before_a_pause_is_seen_twice_again(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Whoever was not the one that cleans for a while knows nothing of what happened meanwhile."""
    await past(store)
    async with walking(store) as (_node, walk):
        await bury(store)
        await trio.sleep(GRACE - MINUTE)
        walk.walk.forget()
        await trio.sleep(GRACE - MINUTE)
        assert reserved(store) == 4
        await trio.sleep(ROUND)
        assert reserved(store) == 0


async def test_a_cooldown_longer_than_the_grace_time_is_waited_for(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Its pods may have used what was in reserve to the last."""
    store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"ipCooldownSeconds":3600}')
    await past(store)
    async with walking(store):
        await bury(store)
        await trio.sleep(3600 - MINUTE)
        assert reserved(store) == 4
        await trio.sleep(ROUND)
        assert reserved(store) == 0
