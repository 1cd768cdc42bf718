"""Bursts: many ADDs at a rate, in few transactions, each with its own address."""

import pytest
import trio

from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import at_rest


@pytest.mark.parametrize(("rate", "transactions"), [(10_000, 80), (1_000, 200)])
async def test_a_burst_of_a_thousand(autojump_clock: trio.testing.MockClock, rate: int, transactions: int) -> None:
    """1,000 ADDs at a rate a second get 1,000 addresses, none waits longer than a second, in few transactions."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "192.168.0.0/16"))
    slowest = 0.0
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        before = store.calls["commit"]

        async def one(index: int) -> None:
            nonlocal slowest
            began = trio.current_time()
            await node.add(add_request(f"c{index}"))
            slowest = max(slowest, trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for index in range(1000):
                nursery.start_soon(one, index)
                await trio.sleep(1 / rate)
        await node.flushed()
        spent = store.calls["commit"] - before
        await trio.sleep(1)
        at_rest(store, [node])
        assert len(node.ledger.holdings) == 1000
        assert spent <= transactions
        assert slowest < 1


async def test_a_burst_of_dels_is_a_handful_of_transactions(autojump_clock: trio.testing.MockClock) -> None:
    """300 pods that go at once leave nothing, in few transactions; their addresses are not all kept."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "192.168.0.0/16"))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        for index in range(300):
            await node.add(add_request(f"c{index}"))
        await node.flushed()
        before = store.calls["commit"]
        for index in range(300):
            node.delete(f"c{index}")
        await node.flushed()
        assert store.calls["commit"] - before <= 30
        await trio.sleep(600)
        at_rest(store, [node])
        assert len(node.ledger.blocks) == 1
        assert node.ledger.available("p") <= 32
