"""An etcd that hangs, dies, comes back, or has several members, as the store's callers see it."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ipamd.store.base import Change, CompactedError, Event, StoreUnavailableError, Watch
from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.etcd_process import EtcdCluster, EtcdProcess, free_port

pytestmark = pytest.mark.real


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd of the test's own."""
    with EtcdProcess(tmp_path) as process:
        yield process


@asynccontextmanager
async def opened(*endpoints: str, timeout: float = 5.0) -> AsyncIterator[EtcdStore]:  # noqa: ASYNC109 - a setting
    """A store for the time of a test."""
    store = EtcdStore(EtcdSettings(endpoints=endpoints, timeout=timeout))
    try:
        yield store
    finally:
        await store.aclose()


async def eventually(store: EtcdStore, within: float) -> float:
    """Read until it succeeds; returns the seconds that it took, and fails after ``within``."""
    started = time.monotonic()
    with trio.fail_after(within):
        while True:
            try:
                await store.read(["/a"])
                return time.monotonic() - started
            except StoreUnavailableError:
                await trio.sleep(0.02)


async def take(watch: Watch, count: int, within: float = 10.0) -> list[Event]:
    """The next ``count`` events."""
    events: list[Event] = []
    with trio.fail_after(within):
        while len(events) < count:
            events += await anext(aiter(watch))
    return events


async def test_a_hung_etcd_is_unavailable_within_the_deadline_and_recovers(own: EtcdProcess) -> None:
    """Calls to a stopped etcd end in time with an error that names it; once it goes on, so do calls."""
    async with opened(own.endpoint, timeout=0.5) as store:
        await store.read(["/a"])
        own.pause()
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=own.endpoint):
            await store.read(["/a"])
        assert 0.4 < time.monotonic() - started < 1.0
        assert not store.connected
        with pytest.raises(StoreUnavailableError):
            await store.commit([Change("/a", b"1", 0)])
        own.resume()
        assert await eventually(store, within=2.0) < 2.0
        assert store.connected


async def test_an_etcd_that_hung_until_its_connection_was_given_up_recovers(own: EtcdProcess) -> None:
    """After a hang that outlasts the keepalive, and so the connection, calls recover within two seconds as well."""
    settings = EtcdSettings(endpoints=(own.endpoint,), timeout=0.5, keepalive=0.5, keepalive_timeout=0.3)
    store = EtcdStore(settings)
    async with store.watch() as watch:
        watch.add("/a", (await store.read(["/a"])).revision)
        own.pause()
        for _ in range(4):
            with pytest.raises(StoreUnavailableError):
                await store.read(["/a"])
        own.resume()
        assert await eventually(store, within=2.0) < 2.0
        revision = own.put("/a", b"1")
        assert await take(watch, 1) == [Event("/a", b"1", revision)]
    await store.aclose()


async def test_no_etcd_is_noticed_at_once(tmp_path: Path) -> None:
    """Where nothing listens, calls fail at once and say so; the etcd that is started then is found."""
    process = EtcdProcess(tmp_path)
    async with opened(process.endpoint) as store:
        with trio.fail_after(3), pytest.raises(StoreUnavailableError, match="Connection refused"):
            await store.read(["/a"])
        with process:
            assert await eventually(store, within=3.0) < 2.0


async def test_a_watch_survives_kill_and_restart(own: EtcdProcess) -> None:
    """A watch goes on after etcd was killed and started again: no change is lost, none comes twice."""
    async with opened(own.endpoint) as store, store.watch() as watch:
        watch.add("/w/", (await store.read([])).revision, prefix=True)
        expected = [Event("/w/1", b"1", own.put("/w/1", b"1"))]
        assert await take(watch, 1) == expected
        own.restart()
        expected = [Event("/w/2", b"2", own.put("/w/2", b"2")), Event("/w/1", None, own.delete("/w/1"))]
        assert await take(watch, 2) == expected
        own.restart()
        watch.add("/k", (await eventually(store, 5), own.revision())[1])
        expected = [Event("/k", b"3", own.put("/k", b"3")), Event("/w/3", b"3", own.put("/w/3", b"3"))]
        assert sorted(await take(watch, 2), key=lambda event: event.revision) == expected


async def test_writes_during_restarts_are_all_seen(own: EtcdProcess) -> None:
    """A writer and a watch beside restarts of etcd: the watch sees each committed value once and in order."""
    async with opened(own.endpoint, timeout=1.0) as store, store.watch() as watch:
        watch.add("/n", (await store.read(["/n"])).revision)
        done = trio.Event()
        count = 0

        async def write() -> None:
            nonlocal count
            while not done.is_set():
                try:
                    now = await store.read(["/n"])
                    count, revision = (int(now.records[0].value), now.records[0].revision) if now.records else (0, 0)
                    await store.commit([Change("/n", str(count + 1).encode(), revision)])
                except StoreUnavailableError:
                    await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for written in (10, 20, 30):
                while count < written:
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(own.restart)
            done.set()
        await eventually(store, 5)
        last = int((await store.read(["/n"])).records[0].value)
        assert [event.value for event in await take(watch, last)] == [str(n + 1).encode() for n in range(last)]


async def test_a_commit_whose_reply_is_lost_has_an_unknown_outcome(own: EtcdProcess) -> None:
    """A commit under way while etcd hangs raises StoreUnavailableError, and may take effect all the same."""
    async with opened(own.endpoint, timeout=0.5) as store:
        await store.read(["/a"])
        own.pause()
        with pytest.raises(StoreUnavailableError, match="cannot commit"):
            await store.commit([Change("/a", b"1", 0)])
        own.resume()
        await eventually(store, 5)
        assert own.get_prefix("/a") in ({}, {"/a": b"1"})


async def test_a_cancelled_call_is_given_up_at_once(own: EtcdProcess) -> None:
    """Cancelling the task that waits for a call ends the wait at once, and the store works on."""
    async with opened(own.endpoint) as store:
        await store.read(["/a"])
        own.pause()
        started = time.monotonic()
        with trio.move_on_after(0.1):
            await store.read(["/a"])
        assert time.monotonic() - started < 0.5
        own.resume()
        await eventually(store, 5)


async def test_a_long_absence_costs_neither_threads_nor_cpu(own: EtcdProcess) -> None:
    """While etcd is away, a watch waits and tries again without spinning or piling up threads."""
    async with opened(own.endpoint, timeout=0.5) as store, store.watch() as watch:
        for n in range(20):
            watch.add(f"/a/{n}", 1)
        await store.read([])
        own.put("/a/0", b"")
        await take(watch, 1)
        before = threading.active_count()
        own.pause()
        own.kill()
        used, started = time.process_time(), time.monotonic()
        highest = before
        while time.monotonic() - started < 5:
            await trio.sleep(0.1)
            highest = max(highest, threading.active_count())
        assert time.process_time() - used < 2  # spinning would take 5, and threads that other tests left take some
        assert highest <= before + 5  # each try that left one behind would make more
        own.start()
        expected = Event("/a/7", b"back", own.put("/a/7", b"back"))
        assert await take(watch, 1) == [expected]


async def test_closing_leaves_no_threads(own: EtcdProcess) -> None:
    """After a watch and its store are closed, their threads end."""
    before = set(threading.enumerate())
    async with opened(own.endpoint) as store, store.watch() as watch:
        watch.add("/a", 1)
        await store.read([])
        own.put("/a", b"")
        await take(watch, 1)
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.read([])

    def left() -> list[threading.Thread]:  # Trio keeps idle workers for a while, which is its own affair
        new = set(threading.enumerate()) - before
        return [thread for thread in new if not thread.name.startswith(("Trio", "trio"))]

    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        await trio.to_thread.run_sync(left()[0].join, 0.1)
    assert left() == []


async def test_a_watch_whose_revisions_are_compacted_meanwhile(own: EtcdProcess) -> None:
    """A watch that was away while its revisions were compacted says so, and goes on with the names added then."""
    async with opened(own.endpoint, timeout=1.0) as store, store.watch() as watch:
        now = (await store.read([])).revision
        watch.add("/a", now)
        watch.add("/b", now)
        own.put("/a", b"1")
        await take(watch, 1)
        known, own.endpoint = own.endpoint, f"http://127.0.0.1:{free_port()}"
        own.restart()  # where the watch does not see it
        own.put("/a", b"2")
        own.compact(own.put("/a", b"3"))
        own.endpoint = known
        own.restart()
        with pytest.raises(CompactedError, match=r"/[ab] from where it stopped"):
            await take(watch, 1)
        now = (await store.read([])).revision
        watch.add("/a", now)
        watch.add("/b", now)
        expected = [Event("/a", b"4", own.put("/a", b"4")), Event("/b", b"5", own.put("/b", b"5"))]
        assert sorted(await take(watch, 2), key=lambda event: event.revision) == expected


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members."""
    with EtcdCluster(tmp_path_factory.mktemp("cluster")) as members:
        yield members


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_another_member_takes_over(cluster: EtcdCluster, how: str) -> None:
    """When the member in use dies or hangs, calls and the watch go on with another one."""
    async with opened(*cluster.endpoints, timeout=2.0) as store, store.watch() as watch:
        watch.add(f"/{how}", (await store.read([])).revision)
        lost = cluster.members[0]  # the first endpoint is the one in use
        (lost.kill if how == "kill" else lost.pause)()
        try:
            assert await eventually(store, within=6.0) < 5.0
            revision = (await store.commit([Change(f"/{how}", b"1", 0)])).revision
            assert await take(watch, 1) == [Event(f"/{how}", b"1", revision)]
        finally:
            if how == "kill":
                lost.start()
            else:
                lost.resume()


async def test_a_hung_member_is_noticed_by_the_watch_alone(cluster: EtcdCluster) -> None:
    """A watch whose member hangs moves to another one although no call is made that would notice."""
    settings = EtcdSettings(endpoints=cluster.endpoints, keepalive=0.5, keepalive_timeout=0.3)
    store = EtcdStore(settings)
    async with store.watch() as watch, opened(cluster.endpoints[1], timeout=1.0) as other:
        watch.add("/alone", (await store.read([])).revision)
        first = await other.commit([Change("/alone", b"1", 0)])
        await take(watch, 1)
        await trio.sleep(0.5)  # gRPC's own pings follow data; only the keepalive notices a hang in silence
        cluster.members[0].pause()
        try:
            await eventually(other, within=6.0)
            written = await other.commit([Change("/alone", b"2", first.revision)])
            assert await take(watch, 1, within=6.0) == [Event("/alone", b"2", written.revision)]
        finally:
            cluster.members[0].resume()
    await store.aclose()


async def test_a_dead_member_is_passed_over_at_the_start(cluster: EtcdCluster, tmp_path: Path) -> None:
    """A store whose first endpoints do not answer finds the one that does with its first call."""
    nobody = EtcdProcess(tmp_path).endpoint
    async with opened(nobody, cluster.endpoints[1]) as store:
        with trio.fail_after(4):
            await store.read(["/a"])


async def test_no_member_at_all(tmp_path: Path) -> None:
    """If no endpoint answers, the error names each of them with its cause."""
    one, two = EtcdProcess(tmp_path).endpoint, EtcdProcess(tmp_path).endpoint
    async with opened(one, two) as store:
        with pytest.raises(StoreUnavailableError, match="refused") as caught:
            await store.read(["/a"])
    assert one in str(caught.value)
    assert two in str(caught.value)
