"""One daemon of the cluster at a time clears away what nobody owns; another goes on when it dies."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.store.base import KeyRange
from ipamd.store.cleaner import Cleaner, Cleaning
from tests.memory_store import MemoryStore
from tests.nodes import Node, now, pool_record

MINUTE = 60
SETTINGS = Cleaning(interval=MINUTE, grace=900_000_000_000)
HOLD = 3 * MINUTE


@pytest.fixture
def store() -> MemoryStore:
    """A store with one pool."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.0.0.0/24"))
    return made


@asynccontextmanager
async def cleaning(name: str, store: MemoryStore) -> AsyncIterator[Cleaner]:
    """A node that takes part; on exit it is dead at once, and says nothing any more."""
    async with Node(name, store).running() as node, trio.open_nursery() as nursery:

        def report(event: str, _values: dict[str, str]) -> None:
            node.reports.append(event)

        cleaner = Cleaner(node.ledger, store, SETTINGS, now, report)
        nursery.start_soon(cleaner.run)
        yield cleaner
        nursery.cancel_scope.cancel()


class Counted:
    """One node's way to the store, which counts how often it walks over handles."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.walks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``Store.list_keys``."""
        self.walks += window.start.startswith(keys.HANDLES)
        return await self._store.list_keys(window)


def leak(store: MemoryStore) -> str:
    """A handle that no block knows; returns its key."""
    key = keys.handle_key("k8s-pod-network.gone")
    store.put(key, b'{"block":{"10.0.9.0/26":1},"deleted":false}')
    return key


async def test_exactly_one_cleans(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Of three nodes that start at once; the record tells which."""
    key = leak(store)
    async with cleaning("n1", store) as one, cleaning("n2", store) as two, cleaning("n3", store) as three:
        await trio.sleep(900 + 5 * MINUTE)
        assert sorted(each.here for each in (one, two, three)) == [False, False, True]
        assert sum(each.handles for each in (one, two, three)) == 1
        assert key not in store.records
        (name,) = [f"n{n}" for n, each in enumerate((one, two, three), 1) if each.here]
        assert json.loads(store.records[keys.CLEANER].value)["node"] == name


async def test_the_others_do_not_look(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Who does not hold the lease reads no handles: 5,000 nodes cost etcd one node's walk."""
    leak(store)
    ways = [Counted(store) for _ in range(3)]
    async with AsyncExitStack() as stack:
        cleaners = [await stack.enter_async_context(cleaning(f"n{n}", way)) for n, way in enumerate(ways)]  # type: ignore[arg-type]
        await trio.sleep(900 + 5 * MINUTE)
        assert [way.walks > 0 for way in ways] == [each.here for each in cleaners]
        assert sum(each.here for each in cleaners) == 1


async def test_another_goes_on_when_it_dies(autojump_clock: MockClock, store: MemoryStore) -> None:
    """After the time of its hold; what the dead one suspected is to be seen twice again."""
    key = leak(store)
    async with cleaning("n1", store) as first:
        await trio.sleep(900)
        assert first.here
    async with cleaning("n2", store) as second:
        await trio.sleep(MINUTE + 1)
        assert not second.here
        await trio.sleep(HOLD)
        assert second.here
        await trio.sleep(800)
        assert key in store.records
        await trio.sleep(200)
        assert key not in store.records


async def test_one_that_stops_in_order_makes_room_at_once(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The next comes with its next turn."""
    async with cleaning("n1", store) as first:
        await trio.sleep(MINUTE + 1)
        async with cleaning("n2", store) as second:
            await first.release()
            assert keys.CLEANER not in store.records
            assert not first.here
            await trio.sleep(MINUTE + 1)
            assert first.here != second.here


async def test_one_that_lost_the_store_does_not_believe_that_it_is_the_one(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """After the time of its hold at the latest; when the store is back one of them is, and no error stays."""
    async with cleaning("n1", store) as one, cleaning("n2", store) as two:
        await trio.sleep(MINUTE + 1)
        assert one.here != two.here
        store.away = True
        await trio.sleep(HOLD)
        assert not one.here
        assert not two.here
        store.away = False
        await trio.sleep(2 * MINUTE)
        assert one.here != two.here


async def test_nothing_is_removed_while_the_datastore_is_locked(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A migration would not know of it."""
    key = leak(store)
    async with cleaning("n1", store) as one:
        await trio.sleep(900)
        store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
        await trio.sleep(3600)
        assert key in store.records
        store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":true}}')
        await trio.sleep(3600)
        assert key not in store.records
        assert one.here
