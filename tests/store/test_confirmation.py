"""No is answered only after a look at the store: what was made a moment ago counts, and a silent store is told of."""

import json

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.errors import Code, RefusedError
from tests.calico_objects import node_record
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record


def unwatched(node: Node) -> Node:
    """A node whose watch brings nothing for now: what changes in the store it finds by looking."""

    async def nothing(_events: object) -> None:
        pass

    node.sync._take_in = nothing  # type: ignore[method-assign,assignment] # a watch that is slower than the ADD
    return node


async def refusal(node: Node, container: str = "c") -> RefusedError:
    """How an ADD is refused."""
    with pytest.raises(RefusedError) as refused:
        await node.add(add_request(container))
    return refused.value


async def test_a_pool_made_a_moment_ago_serves(autojump_clock: MockClock) -> None:
    """The watch has not told yet: the ADD gets an address of the new pool, not an error."""
    store = MemoryStore(delay=0.01)
    async with unwatched(Node("n1", store)).running() as node:
        store.put(*pool_record("new", "10.0.0.0/24"))
        with trio.fail_after(1):
            assigned = await node.add(add_request("c"))
        assert node.addresses(assigned)[0].startswith("10.0.0.")


async def test_labels_given_a_moment_ago_count(autojump_clock: MockClock) -> None:
    """So do the node's labels, and a pool that was enabled."""
    store = MemoryStore(delay=0.01)
    store.put(*pool_record("rack-0", "10.0.0.0/24", nodeSelector="rack == '0'"))
    async with unwatched(Node("n1", store)).running() as node:
        assert (await refusal(node)).msg.endswith("label the node")
        store.put(keys.NODES + "n1", node_record({"rack": "0"}))
        await node.add(add_request("c"))


async def test_a_limit_raised_a_moment_ago_counts(autojump_clock: MockClock) -> None:
    """The node was refused another block; the new limit gives it one without waiting for the refusal to age."""
    store = MemoryStore(delay=0.01)
    store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":1}')
    store.put(*pool_record("p", "10.0.0.0/24", blockSize=30))
    async with unwatched(Node("n1", store)).running() as node:
        for number in range(4):
            await node.add(add_request(f"c{number}"))
        assert (await refusal(node)).code is Code.BLOCK_LIMIT
        store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":2}')
        with trio.fail_after(0.9):
            await node.add(add_request("c"))


async def test_a_second_pool_made_when_the_first_was_full_counts(autojump_clock: MockClock) -> None:
    """Exhaustion too is confirmed: the ADD is not refused when there is another pool by now."""
    store = MemoryStore(delay=0.01)
    store.put(*pool_record("p", "10.0.0.0/30", blockSize=30))
    async with unwatched(Node("n1", store)).running() as node:
        for number in range(4):
            await node.add(add_request(f"c{number}"))
        assert (await refusal(node)).code is Code.EXHAUSTED
        store.put(*pool_record("q", "10.1.0.0/30", blockSize=30))
        with trio.fail_after(0.9):
            assert node.addresses(await node.add(add_request("c")))[0].startswith("10.1.")


async def test_a_silent_store_is_told_of(autojump_clock: MockClock) -> None:
    """The answer comes from memory, within two seconds, and says so."""
    store = MemoryStore()
    async with Node("n1", store).running() as node:
        store.delay = 60.0
        with trio.fail_after(2):
            error = await refusal(node)
    assert error.code is Code.NO_POOL
    assert error.msg == (
        "cannot assign an IPv4 address to default/pod-c: there is no IPv4 pool; create one; this is what was known last, "
        "the store could not be asked (it did not answer within 1 s)"
    )


async def test_an_absent_store_is_told_of(autojump_clock: MockClock) -> None:
    """Its own words are in the error."""
    store = MemoryStore()
    async with Node("n1", store).running() as node:
        store.away = True
        assert (await refusal(node)).msg.endswith("the store could not be asked (memory: away)")


async def test_a_hundred_refused_pods_cost_one_or_two_reads(autojump_clock: MockClock) -> None:
    """All who are refused at once share a look; yes costs none."""
    store = MemoryStore(delay=0.01)
    store.put(*pool_record("six", "fd00::/64"))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        before = store.calls["read"]
        async with trio.open_nursery() as pods:
            for number in range(100):
                pods.start_soon(refusal, node, f"c{number}")
        assert store.calls["read"] - before in (1, 2)
        before = store.calls["read"]
        await node.add(add_request("six", 6))
        assert store.calls["read"] == before


async def test_what_was_deleted_a_moment_ago_is_gone(autojump_clock: MockClock) -> None:
    """A look also finds what is no longer there, and the words of the refusal are the new ones."""
    store = MemoryStore(delay=0.01)
    store.put(*pool_record("old", "10.0.0.0/24", disabled=True))
    async with unwatched(Node("n1", store)).running() as node:
        store.put(keys.POOLS + "old", None)
        assert "there is no IPv4 pool" in (await refusal(node)).msg


async def test_a_pool_deleted_while_its_adds_wait_refuses_them_with_what_is_left(autojump_clock: MockClock) -> None:
    """Those who waited for it are served by what came in its place, and refused only if nothing did."""
    store = MemoryStore()
    store.put(*pool_record("p", "10.0.0.0/24"))
    store.put(keys.CLUSTER_INFORMATION, json.dumps({"spec": {"datastoreReady": True}}).encode())
    async with Node("n1", store).running() as node:
        for number in range(62):
            await node.add(add_request(f"c{number}"))
        store.away = True
        got: list[str] = []

        async def add(container: str) -> None:
            got.extend(node.addresses(await node.add(add_request(container))))

        async with trio.open_nursery() as pods:
            for number in range(100, 300):
                pods.start_soon(add, f"c{number}")
            await trio.sleep(0.1)
            store.put(keys.POOLS + "p", None)
            store.put(*pool_record("q", "10.1.0.0/20"))
            store.away = False
        assert sum(address.startswith("10.1.") for address in got) > 100
