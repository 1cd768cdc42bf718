"""A release by Calico's programs takes two steps, block and handle: what this node writes between them is made good."""

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import ChangeSet, KeyRange, Outcome, Snapshot, Store
from tests.calico.cluster import Calicoctl
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record
from tests.store.truth import at_rest


class Distant:
    """A store as a program sees it that takes its time before each call (s)."""

    def __init__(self, store: Store, lag: float) -> None:
        self._store, self._lag = store, lag

    async def read(self, keys: list[str], prefixes: list[str] | tuple[str, ...] = ()) -> Snapshot:
        """Read, late."""
        await trio.sleep(self._lag)
        return await self._store.read(keys, prefixes)

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """Commit, late."""
        await trio.sleep(self._lag)
        return await self._store.commit(*alternatives, window=window)


def store_with_pool() -> MemoryStore:
    """A store with one pool of one block."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/26", blockSize=26))
    return store


def calicoctl(store: MemoryStore, lag: float) -> Calicoctl:
    """``calicoctl`` as slow as that."""
    return Calicoctl(Distant(store, lag), lambda: now().unix)  # type: ignore[arg-type]


async def released(node: Node, store: MemoryStore, lag: float = 0.05) -> None:
    """A pod ``a`` comes, and somebody releases its address, so slowly."""
    (address,) = node.addresses(await node.add(add_request("a")))
    await node.flushed()
    assert await calicoctl(store, lag).release(address)


async def quiet(store: MemoryStore) -> bool:
    """Whether two minutes from now on nobody asks the store for two more."""
    await trio.sleep(120)
    calls = store.calls.copy()
    await trio.sleep(120)
    return store.calls == calls


@pytest.mark.parametrize("lag", [0.02, 0.05, 0.4, 3.0, 12.0])
async def test_the_handle_of_a_living_pod_that_was_released_counts_its_address_again(
    autojump_clock: MockClock, lag: float
) -> None:
    """``calicoctl ipam release`` frees the address, the node writes it again, and only then is its count lowered."""
    store = store_with_pool()
    async with Node("n1", store).running() as node:
        await released(node, store, lag)
        await trio.sleep(60)
        at_rest(store, [node])


async def test_the_handle_of_a_reserve_that_was_released_from_counts_what_is_reserved(
    autojump_clock: MockClock,
) -> None:
    """The same of an address in reserve, which the node reserves again as an ADD makes it do."""
    store = store_with_pool()
    async with Node("n1", store).running() as node:
        await node.add(add_request("a"))
        await node.flushed()
        block = node.ledger.blocks["10.0.0.0/26"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calicoctl(store, 1.0).release, block.address(block.line()[0]))
            while block.line()[0] == 1:
                await trio.sleep(0.1)
            for container in "bcdefgh":
                await node.add(add_request(container))
            await node.flushed()
        await trio.sleep(60)
        at_rest(store, [node])


async def test_nothing_is_looked_at_for_ever(autojump_clock: MockClock) -> None:
    """A minute after a release the node has done with it: no read, no transaction."""
    store = store_with_pool()
    async with Node("n1", store).running() as node:
        await released(node, store)
        assert await quiet(store)


async def test_what_is_done_now_and_then_waits_for_no_look(autojump_clock: MockClock) -> None:
    """The last looks at a handle are half a minute apart; a reserve that grew shrinks in between as ever."""
    store = store_with_pool()
    async with Node("n1", store, ReservePolicy(4, 64, 1_000_000_000)).running() as node:
        await released(node, store)
        await trio.sleep(35)
        node.ledger.reserve("p", 0).level = 8
        await trio.sleep(12)
        assert node.ledger.reserve("p", 0).level == 4


async def test_a_pod_that_is_gone_meanwhile_gets_no_handle(autojump_clock: MockClock) -> None:
    """Released by hand, written again, deleted: whatever the count was then, nothing is left."""
    store = store_with_pool()
    async with Node("n1", store).running() as node:
        (address,) = node.addresses(await node.add(add_request("a")))
        await node.flushed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calicoctl(store, 1.0).release, address)
            await trio.sleep(6)
            node.delete("a")
        await trio.sleep(60)
        at_rest(store, [node])


async def test_a_handle_of_a_block_that_cannot_be_read_is_let_be(autojump_clock: MockClock) -> None:
    """It cannot be mended as long as nobody mends the block: there is nothing to look at again and again."""
    store = store_with_pool()
    async with Node("n1", store).running() as node:
        await released(node, store)
        store.put(keys.block_key(parse_cidr("10.0.0.0/26")), b"{")
        assert await quiet(store)


async def test_who_lowers_a_count_all_the_time_is_met_with_less_and_less_zeal(autojump_clock: MockClock) -> None:
    """A program that is wrong for ever costs a transaction each half minute, not one each second."""
    store = store_with_pool()
    async with Node("n1", store).running() as node:
        key = keys.handle_key("k8s-pod-network.a")
        await released(node, store)
        commits = store.calls["commit"]
        for _ in range(6000):
            await trio.sleep(0.1)
            if key in store.records:
                store.put(key, None)
        assert store.calls["commit"] - commits < 30
        await trio.sleep(60)
        at_rest(store, [node])
