"""A node whose labels change: what it has of pools that no longer serve it goes back, what pods hold stays."""

import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Committed
from tests.calico_objects import node_record
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import view

NODE = keys.NODES + "n1"


def two_racks(store: MemoryStore, **spec: object) -> None:
    """A pool for each rack, and the node in rack 0."""
    for number in (0, 1):
        selector = f'rack == "{number}"'
        store.put(*pool_record(f"rack-{number}", f"10.{number}.0.0/24", **{"nodeSelector": selector, **spec}))
    store.put(NODE, node_record({"rack": "0"}))


async def test_a_node_that_moves_to_another_rack_gives_everything_idle_back(autojump_clock: MockClock) -> None:
    """Within two seconds: the block of the old rack is gone, one of the new rack is there and has a reserve."""
    store = MemoryStore()
    two_racks(store)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert set(view(store).blocks()) == {block.cidr for block in node.ledger.blocks_of("rack-0")} != set()
        store.put(NODE, node_record({"rack": "1"}))
        await trio.sleep(2)
        assert set(view(store).blocks()) == {block.cidr for block in node.ledger.blocks_of("rack-1")} != set()
        assert node.ledger.available("rack-1") >= 16
        assert not any("ipv4/block/10.0.0." in key for key in store.records)


async def test_running_pods_keep_their_address_and_nothing_else_is_kept(autojump_clock: MockClock) -> None:
    """The old rack's block stays with the pod's address alone until the DEL, then it goes too."""
    store = MemoryStore()
    two_racks(store)
    async with Node("n1", store).running() as node:
        held = await node.add(add_request("a"))
        await node.flushed()
        store.put(NODE, node_record({"rack": "1"}))
        await trio.sleep(2)
        old = [each for place, each in view(store).allocations().items() if place.block == held.places[0].block]
        assert [handle for handle, _node, _kind in old] == ["k8s-pod-network.a"]
        new = await node.add(add_request("b"))
        assert node.addresses(new)[0].startswith("10.1.0.")
        node.delete("a")
        await trio.sleep(2)
        assert held.places[0].block not in view(store).blocks()


async def test_a_pool_that_is_named_keeps_its_reserve_while_pods_hold_addresses(autojump_clock: MockClock) -> None:
    """For who names it, a pool that selects no node is as quick as any other."""
    store = MemoryStore()
    store.put(*pool_record("default", "10.0.0.0/24"))
    store.put(*pool_record("special", "10.1.0.0/24", nodeSelector="!all()"))
    async with Node("n1", store).running() as node:
        await node.add(replace(add_request("a"), named={4: ("special",)}))
        await trio.sleep(2)
        assert node.ledger.available("special") >= 16
        node.delete("a")
        await trio.sleep(130)
        assert node.ledger.blocks_of("special") == []
        assert node.ledger.blocks_of("default") != []


async def test_a_pool_of_some_namespaces_is_claimed_for_when_one_asks(autojump_clock: MockClock) -> None:
    """No block lies idle in it before; the node's own reserve is in the pool that serves everybody."""
    store = MemoryStore()
    store.put(*pool_record("a-team", "10.1.0.0/24", namespaceSelector="team == 'x'", allowedUses=["Workload"]))
    store.put(*pool_record("default", "10.0.0.0/24"))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert node.ledger.blocks_of("a-team") == []
        others = await node.add(replace(add_request("a"), namespace_labels={"team": "y"}))
        team = await node.add(replace(add_request("b"), namespace_labels={"team": "x"}))
        assert [node.addresses(each)[0][:7] for each in (others, team)] == ["10.0.0.", "10.1.0."]
        await trio.sleep(1)
        assert node.ledger.available("a-team") >= 16


async def test_the_second_pool_serves_when_the_first_is_full(autojump_clock: MockClock) -> None:
    """Pools in name order: the last address of the first, then the second, without a failure in between."""
    store = MemoryStore()
    store.put(*pool_record("first", "10.0.0.0/29", blockSize=29))
    store.put(*pool_record("second", "10.1.0.0/24", blockSize=29))
    async with Node("n1", store).running() as node:
        got = [node.addresses(await node.add(add_request(f"c{number}")))[0] for number in range(10)]
        assert [address[:5] for address in got] == ["10.0."] * 8 + ["10.1."] * 2
        assert len(set(got)) == 10


async def test_an_add_that_waits_for_a_pool_that_stops_serving_is_refused_at_once(autojump_clock: MockClock) -> None:
    """The labels change while it waits: it hears what excludes the node, and leaves no demand behind."""
    store = MemoryStore()
    two_racks(store)
    refusals: list[str] = []
    async with Node("n1", store).running() as node, trio.open_nursery() as adds:
        await trio.sleep(1)
        store.away = True

        async def add(container: str) -> None:
            try:
                await node.add(add_request(container))
            except RefusedError as error:
                refusals.append(error.msg)

        for number in range(100):
            adds.start_soon(add, f"c{number}")
        await trio.sleep(0.1)
        assert node.ledger.reserve("rack-0", 0).waiting > 0
        node.record([Committed(NODE, store.revision + 1, node_record({"rack": "2"}))])
        await trio.sleep(0.1)
        assert node.ledger.reserve("rack-0", 0).waiting == 0
    assert len(refusals) + len(node.ledger.holdings) == 100
    assert refusals[0].partition(": ")[2] == (
        'pool rack-0 excludes node n1 by its nodeSelector (rack == "0"); '
        'pool rack-1 excludes node n1 by its nodeSelector (rack == "1"); label the node; this is what was known last, the '
        "store could not be asked (memory: away)"
    )
