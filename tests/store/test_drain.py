"""Drain: the node gives back all that no pod holds, and what remains in the store are Calico's own records."""

import pytest
import trio
import trio.testing

from ipamd.core import keys
from ipamd.core.errors import Code, RefusedError
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import Change
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record


@pytest.fixture
async def store() -> MemoryStore:
    """A store with a pool of four small blocks."""
    made = MemoryStore()
    await made.commit([Change(*pool_record("four", "10.0.0.0/27", blockSize=29), 0)])
    return made


async def drain(node: Node) -> None:
    """Begin, and wait for the end."""
    node.ledger.draining = True
    node.waiting.serve()
    node.writer.wake(hurry=True)
    while not node.ledger.drained:
        await trio.sleep(0.01)


async def test_what_remains_is_what_pods_hold(store: MemoryStore, autojump_clock: trio.testing.MockClock) -> None:
    """The reserve, its handle and the empty blocks are gone; the pod's block, handle and affinity are there."""
    node = Node("n1", store, ReservePolicy(minimum=8))
    async with node.running():
        (place,) = (await node.add(add_request("a"))).places
        while len(node.ledger.blocks) < 2:
            await trio.sleep(0.01)
        await drain(node)
    left = {key for key in store.records if not key.startswith(keys.POOLS)}
    net = node.ledger.blocks[place.block].net
    assert left == {keys.block_key(net), keys.affinity_key("n1", net), keys.handle_key("k8s-pod-network.a")}


async def test_a_node_without_pods_leaves_nothing(store: MemoryStore, autojump_clock: trio.testing.MockClock) -> None:
    """Not even its last block."""
    node = Node("n1", store, ReservePolicy(minimum=8))
    async with node.running():
        while node.ledger.available("four") < 8:
            await trio.sleep(0.01)
        await drain(node)
    assert all(key.startswith(keys.POOLS) for key in store.records)


async def test_a_draining_node_assigns_nothing(store: MemoryStore, autojump_clock: trio.testing.MockClock) -> None:
    """A new ADD is told to go elsewhere, one that waits too; a pod that is there is answered, and may go."""
    node = Node("n1", store, ReservePolicy(minimum=4))
    refusals: list[RefusedError] = []

    async def wait() -> None:
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("waits"))
        refusals.append(refused.value)

    async with node.running():
        held = await node.add(add_request("a"))
        await node.flushed()
        store.away = True
        while node.ledger.available("four"):
            await node.add(add_request(f"b{node.ledger.available('four')}"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            node.ledger.draining = True
            node.waiting.serve()
        store.away = False
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("c"))
        assert await node.add(add_request("a")) == held
        node.delete("a")
        await drain(node)
    for refusal in (*refusals, refused.value):
        assert refusal.code is Code.TRY_AGAIN_LATER
    assert refused.value.msg == (
        "cannot assign an address to default/pod-c: node n1 is being drained of its addresses; "
        "schedule the pod on another node, or POST /v1/undrain"
    )
    assert keys.handle_key("k8s-pod-network.a") not in store.records


async def test_a_drain_can_be_ended(store: MemoryStore, autojump_clock: trio.testing.MockClock) -> None:
    """Undrained, the node claims and reserves as at its start."""
    node = Node("n1", store, ReservePolicy(minimum=4))
    async with node.running():
        await drain(node)
        node.ledger.draining = False
        node.writer.wake(hurry=True)
        assert (await node.add(add_request("a"))).places
        assert now().boot < 60_000_000_000
