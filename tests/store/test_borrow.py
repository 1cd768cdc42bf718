"""Borrowing: addresses of other nodes' blocks, for the ADDs of a pool that has no block left."""

import json
from contextlib import AsyncExitStack

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ipamd.api import views
from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.clock import Now
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Place
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import (
    WINDOWS_HANDLE,
    BlockRecord,
    affinity_record,
    attribute,
    cooling_attribute,
    new_block,
    pressure_record,
)
from ipamd.core.reserve import PRESSURE, TIGHT, ReservePolicy
from ipamd.core.supply import IDLE_LOAN
from ipamd.metrics import Metrics
from ipamd.store.base import ChangeSet, KeyRange, Outcome, Record, StoreRefusedError
from ipamd.store.borrow import PATIENCE, ROUND, Hunt, borrow
from ipamd.store.known import Known
from tests.memory_store import MemoryStore
from tests.nodes import EPOCH, Node, add_request, now, pool_record
from tests.store.truth import at_rest, held, view

MINUTE = 60 * 1_000_000_000
OTHER = "k8s-pod-network.other"
RESERVE = "ipamd-reserve-n1"


def block_key(cidr: str) -> str:
    """The key of a block."""
    return keys.block_key(parse_cidr(cidr))


def put_block(
    store: MemoryStore, cidr: str, owner: str | None, *taken: int, handle: str = OTHER, claimed: int = EPOCH
) -> None:
    """Another node's block (or nobody's), some of its ordinals taken, with its affinity and handle."""
    record = new_block(parse_cidr(cidr), owner or "", claimed)
    record.affinity = owner
    if taken:
        record.take(set(taken), attribute(handle, {"node": "other"}))
        counts = (
            json.loads(store.records[key].value)["block"] if (key := keys.handle_key(handle)) in store.records else {}
        )
        store.put(key, json.dumps({"block": {**counts, cidr: len(taken)}, "deleted": False}).encode())
    store.put(block_key(cidr), record.encode())
    if owner:
        store.put(keys.affinity_key(owner.removeprefix("host:"), record.cidr), affinity_record("confirmed"))


def owners(store: MemoryStore) -> dict[str, str | None]:
    """Whose each block is."""
    return {cidr: block.affinity for cidr, block in view(store).blocks().items()}


@pytest.fixture
def store() -> MemoryStore:
    """A pool of one block of 16, another node's, of which the first four are taken."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(made, "10.0.0.0/28", "host:other", *range(4))
    return made


@pytest.mark.parametrize("pools", [2, 4, 12])
async def test_an_add_is_refused_when_all_its_pools_are_full(
    autojump_clock: MockClock, store: MemoryStore, pools: int
) -> None:
    """All nodes are asked for their reserve of all its pools at once: twelve pools take no longer than one."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    for number in range(1, pools):
        store.put(*pool_record(f"p{number}", f"10.0.{number}.0/28", blockSize=28))
        put_block(store, f"10.0.{number}.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node:
        for container in ("a", "b"):
            began = trio.current_time()
            with pytest.raises(RefusedError) as refused:
                await node.add(add_request(container))
            assert trio.current_time() - began < 2
            assert refused.value.code == Code.EXHAUSTED
            assert refused.value.msg.count("none of its 1 blocks is free") == pools
        assert {key for key in store.records if key.startswith(keys.PRESSURE)} == {
            keys.pressure_key(name) for name in ("p", *(f"p{number}" for number in range(1, pools)))
        }


@pytest.mark.parametrize("pools", [1, 3])
async def test_full_pools_of_many_blocks_are_refused_as_soon(autojump_clock: MockClock, pools: int) -> None:
    """To read all blocks takes longer than one is left alone: the search ends all the same, and keeps no other waiting."""
    store = MemoryStore(delay=0.005)
    for number in range(pools):
        many(store, 256, set(), f"p{number}", f"10.{number}.0.0")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        began = trio.current_time()
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("a"))
        assert trio.current_time() - began < 2.5
        assert refused.value.msg.count("none of its 256 blocks is free") == pools
        assert sum(key.startswith(keys.PRESSURE) for key in store.records) == pools


async def test_whichever_of_the_full_pools_has_an_address_first_serves(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """One address comes free in the third pool: the pod has it at once, and nothing is borrowed of the others."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    for number in (1, 2, 3):
        store.put(*pool_record(f"p{number}", f"10.0.{number}.0/28", blockSize=28))
        put_block(store, f"10.0.{number}.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        nursery.start_soon(node.add, add_request("a"))
        await trio.sleep(0.5)
        for number in (2, 3):
            put_block(store, f"10.0.{number}.0/28", "host:other", *range(15))
        await trio.sleep(0.1)
        assert [assigned.places for assigned in node.ledger.holdings.values()] == [(Place("10.0.2.0/28", 15),)]
        await node.flushed()
        assert not any(reserve.waiting for reserve in node.ledger.reserves.values())
        at_rest(store, [node], strangers=[OTHER])
        assert view(store).blocks()["10.0.3.0/28"].unallocated == [15]


async def test_a_pod_of_two_families_borrows_in_both_pools(autojump_clock: MockClock) -> None:
    """Once it has an IPv4 address to come, the search goes on in the IPv6 pool: the first pool keeps nobody waiting."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/29", blockSize=29))
    store.put(*pool_record("p6", "fd00::/126", blockSize=126))
    put_block(store, "10.0.0.0/29", "host:other", 0)
    put_block(store, "fd00::/126", "host:other", 0)
    async with Node("n1", store).running() as node:
        began = trio.current_time()
        assigned = await node.add(add_request("a", 4, 6))
        assert trio.current_time() - began < 1
        assert [place.block for place in assigned.places] == ["10.0.0.0/29", "fd00::/126"]


# --- from whom, and how much ----------------------------------------------------------------------------------


async def test_a_pod_gets_an_address_of_another_nodes_block(autojump_clock: MockClock, store: MemoryStore) -> None:
    """No block is left: the address comes from the other's, under this pod's handle and with this node's name."""
    async with Node("n1", store).running() as node:
        assigned = await node.add(add_request("a"))
        assert assigned.places == (Place("10.0.0.0/28", 4),)
        await node.flushed()
        assert view(store).allocations()[assigned.places[0]] == ("k8s-pod-network.a", "n1", "")
        assert owners(store) == {"10.0.0.0/28": "host:other"}
        at_rest(store, [node], strangers=[OTHER])


async def test_an_address_is_reserved_before_it_is_handed_out(autojump_clock: MockClock, store: MemoryStore) -> None:
    """What is borrowed belongs to the node's reserve, in the store, at the moment at which the pod gets it."""
    async with Node("n1", store).running() as node:
        assigned = await node.add(add_request("a"))
        assert view(store).allocations()[assigned.places[0]] == (RESERVE, "n1", "ipipTunnelAddress")
        assert view(store).handles() == view(store).counted()


async def test_only_a_little_more_is_borrowed_than_is_waited_for(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Three ADDs wait: three addresses and two more are borrowed, by one transaction."""
    async with Node("n1", store).running() as node:
        await trio.sleep(0.5)
        commits = len(store.commits)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(node.add, add_request(f"c{number}"))
        assert len(store.commits) == commits + 1
        assert node.ledger.available("p") == TIGHT
        await node.flushed()
        assert len(view(store).blocks()["10.0.0.0/28"].unallocated) == 16 - 4 - 3 - TIGHT


async def test_nothing_is_borrowed_while_nobody_waits(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A node that found no block borrows no reserve in advance, and writes nothing."""
    async with Node("n1", store).running() as node:
        await trio.sleep(300)
        assert store.calls["commit"] <= 6  # looks for a free block, a minute apart
        assert node.ledger.available("p") == 0
        assert set(view(store).counted()) == {OTHER}


async def test_what_was_borrowed_in_advance_goes_back_when_it_is_idle(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A minute after the last borrowing the reserve in the other's block is given back; the pod's address stays."""
    async with Node("n1", store).running() as node:
        place = (await node.add(add_request("a"))).places[0]
        await trio.sleep(IDLE_LOAN / 1e9 - 5)
        assert node.ledger.available("p") == TIGHT
        await trio.sleep(11)
        assert {p for p, (_h, n, _k) in view(store).allocations().items() if n == "n1"} == {place}
        at_rest(store, [node], strangers=[OTHER])
        node.delete("a")
        await node.flushed()
        assert node.ledger.blocks == {}
        at_rest(store, [node], strangers=[OTHER])


async def test_nodes_that_borrow_at_once_begin_at_different_blocks(autojump_clock: MockClock) -> None:
    """One read brings several blocks, to all nodes the same: each goes through them in an order of its own."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/25", blockSize=29))
    for index in range(16):
        put_block(store, f"10.0.0.{index * 8}/29", "host:other", 0)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(Node(f"n{number}", store).running()) for number in range(8)]
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.add, add_request(node.ledger.node))
        assert len({block for node in nodes for block in node.ledger.blocks}) > 4
        for node in nodes:
            await node.flushed()
        at_rest(store, nodes, strangers=[OTHER])


async def test_the_nodes_own_block_comes_first(autojump_clock: MockClock) -> None:
    """Addresses of the node's own block are handed out before those that it borrowed, also if they came back later."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/29", blockSize=30))
    put_block(store, "10.0.0.0/30", "host:other")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        for number in range(5):
            assert (await node.add(add_request(f"c{number}"))).places[0].block == f"10.0.0.{0 if number == 4 else 4}/30"
        await node.flushed()
        node.delete("c1")
        await node.flushed()
        assert (await node.add(add_request("next"))).places[0] == Place("10.0.0.4/30", 1)


async def test_free_addresses_of_the_own_block_come_before_the_next_pool(autojump_clock: MockClock) -> None:
    """A pool without a free block is not full while the node's block has unreserved addresses: no pod goes elsewhere."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("a", "10.0.0.0/27", blockSize=27))
    store.put(*pool_record("b", "10.1.0.0/16"))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        for number in range(32):
            assert node.addresses(await node.add(add_request(f"c{number}")))[0].startswith("10.0."), number
        assert node.addresses(await node.add(add_request("next")))[0].startswith("10.1.")


async def test_a_block_is_claimed_in_the_next_pool_before_one_borrows_in_the_first(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """As with Calico: own blocks, then a new block of any pool that serves, then addresses of other nodes' blocks."""
    store.put(*pool_record("q", "10.1.0.0/28", blockSize=28))
    async with Node("n1", store).running() as node:
        first = [(await node.add(add_request(f"c{number}"))).places[0].block for number in range(16)]
        assert set(first) == {"10.1.0.0/28"}
        assert (await node.add(add_request("next"))).places[0].block == "10.0.0.0/28"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"maxBlocksPerHost": 1, "auto_allocate_blocks": True}, "this node has 1 blocks, the limit (maxBlocksPerHost)"),
        ({"auto_allocate_blocks": False}, "autoAllocateBlocks is false"),
    ],
)
async def test_a_node_that_may_not_claim_borrows(
    autojump_clock: MockClock, config: dict[str, object], why: str
) -> None:
    """There are free blocks, but not for this node: it borrows, and takes over no empty block."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/24", blockSize=28))
    store.put(keys.CONFIG, json.dumps({"strict_affinity": False, **config}).encode())
    put_block(store, "10.0.0.0/28", "host:n1", *range(16))
    put_block(store, "10.0.0.16/28", "host:other", claimed=1)
    async with Node("n1", store).running() as node:
        assert (await node.add(add_request("a"))).places[0].block == "10.0.0.16/28"
        assert owners(store) == {"10.0.0.0/28": "host:n1", "10.0.0.16/28": "host:other"}
        closed = node.ledger.reserve("p", 0).closed
        assert closed is not None
        assert closed.why.startswith(why)


async def test_blocks_without_affinity_lend_too(autojump_clock: MockClock) -> None:
    """What a deleted node left behind has free addresses, and stays nobody's."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", None, *range(15))
    async with Node("n1", store).running() as node:
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.0/28", 15),)
        await node.flushed()
        assert owners(store) == {"10.0.0.0/28": None}
        at_rest(store, [node], strangers=[OTHER])


async def test_a_block_without_affinity_goes_with_its_last_address(autojump_clock: MockClock) -> None:
    """The last to leave deletes it, with its handle, in one transaction."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/30", blockSize=30))
    put_block(store, "10.0.0.0/30", None, 0)
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        await node.flushed()
        put_left = BlockRecord(store.records[block_key("10.0.0.0/30")].value)
        put_left.free(0)
        store.put(block_key("10.0.0.0/30"), put_left.encode())
        store.put(keys.handle_key(OTHER), None)
        await trio.sleep(IDLE_LOAN / 1e9 + 6)
        assert owners(store) == {"10.0.0.0/30": None}
        node.delete("a")
        await node.flushed()
        assert owners(store) == {}
        at_rest(store, [node])


async def test_reservations_hold_for_borrowed_addresses_too(autojump_clock: MockClock, store: MemoryStore) -> None:
    """What an IPReservation names is not taken from other nodes' blocks either."""
    store.put(keys.RESERVATIONS + "r", json.dumps({"spec": {"reservedCIDRs": ["10.0.0.0/29", "10.0.0.9"]}}).encode())
    async with Node("n1", store).running() as node:
        got = [(await node.add(add_request(f"c{number}"))).places[0].ordinal for number in range(7)]
        assert got == [8, 10, 11, 12, 13, 14, 15]
        with pytest.raises(RefusedError):
            await node.add(add_request("next"))


async def test_the_reserve_of_another_node_is_never_taken(autojump_clock: MockClock) -> None:
    """Addresses under another daemon's reserve handle are that node's, however idle they look."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", "host:other", *range(16), handle="ipamd-reserve-other")
    before = dict(store.records)
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError):
            await node.add(add_request("a"))
        assert store.records[block_key("10.0.0.0/28")] == before[block_key("10.0.0.0/28")]


async def test_an_address_that_cools_is_not_borrowed_before_its_time(autojump_clock: MockClock) -> None:
    """What a pod of another node gave up is nobody's for as long as ipCooldownSeconds says, then it is lent."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/30", blockSize=30))
    store.put(keys.CONFIG, b'{"auto_allocate_blocks":true,"ipCooldownSeconds":60}')
    put_block(store, "10.0.0.0/30", "host:other", *range(4))
    record = BlockRecord(store.records[block_key("10.0.0.0/30")].value)
    record.cool(2, cooling_attribute(EPOCH))
    store.put(block_key("10.0.0.0/30"), record.encode())
    store.put(keys.handle_key(OTHER), b'{"block":{"10.0.0.0/30":3},"deleted":false}')
    async with Node("n1", store).running() as node:
        await trio.sleep(50)
        with pytest.raises(RefusedError):
            await node.add(add_request("a"))
        await trio.sleep(11)
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.0/30", 2),)
        await node.flushed()
        at_rest(store, [node], strangers=[OTHER])


def test_an_ordinal_that_somebody_has_is_never_reserved() -> None:
    """Whatever the caller chose: the change set that would take somebody's address cannot be built."""
    record = new_block(parse_cidr("10.0.0.0/30"), "host:other", EPOCH)
    record.take({1}, attribute(OTHER, {}))
    found = Record(block_key("10.0.0.0/30"), record.encode(), 5)
    with pytest.raises(ValueError, match=r"cannot reserve ordinal 1 of 10\.0\.0\.0/30: k8s-pod-network\.other has it"):
        borrow(Ledger("n1", ReservePolicy()), Known(), found, [0, 1], Now(EPOCH, 1))


async def test_a_block_that_cannot_be_understood_is_passed_over(autojump_clock: MockClock) -> None:
    """A broken record, and one that calls itself otherwise, lend nothing and keep nobody from the next."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=30))
    store.put(block_key("10.0.0.0/30"), b"{")
    store.put(block_key("10.0.0.4/30"), new_block(parse_cidr("10.0.0.8/30"), "host:other", 1).encode())
    deleted = (
        new_block(parse_cidr("10.0.0.8/30"), "host:x", EPOCH).encode().replace(b'"deleted":false', b'"deleted":true')
    )
    store.put(block_key("10.0.0.8/30"), deleted)
    put_block(store, "10.0.0.12/30", "host:other", 0)
    async with Node("n1", store).running() as node:
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.12/30", 1),)


# --- strict affinity, and refusals ----------------------------------------------------------------------------


async def test_strict_affinity_forbids_borrowing(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The refusal says which rule it was; nothing of the other's block is read or taken."""
    store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("a"))
        assert refused.value.code is Code.EXHAUSTED
        assert refused.value.msg == (
            "cannot assign an IPv4 address to default/pod-a: pool p (10.0.0.0/28): none of its 1 blocks is free, and "
            "strictAffinity forbids addresses of other nodes' blocks; add a pool, or free addresses"
        )
        assert set(view(store).counted()) == {OTHER}


async def test_a_full_pool_refuses_in_words(autojump_clock: MockClock, store: MemoryStore) -> None:
    """All addresses are taken: the refusal comes within two seconds and says that borrowing was tried."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node:
        began = trio.current_time()
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("a"))
        assert trio.current_time() - began < 2
        assert refused.value.code is Code.EXHAUSTED
        assert refused.value.msg == (
            "cannot assign an IPv4 address to default/pod-a: pool p (10.0.0.0/28): none of its 1 blocks is free, and "
            "no other node's has an address; add a pool, or free addresses"
        )


async def test_strict_affinity_that_is_lifted_lets_the_next_pod_borrow(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A change of the configuration counts at once, whatever was refused a moment ago."""
    store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError):
            await node.add(add_request("a"))
        store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true}')
        await trio.sleep(0.01)
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.0/28", 4),)


async def test_strict_affinity_that_is_set_sends_borrowed_reserve_back(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """What was borrowed in advance goes back at once; a pod keeps its borrowed address."""
    async with Node("n1", store).running() as node:
        place = (await node.add(add_request("a"))).places[0]
        await node.flushed()
        store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
        await trio.sleep(0.5)
        assert {p for p, (_h, n, _k) in view(store).allocations().items() if n == "n1"} == {place}
        at_rest(store, [node], strangers=[OTHER])


async def test_the_refusal_stands_for_a_second(autojump_clock: MockClock, store: MemoryStore) -> None:
    """ADDs that come within a second of a refusal are refused by one look at the settings; then the node hunts again."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError):
            await node.add(add_request("a"))
        calls = dict(store.calls)

        async def one(name: str) -> None:
            with pytest.raises(RefusedError):
                await node.add(add_request(name))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, f"c{number}")
        assert store.calls == {**calls, "read": calls["read"] + 1}, "one look that confirms all of them"
        put_block(store, "10.0.0.0/28", "host:other", *range(15))
        await trio.sleep(1)
        assert (await node.add(add_request("next"))).places == (Place("10.0.0.0/28", 15),)


async def test_all_who_wait_share_one_hunt(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A hundred ADDs on a full pool cost as many reads as one, and all are refused together."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    reads = []
    for waiting in (1, 100):
        async with Node(f"n{waiting}", store).running() as node:
            await trio.sleep(0.5)
            before = store.calls["read"]
            refused = []

            async def one(name: str, node: Node = node, refused: list[float] = refused) -> None:
                with pytest.raises(RefusedError):
                    await node.add(add_request(name))
                refused.append(trio.current_time())

            async with trio.open_nursery() as nursery:
                for number in range(waiting):
                    nursery.start_soon(one, f"c{number}")
            assert len(refused) == waiting
            assert len(set(refused)) == 1
            reads.append(store.calls["read"] - before)
    assert reads[0] == reads[1]


async def test_an_address_that_comes_free_while_one_waits_is_found(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A pod that ends elsewhere a moment after the pool was found full: its address goes to the ADD that waits."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        await trio.sleep(1)
        nursery.start_soon(node.add, add_request("a"))
        await trio.sleep(PATIENCE / 2e9)
        put_block(store, "10.0.0.0/28", "host:other", *(o for o in range(16) if o != 9))
        await trio.sleep(2 * ROUND / 1e9 + 0.03)
        assert [assigned.places[0].ordinal for assigned in node.ledger.holdings.values()] == [9]


async def test_a_block_that_was_this_nodes_own_a_moment_ago_is_looked_at(autojump_clock: MockClock) -> None:
    """Another node took it over between two hunts that share a list of the blocks, and has an address in it to lend."""
    store = pool_of("10.0.0.0/29", 30)
    put_block(store, "10.0.0.0/30", "host:n1", *range(4))
    put_block(store, "10.0.0.4/30", "host:other", *range(3))
    async with Node("n1", store).running() as node:
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.4/30", 3),)
        put_block(store, "10.0.0.0/30", "host:other", *range(3))
        store.put(keys.affinity_key("n1", parse_cidr("10.0.0.0/30")), None)
        assert (await node.add(add_request("b"))).places == (Place("10.0.0.0/30", 3),)


async def test_a_block_that_was_claimed_during_a_hunt_is_looked_at(autojump_clock: MockClock) -> None:
    """It was not there when the blocks were listed: nobody is refused before they were listed again."""
    store = pool_of("10.0.0.0/29", 30)
    store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":1}')
    put_block(store, "10.0.0.0/30", "host:n1", *range(4))
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        nursery.start_soon(node.add, add_request("a"))
        await trio.sleep(PATIENCE / 2e9)
        put_block(store, "10.0.0.4/30", "host:other", *range(3))
    assert [assigned.places for assigned in node.ledger.holdings.values()] == [(Place("10.0.0.4/30", 3),)]


async def test_nobody_is_refused_while_addresses_come_in(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Three ADDs wait, an address comes free every 0.4 s: each gets one, though the last has waited longest of all."""
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        await trio.sleep(0.5)
        for number in range(3):
            nursery.start_soon(node.add, add_request(f"c{number}"))
        for _ in range(3):
            await trio.sleep(0.4)
            record = BlockRecord(store.records[block_key("10.0.0.0/28")].value)
            record.free(next(o for o in range(16) if (owner := record.owner(o)) and owner.handle == OTHER))
            count = json.dumps({"block": {"10.0.0.0/28": record.count(OTHER)}, "deleted": False}).encode()
            store.put(block_key("10.0.0.0/28"), record.encode())
            store.put(keys.handle_key(OTHER), count)
    assert len(node.ledger.holdings) == 3


async def test_who_is_always_slower_is_not_refused_while_there_is_something(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """For two seconds every transaction of this node comes too late; there are free addresses: it tries on."""
    commit = store.commit
    late = 0

    async def beaten(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        nonlocal late
        if 1 < trio.current_time() < 3 and any(change.key == block_key("10.0.0.0/28") for change in alternatives[0]):
            late += 1
            current = BlockRecord(store.records[block_key("10.0.0.0/28")].value)
            store.put(block_key("10.0.0.0/28"), current.encode())
        return await commit(*alternatives, window=window)

    store.commit = beaten  # type: ignore[method-assign] # the fault to inject
    async with Node("n1", store).running() as node:
        await trio.sleep(1.1)
        await node.add(add_request("a"))
        assert late > 10


# --- cost -----------------------------------------------------------------------------------------------------


def many(store: MemoryStore, blocks: int, free: set[int], name: str = "p", base: str = "10.0.0.0") -> Pool:
    """A pool of so many blocks of 4, all other nodes', full but for ``free`` blocks that have one address each."""
    pool = Pool(name, parse_cidr(f"{base}/{32 - (4 * blocks).bit_length() + 1}"), 30)
    store.put(*pool_record(name, str(pool.cidr), blockSize=30))
    for index in range(blocks):
        cidr = str(pool.block(index))
        record = new_block(parse_cidr(cidr), f"host:o{index % 50}", EPOCH)
        record.take(set(range(4 - (index in free))), attribute(OTHER, {"node": "o"}))
        store.put(block_key(cidr), record.encode())
    return pool


async def test_blocks_are_read_a_few_at_a_time(autojump_clock: MockClock) -> None:
    """The first address of a pool of 1,024 blocks costs a few reads of 32 blocks, not all blocks."""
    store = MemoryStore(delay=0.001)
    many(store, 1024, set(range(0, 1024, 16)))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        asked: list[int] = []
        read = store.read

        async def counted(names, prefixes=()):  # type: ignore[no-untyped-def]
            asked.append(len(names))
            return await read(names, prefixes)

        store.read = counted  # type: ignore[method-assign] # only counted
        await node.add(add_request("a"))
        assert max(asked) <= 32
        assert len(asked) <= 6


async def test_the_next_hunt_goes_on_where_the_last_ended(autojump_clock: MockClock) -> None:
    """Sixty-four ADDs, one after the other, with one free address in 16 blocks: about one read of 32 blocks each."""
    store = MemoryStore(delay=0.0001)
    many(store, 1024, set(range(0, 1024, 16)))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        asked = 0
        read = store.read

        async def counted(names, prefixes=()):  # type: ignore[no-untyped-def]
            nonlocal asked
            asked += len(names)
            return await read(names, prefixes)

        store.read = counted  # type: ignore[method-assign] # only counted
        for number in range(64):
            await node.add(add_request(f"c{number}"))
        assert asked <= 1.25 * 64 * 32


def test_two_nodes_hunt_in_different_orders() -> None:
    """The order of the blocks is the node's own, so that nodes in need at once do not meet at every block."""
    pool = Pool("p", parse_cidr("10.0.0.0/20"), 26)
    keys_of = [keys.block_key(pool.block(index)) for index in range(64)]
    orders = []
    for node in ("n1", "n2", "n1"):
        hunt = Hunt(node, pool)
        hunt.learn(keys_of, 1)
        hunt.begin(1)
        orders.append(hunt.due(1, ()) + hunt.due(1, ()))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(keys_of)


# --- beside others --------------------------------------------------------------------------------------------


async def test_two_who_want_the_same_address_get_two(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Two nodes borrow at the same moment of one block: the slower tries again, both pods are served at once."""
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.add, add_request("a"))
            nursery.start_soon(two.add, add_request("b"))
        assert len(held([one, two])) == 2
        await one.flushed()
        await two.flushed()
        at_rest(store, [one, two], strangers=[OTHER])


async def test_a_borrower_keeps_its_lenders_accounts_right(autojump_clock: MockClock) -> None:
    """The lender sees what others hold of its block as neither free nor its own, and keeps the block while they do."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/27", blockSize=27))
    async with Node("n1", store).running() as lender, Node("n2", store).running() as borrower:
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(borrower.add, add_request(f"c{number}"))
        await borrower.flushed()
        await trio.sleep(120)
        (block,) = lender.ledger.blocks.values()
        assert block.owned
        assert not block.empty
        assert block.unreserved_bits.bit_count() + block.available == 32 - 5
        at_rest(store, [lender, borrower])


async def test_an_operator_sees_what_is_borrowed_and_lent(autojump_clock: MockClock) -> None:
    """Blocks by their owner, allocations by their lender, metrics by state: each address is counted once."""
    store = pool_of("10.0.0.0/27", 27)
    async with Node("n1", store).running() as lender, Node("n2", store).running() as borrower:
        await trio.sleep(0.5)
        await lender.add(add_request("own"))
        for number in range(5):
            await borrower.add(add_request(f"c{number}"))
        await borrower.flushed()
        await trio.sleep(0.5)
        (theirs,), (ours,) = views.blocks(borrower.ledger), views.blocks(lender.ledger)
        assert (theirs.affine, theirs.affinity, theirs.in_use, theirs.lent) == (False, "host:n1", 5, 0)
        reserved = theirs.in_reserve
        assert (ours.affine, ours.in_use, ours.lent) == (True, 1, 5 + reserved)
        assert ours.in_use + ours.in_reserve + ours.unreserved + ours.lent == ours.size
        assert {view.borrowed_from for view in views.allocations(borrower.ledger)} == {"host:n1"}
        assert {view.borrowed_from for view in views.allocations(lender.ledger)} == {""}
        assert [view.blocks for view in views.pools(borrower.ledger)] == [0]
        (reserve,) = views.reserves(borrower.ledger, now().boot)
        assert (reserve.closed, reserve.refusal, reserve.tight) == ("none of its 1 blocks is free", "", True)
        assert states(borrower) == {"borrowed": 5 + reserved}
        assert states(lender) == {
            "in_use": 1,
            "reserve": ours.in_reserve,
            "free": ours.unreserved,
            "lent": 5 + reserved,
        }


def states(node: Node) -> dict[str, float]:
    """What the metrics say of the pool's addresses, without what is zero."""
    registry = Metrics(node.ledger, dict).registry
    return {
        sample.labels["state"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "ipamd_addresses" and sample.value
    }


async def test_a_lost_reply_of_a_borrowing_is_looked_up(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The transaction took effect without an answer: what it borrowed is found, used, and later given back."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.lose_replies = 1
        assigned = await node.add(add_request("a"))
        await node.flushed()
        at_rest(store, [node], strangers=[OTHER])
        assert assigned.places == (Place("10.0.0.0/28", 4),)


async def test_a_restarted_borrower_still_has_what_it_borrowed(autojump_clock: MockClock, store: MemoryStore) -> None:
    """From the state file alone, the store away: the pod's borrowed address and the reserve in the other's block."""
    async with Node("n1", store).running() as node:
        first = await node.add(add_request("a"))
        await node.flushed()
    store.away = True
    again = Node("n1", store, facts=node.journal)
    async with again.running(look=False):
        assert (await again.add(add_request("a"))).places == first.places
        second = await again.add(add_request("b"))
        assert second.places[0].block == "10.0.0.0/28"
        store.away = False
        await trio.sleep(2)
        at_rest(store, [again], strangers=[OTHER])


async def test_a_conflict_takes_what_the_other_left(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Somebody takes the very ordinals between our read and our write: the answer's image is used, not a new read."""
    commit = store.commit
    reads: list[int] = []

    async def beaten(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        if any(change.key == block_key("10.0.0.0/28") and change.expected for change in alternatives[0]) and not reads:
            reads.append(store.calls["read"])
            put_block(store, "10.0.0.0/28", "host:other", *range(10))
        return await commit(*alternatives, window=window)

    store.commit = beaten  # type: ignore[method-assign] # the fault to inject
    async with Node("n1", store).running() as node:
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.0/28", 10),)
        assert store.calls["read"] == reads[0]


# --- taking over ----------------------------------------------------------------------------------------------


async def test_an_empty_block_of_another_node_is_taken_over_after_a_minute(autojump_clock: MockClock) -> None:
    """As Calico does: claimed for over a minute and empty, it becomes this node's, the other's affinity goes."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", "host:other", claimed=EPOCH - MINUTE)
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        await node.flushed()
        assert owners(store) == {"10.0.0.0/28": "host:n1"}
        assert keys.affinity_key("other", parse_cidr("10.0.0.0/28")) not in store.records
        at_rest(store, [node])


async def test_a_young_empty_block_is_only_borrowed_from(autojump_clock: MockClock) -> None:
    """Its owner has just claimed it for a pod of its own."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", "host:other", claimed=EPOCH - MINUTE + 1_000_000_000)
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        assert owners(store) == {"10.0.0.0/28": "host:other"}


async def test_a_block_that_comes_free_while_one_waits_is_claimed(autojump_clock: MockClock) -> None:
    """Its owner gave it back a moment after the pool was found full: the ADD that waits gets it, and no refusal."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/27", blockSize=28))
    for cidr in ("10.0.0.0/28", "10.0.0.16/28"):
        put_block(store, cidr, "host:other", *range(16))
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        await trio.sleep(0.5)
        nursery.start_soon(node.add, add_request("a"))
        await trio.sleep(0.1)
        store.put(block_key("10.0.0.16/28"), None)
        store.put(keys.affinity_key("other", parse_cidr("10.0.0.16/28")), None)
        await trio.sleep(0.6)
        assert [assigned.places[0].block for assigned in node.ledger.holdings.values()] == ["10.0.0.16/28"]


async def test_a_block_with_one_address_is_never_taken_over(autojump_clock: MockClock, store: MemoryStore) -> None:
    """However old the claim: with an address in use, or in somebody's reserve, the block stays its owner's."""
    put_block(store, "10.0.0.0/28", "host:other", 7, handle="ipamd-reserve-other", claimed=1)
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        assert owners(store) == {"10.0.0.0/28": "host:other"}


async def test_an_empty_block_without_affinity_is_taken_over(autojump_clock: MockClock) -> None:
    """A block that nobody has and nobody uses, left by another program, is claimed."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", None)
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        await node.flushed()
        assert owners(store) == {"10.0.0.0/28": "host:n1"}
        at_rest(store, [node])


@pytest.mark.parametrize("owner", ["host:windows", None])
async def test_what_windows_keeps_does_not_keep_a_block(autojump_clock: MockClock, owner: str | None) -> None:
    """A block in which only addresses set aside for a Windows node are left is empty, as with Calico."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", owner, 0, 1, 2, 15, handle=WINDOWS_HANDLE, claimed=1)
    store.put(keys.handle_key(WINDOWS_HANDLE), None)  # they are in the block from its beginning, without a handle
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        await node.flushed()
        assert owners(store) == {"10.0.0.0/28": "host:n1"}
        at_rest(store, [node])


async def test_a_block_without_a_node_goes_with_its_last_pod_whatever_windows_kept(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Its node was deleted while a pod of this one had an address of it."""
    put_block(store, "10.0.0.0/28", None, 0, 1, 2, 15, handle=WINDOWS_HANDLE)
    store.put(keys.handle_key(WINDOWS_HANDLE), None)
    view(store).take(Place("10.0.0.0/28", 7), "k8s-pod-network.a", {"node": "n1"})
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28, disabled=True))
    async with Node("n1", store).running() as node:
        node.delete("a")
        await trio.sleep(1)
        assert owners(store) == {}


async def test_an_owner_that_uses_its_block_meanwhile_keeps_it(autojump_clock: MockClock) -> None:
    """Between our read and our transaction the owner takes an address: the block stays its own, and lends."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/28", blockSize=28))
    put_block(store, "10.0.0.0/28", "host:other", claimed=1)
    commit = store.commit
    raced: list[bool] = []

    async def beaten(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        if any(change.key.startswith(keys.IPAM + "host/other/") for change in alternatives[0]) and not raced:
            raced.append(True)
            put_block(store, "10.0.0.0/28", "host:other", 0, claimed=1)
        return await commit(*alternatives, window=window)

    store.commit = beaten  # type: ignore[method-assign] # the fault to inject
    async with Node("n1", store).running() as node:
        assert (await node.add(add_request("a"))).places == (Place("10.0.0.0/28", 1),)
        assert raced
        await node.flushed()
        assert owners(store) == {"10.0.0.0/28": "host:other"}
        at_rest(store, [node], strangers=[OTHER])


# --- one given address ----------------------------------------------------------------------------------------


# --- pressure -------------------------------------------------------------------------------------------------


def pool_of(cidr: str, size: int) -> MemoryStore:
    """A store with one pool p."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", cidr, blockSize=size))
    made.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":64}')
    return made


async def fill(node: Node, name: str, count: int) -> None:
    """So many pods on a node, one after the other."""
    for number in range(count):
        await node.add(add_request(f"{name}{number}"))


async def test_the_others_give_their_reserve_back_to_a_pod_that_waits(autojump_clock: MockClock) -> None:
    """All free addresses are one node's reserve: it gives them back when another's pod needs one, within a second."""
    store = pool_of("10.0.0.0/27", 27)
    async with Node("n1", store).running() as rich:
        await trio.sleep(1)
        await fill(rich, "r", 2)
        assert rich.ledger.available("p") == 14
        async with Node("n2", store).running() as poor:
            await trio.sleep(1)
            began = trio.current_time()
            await fill(poor, "p", 30)
            assert trio.current_time() - began < 1
            assert len(held([rich, poor])) == 32
            await rich.flushed()
            await poor.flushed()
            at_rest(store, [rich, poor])


async def test_pressure_is_one_small_record_of_the_pool(autojump_clock: MockClock) -> None:
    """Its key names the pool; it says who asks and when, and goes when nobody needs it any more."""
    store = pool_of("10.0.0.0/30", 30)
    put_block(store, "10.0.0.0/30", "host:other", *range(4))
    key = "/calico/ipamd/pressure/p"
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError):
            await node.add(add_request("a"))
        assert json.loads(store.records[key].value) == {"node": "n1", "time": "2026-11-20T23:47:40Z"}
        writes = sum(event.key == key for event in store.history)
        assert writes == 1
        await trio.sleep(PRESSURE / 1e9 + 6)
        assert key not in store.records
        assert sum(event.key == key for event in store.history) == 2


async def test_pressure_is_renewed_while_pods_wait_and_not_for_each(autojump_clock: MockClock) -> None:
    """A pod that is tried again every two seconds for three minutes: a write for each half of a pressure's life."""
    store = pool_of("10.0.0.0/30", 30)
    put_block(store, "10.0.0.0/30", "host:other", *range(4))
    async with Node("n1", store).running() as node:
        for _ in range(90):
            with pytest.raises(RefusedError):
                await node.add(add_request("a"))
            await trio.sleep(2)
            assert node.ledger.reserve("p", 0).pressed_until
        spent = trio.current_time()
        writes = sum(event.key == keys.pressure_key("p") for event in store.history)
        assert writes <= spent / (PRESSURE / 2e9) + 1


async def test_under_pressure_a_node_keeps_no_reserve_and_gets_it_back_afterwards(autojump_clock: MockClock) -> None:
    """Freed addresses stay free while the pool is pressed, also those of the node's own pods."""
    store = pool_of("10.0.0.0/26", 26)
    async with Node("n1", store).running() as node:
        await fill(node, "a", 10)
        store.put(keys.pressure_key("p"), pressure_record("n2", EPOCH))
        await trio.sleep(0.5)
        assert node.ledger.available("p") == 0
        for number in range(5):
            node.delete(f"a{number}")
        await node.flushed()
        assert node.ledger.available("p") == 0
        await trio.sleep(PRESSURE / 1e9 - 1)
        assert node.ledger.available("p") == 0
        await trio.sleep(10)
        assert node.ledger.available("p") >= 16


async def test_pressure_that_is_taken_back_is_over_at_once(autojump_clock: MockClock) -> None:
    """The reserve is filled again when the record goes."""
    store = pool_of("10.0.0.0/26", 26)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.put(keys.pressure_key("p"), pressure_record("n2", EPOCH))
        await trio.sleep(0.5)
        store.put(keys.pressure_key("p"), None)
        await trio.sleep(0.5)
        assert node.ledger.available("p") == 16


@pytest.mark.parametrize("skew", [-120, 0, 120])
async def test_how_long_pressure_lasts_does_not_depend_on_the_others_clock(
    autojump_clock: MockClock, skew: int
) -> None:
    """It counts from when this node heard of it, by this node's clock; only what is minutes old is not heeded."""
    store = pool_of("10.0.0.0/26", 26)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.put(keys.pressure_key("p"), pressure_record("n2", EPOCH + skew * 1_000_000_000))
        await trio.sleep(PRESSURE / 1e9 - 1)
        assert node.ledger.available("p") == 0
        await trio.sleep(10)
        assert node.ledger.available("p") == 16


@pytest.mark.parametrize("value", [pressure_record("dead", EPOCH - 3600 * 1_000_000_000), b"nonsense", b"{}"])
async def test_a_pressure_that_nobody_takes_back_any_more_is_not_heeded(
    autojump_clock: MockClock, value: bytes
) -> None:
    """Left by a node that is gone, or not understood: it costs nobody its reserve."""
    store = pool_of("10.0.0.0/26", 26)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.put(keys.pressure_key("p"), value)
        await trio.sleep(1)
        assert node.ledger.available("p") == 16


async def test_a_store_that_refuses_the_pressure_record_hinders_nobody(autojump_clock: MockClock) -> None:
    """Credentials for Calico's keys only: it is said in the log, once a hunt, and the hunt goes on."""
    store = pool_of("10.0.0.0/30", 30)
    put_block(store, "10.0.0.0/30", "host:other", *range(4))
    commit = store.commit

    async def forbidding(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        if any(change.key.startswith("/calico/ipamd/") for changes in alternatives for change in changes):
            raise StoreRefusedError("permission denied")
        return await commit(*alternatives, window=window)

    store.commit = forbidding  # type: ignore[method-assign] # the fault to inject
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        nursery.start_soon(node.add, add_request("a"))
        await trio.sleep(0.2)
        put_block(store, "10.0.0.0/30", "host:other", 0, 1, 3)
        await trio.sleep(0.2)
        assert [assigned.places[0].ordinal for assigned in node.ledger.holdings.values()] == [2]
        assert node.reports == ["cannot ask other nodes for addresses"]


async def test_a_tight_pool_keeps_a_small_reserve(autojump_clock: MockClock) -> None:
    """A node that found no free block withholds two addresses at most, also without any pressure."""
    store = pool_of("10.0.0.0/27", 28)
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node:
        await trio.sleep(5)
        assert node.ledger.available("p") == TIGHT
        assert len(view(store).blocks()["10.0.0.16/28"].unallocated) == 16 - TIGHT
        assert not any(key.startswith("/calico/ipamd/") for key in store.records)


async def test_a_tight_pool_with_a_free_block_again_is_no_more_tight(autojump_clock: MockClock) -> None:
    """A block that others gave back is noticed within a minute or so, and the reserve grows to its size."""
    store = pool_of("10.0.0.0/27", 28)
    put_block(store, "10.0.0.0/28", "host:other")
    async with Node("n1", store).running() as node:
        await trio.sleep(5)
        assert node.ledger.available("p") == TIGHT
        store.put(block_key("10.0.0.0/28"), None)
        store.put(keys.affinity_key("other", parse_cidr("10.0.0.0/28")), None)
        await trio.sleep(70)
        assert node.ledger.available("p") == 16


async def test_strict_affinity_knows_no_tightness_and_no_pressure(autojump_clock: MockClock) -> None:
    """Where nobody may borrow, nothing is given back for others, and nobody is asked."""
    store = pool_of("10.0.0.0/27", 28)
    store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    put_block(store, "10.0.0.0/28", "host:other", *range(16))
    async with Node("n1", store).running() as node:
        await trio.sleep(5)
        assert node.ledger.available("p") == 14
        store.put(keys.pressure_key("p"), pressure_record("n2", EPOCH))
        await trio.sleep(1)
        assert node.ledger.available("p") == 14
        for number in range(16):
            await node.add(add_request(f"c{number}"))
        with pytest.raises(RefusedError):
            await node.add(add_request("next"))


async def test_what_was_promised_is_not_given_back(autojump_clock: MockClock) -> None:
    """Pods whose addresses the store does not have yet keep them when their node is asked for its reserve."""
    store = pool_of("10.0.0.0/26", 26)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        places = {(await node.add(add_request(f"a{number}"))).places[0] for number in range(5)}
        store.put(keys.pressure_key("p"), pressure_record("n2", EPOCH))
        await trio.sleep(0.5)
        assert {place for place, (_h, n, _k) in view(store).allocations().items() if n == "n1"} == places


# --- to the last address --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [26, 28, 30, 32])
async def test_a_pool_can_be_filled_to_its_last_address_from_any_mixture_of_nodes(
    autojump_clock: MockClock, size: int
) -> None:
    """Three nodes, 64 addresses, whatever the size of the blocks: 64 pods in turn, each within a second, then none."""
    store = pool_of("10.0.0.0/26", size)
    nodes = [Node(f"n{number}", store) for number in range(3)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        await trio.sleep(2)
        for number in range(64):
            with trio.fail_after(1):
                await nodes[number % 3].add(add_request(f"c{number}"))
        assert len(held(nodes)) == 64
        for node in nodes:
            with trio.fail_after(2), pytest.raises(RefusedError):
                await node.add(add_request("more"))
            await node.flushed()
        at_rest(store, nodes)


@pytest.mark.parametrize("size", [26, 28, 30, 32])
async def test_one_node_can_have_all_of_a_pool(autojump_clock: MockClock, size: int) -> None:
    """The others have their blocks and their reserve, and no pod: all 64 addresses go to the one that has pods."""
    store = pool_of("10.0.0.0/26", size)
    nodes = [Node(f"n{number}", store) for number in range(3)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        await trio.sleep(2)
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(nodes[1].add, add_request(f"c{number}"))
        assert len(held(nodes)) == 64
        await nodes[1].flushed()
        at_rest(store, nodes)


HISTORIES = st.lists(
    st.tuples(st.sampled_from(["add", "add", "del"]), st.integers(0, 2), st.sampled_from([0.0, 0.001, 0.03, 0.2, 5.0])),
    min_size=40,
    max_size=160,
)


@settings(max_examples=25, deadline=None)
@given(HISTORIES, st.sampled_from([26, 28, 30, 32]))
def test_whatever_pods_come_and_go_each_gets_an_address_while_there_is_one(
    history: list[tuple[str, int, float]], size: int
) -> None:
    """ADDs and DELs on three nodes at once, 64 pods at most: every ADD is answered, no address twice, nothing leaks."""

    async def run() -> None:
        store = pool_of("10.0.0.0/26", size)
        nodes = [Node(f"n{number}", store) for number in range(3)]
        live: list[tuple[Node, str]] = []
        asked = 0
        async with AsyncExitStack() as stack:
            for node in nodes:
                await stack.enter_async_context(node.running())
            async with trio.open_nursery() as nursery:

                async def add(node: Node, name: str) -> None:
                    with trio.fail_after(5):
                        await node.add(add_request(name))
                    held(nodes)
                    live.append((node, name))

                for number, (verb, which, pause) in enumerate(history * 2):
                    if verb == "add" and asked < 64:
                        asked += 1
                        nursery.start_soon(add, nodes[which], f"c{number}")
                    elif verb == "del" and live:
                        node, name = live.pop(which * (len(live) - 1) // 2)
                        node.delete(name)
                        asked -= 1
                    await trio.sleep(pause)
            for node, name in live:
                node.delete(name)
            await trio.sleep(1)
            with trio.fail_after(5):
                for node in nodes:
                    await node.flushed()
            at_rest(store, nodes)
            pods = [handle for handle, _n, _k in view(store).allocations().values() if not handle.startswith("ipamd-")]
            assert pods == []

    trio.run(run, clock=MockClock(autojump_threshold=0))
