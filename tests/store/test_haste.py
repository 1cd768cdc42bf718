"""Changes are gathered for a while before they are written, but not where somebody waits for them, or soon will."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.records import BlockRecord
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record

GATHERED = 0.1
"""How long changes are gathered for that nobody waits for (s)."""


def pool_of(cidr: str, size: int, delay: float = 0.001) -> MemoryStore:
    """A store with one pool, cut into blocks of a prefix length."""
    store = MemoryStore(delay=delay)
    store.put(*pool_record("p", cidr, blockSize=size))
    return store


async def took(work: Callable[[], Awaitable[object]]) -> float:
    """How long something takes (s)."""
    began = trio.current_time()
    await work()
    return trio.current_time() - began


async def freed(container: str, at: Node, waits: Node) -> float:
    """How long after a DEL at a node an ADD that waits, for a while already, at another gets the address (s)."""
    done: list[float] = []

    async def wait() -> None:
        await waits.add(add_request("waits"))
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.3)
        began = trio.current_time()
        at.delete(container)
    return done[0] - began


async def test_an_address_that_is_given_up_here_goes_to_who_waits(autojump_clock: MockClock) -> None:
    """The pool is used up and an ADD waits: the DEL of another pod of the node is written at once."""
    async with Node("n1", pool_of("10.0.0.0/29", 29)).running() as node:
        await trio.sleep(2)
        for index in range(8):
            await node.add(add_request(f"c{index}"))
        await trio.sleep(1)
        assert await freed("c3", node, node) < GATHERED / 2


async def test_an_address_that_is_given_up_elsewhere_goes_to_who_waits(autojump_clock: MockClock) -> None:
    """The same on a node that was told that the pool is used up, long before the DEL."""
    store = pool_of("10.0.0.0/28", 29)
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(2)
        for index in range(8):
            await one.add(add_request(f"one{index}"))
            await two.add(add_request(f"two{index}"))
        await trio.sleep(1)
        assert await freed("two3", two, one) < GATHERED / 2


async def test_an_address_that_is_asked_for_is_given_back_at_once(autojump_clock: MockClock) -> None:
    """A pod asks for one that another node has in reserve: neither node gathers anything first."""
    store = pool_of("10.0.0.0/24", 26)
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(2)
        block = next(iter(two.ledger.blocks.values()))
        asking = replace(add_request("x"), addresses={4: block.net.base + block.line()[3]})
        assert await took(lambda: one.add(asking)) < GATHERED / 2


async def test_a_living_pods_address_that_somebody_freed_is_taken_again_at_once(autojump_clock: MockClock) -> None:
    """Anybody may take it in the meantime."""
    store = pool_of("10.0.0.0/24", 26)
    async with Node("n1", store).running() as node:
        await trio.sleep(2)
        place = (await node.add(add_request("x"))).places[0]
        await node.flushed()
        await trio.sleep(1)
        key = keys.block_key(node.ledger.blocks[place.block].net)
        image = BlockRecord(store.records[key].value)
        image.free(place.ordinal)
        store.put(key, image.encode())
        began = trio.current_time()
        while BlockRecord(store.records[key].value).owner(place.ordinal) is None:
            await trio.sleep(0.001)
        assert trio.current_time() - began < GATHERED / 2


async def test_a_conflict_does_not_put_off_what_is_urgent(autojump_clock: MockClock) -> None:
    """A reserve runs low, and somebody else changes the block as it is filled: it is filled a moment later."""
    store = pool_of("10.0.0.0/16", 26, delay=0.002)
    async with Node("n1", store).running() as node:
        await trio.sleep(2)
        for index in range(9):
            await node.add(add_request(f"c{index}"))
        began, commits = trio.current_time(), store.calls["commit"]
        while store.calls["commit"] == commits:
            await trio.sleep(0.001)
        key = keys.block_key(next(iter(node.ledger.blocks.values())).net)
        store.put(key, BlockRecord(store.records[key].value).encode())
        while node.ledger.available("p") < 16:
            await trio.sleep(0.001)
        assert node.writer.progress.conflicts == 1
        assert trio.current_time() - began < GATHERED


@pytest.mark.parametrize("apart", [0.015, 0.025, 0.033, 0.05, 0.09, 0.12])
async def test_blocks_are_claimed_in_time_while_pods_keep_coming(autojump_clock: MockClock, apart: float) -> None:
    """There is always something to flush, and yet the next block is there before the last is used up: no ADD waits."""
    async with Node("n1", pool_of("10.0.0.0/16", 26, delay=0.005)).running() as node:
        await trio.sleep(2)
        for index in range(300):
            request = add_request(f"c{index}")
            assert await took(lambda request=request: node.add(request)) == 0  # type: ignore[misc]
            await trio.sleep(apart)
