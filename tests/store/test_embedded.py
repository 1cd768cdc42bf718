"""What the embedded store promises beyond the contract: one file, several processes, refusals in words."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from ipamd.store import embedded, sqlite
from ipamd.store.base import Change, CompactedError, Event, Record, StoreRefusedError, StoreUnavailableError, Watch
from ipamd.store.embedded import EmbeddedStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file is to be."""
    return tmp_path / "store.db"


async def test_records_and_history_survive_reopening(path: Path) -> None:
    """A store opened anew has its records and its revision, and a watch resumes from before."""
    first = EmbeddedStore(path)
    revision = (await first.commit([Change("/a", b"1", 0)])).revision
    await first.aclose()
    second = EmbeddedStore(path)
    assert (await second.read(["/a"])).records == (Record("/a", b"1", revision),)
    async with second.watch() as watch:
        watch.add("/a", revision - 1)
        with trio.fail_after(3):
            assert await anext(aiter(watch)) == [Event("/a", b"1", revision)]
    await second.aclose()


async def test_a_killed_process_loses_nothing_committed(path: Path) -> None:
    """What a process committed before it was killed is there."""
    program = (
        "import os, signal, sys, trio; from pathlib import Path; from ipamd.store.base import Change;"
        "from ipamd.store.embedded import EmbeddedStore; store = EmbeddedStore(Path(sys.argv[1]));"
        "trio.run(store.commit, [Change('/a', b'1', 0)]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = await trio.run_process([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -9
    store = EmbeddedStore(path)
    assert (await store.read(["/a"])).records[0].value == b"1"
    await store.aclose()


async def test_two_stores_on_one_file_see_and_respect_each_other(path: Path) -> None:
    """Stores of two processes share revisions: a stale expectation conflicts, and a watch sees the other's writes."""
    one, two = EmbeddedStore(path), EmbeddedStore(path)
    seen: list[Event] = []

    async def look(watch: Watch) -> None:
        seen.extend(await anext(aiter(watch)))

    async with one.watch() as watch:
        watch.add("/a", (await one.read([])).revision)
        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, watch)
                await trio.testing.wait_all_tasks_blocked(0.1)
                made = await two.commit([Change("/a", b"2", 0)])
    assert seen == [Event("/a", b"2", made.revision)]
    assert (await one.commit([Change("/a", b"1", 0)])).records == {"/a": Record("/a", b"2", made.revision)}
    await one.aclose()
    await two.aclose()


async def test_own_commits_and_added_names_are_seen_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch does not wait for its next look at the file to see this process's commits, or the past of a new name."""
    monkeypatch.setattr(embedded, "POLL_SECONDS", 3600)
    store = EmbeddedStore(path)
    send, receive = trio.open_memory_channel[Event](10)

    async def look(watch: Watch) -> None:
        async for batch in watch:
            for event in batch:
                await send.send(event)

    async with store.watch() as watch, trio.open_nursery() as nursery:
        nursery.start_soon(look, watch)
        await trio.testing.wait_all_tasks_blocked(0.1)
        made = await store.commit([Change("/a", b"1", 0), Change("/b", b"2", 0)])
        await trio.testing.wait_all_tasks_blocked(0.1)
        with trio.fail_after(3):
            watch.add("/a", made.revision - 1)
            assert (await receive.receive()).key == "/a"
            await trio.testing.wait_all_tasks_blocked(0.1)
            changed = await store.commit([Change("/a", b"3", made.revision)])
            assert await receive.receive() == Event("/a", b"3", changed.revision)
        nursery.cancel_scope.cancel()
    await store.aclose()


async def test_stores_that_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Several stores may make the same new file at the same time."""
    for n in range(60):
        stores = [EmbeddedStore(tmp_path / f"{n}.db") for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(store.read, ["/a"])
        for store in stores:
            await store.aclose()


async def test_concurrent_counters_lose_no_increment(path: Path) -> None:
    """Two stores that count in one record by compare-and-swap arrive at the sum."""

    async def count(store: EmbeddedStore) -> None:
        for _ in range(25):
            while True:
                records = (await store.read(["/n"])).records
                value, revision = (int(records[0].value), records[0].revision) if records else (0, 0)
                if (await store.commit([Change("/n", str(value + 1).encode(), revision)])).chosen == 0:
                    break

    stores = [EmbeddedStore(path), EmbeddedStore(path)]
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(count, store)
    assert (await stores[0].read(["/n"])).records[0].value == b"50"
    for store in stores:
        await store.aclose()


async def test_history_is_bounded(path: Path) -> None:
    """The log keeps the last revisions only; a watch from the oldest of them still works, one before does not."""
    store = EmbeddedStore(path, history=5)
    revision = 0
    for n in range(20):
        revision = (await store.commit([Change("/a", str(n).encode(), revision)])).revision
    async with store.watch() as watch:
        watch.add("/a", revision - 5)
        assert [event.value for event in await anext(aiter(watch))] == [b"15", b"16", b"17", b"18", b"19"]
        watch.add("/b", revision - 6)
        with trio.fail_after(3), pytest.raises(CompactedError, match="/b"):
            await anext(aiter(watch))
    await store.aclose()
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM log").fetchone() == (5,)
    database.close()


async def test_a_locked_file_is_unavailable_after_the_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process keeps its transaction open, a commit ends with StoreUnavailableError; reads go on."""
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.1)
    store = EmbeddedStore(path)
    await store.read([])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store.commit([Change("/a", b"1", 0)])
    assert not store.connected
    assert (await store.read(["/a"])).records == ()
    assert store.connected
    other.execute("ROLLBACK")
    other.close()
    assert (await store.commit([Change("/a", b"1", 0)])).chosen == 0
    await store.aclose()


async def test_a_full_disk_refuses_the_commit_and_keeps_what_is_there(path: Path) -> None:
    """A commit for which there is no room is refused whole; the store reads on, and writes what fits."""
    store = EmbeddedStore(path)
    await store.commit([Change("/a", b"1", 0)])
    assert store._file._db is not None  # looks inside: SQLite can be told that the disk is full
    (pages,) = store._file._db.execute("PRAGMA page_count").fetchone()
    store._file._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreRefusedError, match="the disk is full; make room"):
        await store.commit([Change("/b", b"1", 0), Change("/c", b"x" * 100_000, 0)])
    assert [record.key for record in (await store.read([], ["/"])).records] == ["/a"]
    assert (await store.commit([Change("/b", b"1", 0)])).chosen == 0
    await store.aclose()


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """A file of another kind is refused, and left as it is."""
    await trio.Path(path).write_bytes(b"not a database" * 100)
    store = EmbeddedStore(path)
    with pytest.raises(StoreRefusedError, match=r"store\.db: the file is no SQLite database"):
        await store.read(["/a"])
    assert not store.connected
    assert await trio.Path(path).read_bytes() == b"not a database" * 100
    await store.aclose()


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """A path that cannot be opened is named in the error, and works once it can."""
    store = EmbeddedStore(tmp_path / "missing" / "store.db")
    with pytest.raises(StoreUnavailableError, match=r"missing/store\.db: unable to open"):
        await store.read(["/a"])
    (tmp_path / "missing").mkdir()
    await store.read(["/a"])
    await store.aclose()


async def test_a_closed_store_says_so(path: Path) -> None:
    """Calls after closing are refused, and closing twice is closing once."""
    store = EmbeddedStore(path)
    await store.read([])
    await store.aclose()
    await store.aclose()
    assert not store.connected
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.read([])


def test_importing_it_needs_the_standard_library_and_trio_only() -> None:
    """The embedded store loads neither grpc nor protobuf."""
    program = "import sys, ipamd.store.embedded; assert not {'grpc', 'google.protobuf', 'etcd3'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
