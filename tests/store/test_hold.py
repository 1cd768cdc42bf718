"""A key that one daemon of the cluster holds: taken, kept, lost, released; on every store."""

import pytest
import trio
from trio.testing import MockClock

from ipamd.store.base import Change, Store, StoreUnavailableError
from ipamd.store.hold import Hold
from tests.memory_store import MemoryStore
from tests.store.conftest import Subject


@pytest.fixture
def store(subject: Subject) -> Store:
    """The store under test."""
    return subject.store


@pytest.fixture
def key(subject: Subject) -> str:
    """The key to hold."""
    return subject.root + "key"


async def test_one_holds_it(store: Store, key: str) -> None:
    """Who comes second does not get it, and the first has it still."""
    first, second = Hold(store, key, 60), Hold(store, key, 60)
    assert not first.held
    assert await first.take(b"first")
    assert first.held
    assert not await second.take(b"second")
    assert not second.held
    record = await first.renew()
    assert record is not None
    assert record.value == b"first"
    assert first.held


async def test_who_does_not_renew_loses_it(store: Store, key: str) -> None:
    """After the lease's time another takes it; whoever had it learns so."""
    first, second = Hold(store, key, 1), Hold(store, key, 60)
    assert await first.take(b"first")
    with trio.fail_after(10):
        while not await second.take(b"second"):
            await trio.sleep(0.05)
    assert not first.held
    record = await first.renew()
    assert record is not None
    assert record.value == b"second"
    assert not first.held


async def test_what_is_released_can_be_taken_at_once(store: Store, key: str) -> None:
    """Also when nobody has heard of it for long."""
    first, second = Hold(store, key, 60), Hold(store, key, 60)
    await first.take(b"first")
    await first.release()
    assert not first.held
    assert await second.take(b"second")
    await first.release()  # it is not ours any more
    assert await second.renew() is not None
    assert second.held


async def test_it_is_taken_from_a_holder_that_is_known(store: Store, key: str) -> None:
    """Only over the very record that was seen; the one who had it learns so, and his lease takes nothing along."""
    first, second = Hold(store, key, 60), Hold(store, key, 60)
    await first.take(b"first")
    (seen,) = (await store.read([key])).records
    assert await second.take(b"second", over=seen)
    third = Hold(store, key, 60)
    assert not await third.take(b"third", over=seen)
    record = await first.renew()
    assert record is not None
    assert record.value == b"second"
    assert not first.held
    await first.release()
    assert second.held
    assert await second.renew() is not None


async def test_a_key_that_somebody_deleted_is_lost(store: Store, key: str) -> None:
    """The next word of its holder says so, although the lease lasts."""
    hold = Hold(store, key, 60)
    await hold.take(b"mine")
    (seen,) = (await store.read([key])).records
    await store.commit([Change(key, None, seen.revision)])
    assert await hold.renew() is None
    assert not hold.held
    assert await hold.take(b"mine again")


async def test_it_is_believed_for_as_long_as_was_said_before_the_word_was_sent(autojump_clock: MockClock) -> None:
    """The store may have counted from the moment in which a slow request was sent: the answer's way does not count."""
    store = MemoryStore(delay=4.0)  # one call
    hold = Hold(store, "/key", 20.0)
    assert await hold.take(b"mine")  # granted at 4, written at 8
    await trio.sleep(11.9)
    assert hold.held
    await trio.sleep(0.2)  # 20.1 after the request for the lease was sent
    assert not hold.held


async def test_a_renewal_that_failed_prolongs_nothing(autojump_clock: MockClock) -> None:
    """The store is away: after the time of the last word that it took the key is not believed any more."""
    store = MemoryStore()
    hold = Hold(store, "/key", 20.0)
    await hold.take(b"mine")
    await trio.sleep(10)
    await hold.renew()
    store.away = True
    for _ in range(3):
        await trio.sleep(6)
        assert hold.held
        with pytest.raises(StoreUnavailableError):
            await hold.renew()
    await trio.sleep(1.9)
    assert hold.held
    await trio.sleep(0.2)
    assert not hold.held
    store.away = False
    assert await hold.renew() is None  # the store has ended it too
    assert not hold.held
