"""What every store promises; run against each of them."""

from collections.abc import AsyncGenerator, Sequence

import pytest
import trio
import trio.testing

from ipamd.store.base import (
    Change,
    ChangeSet,
    CompactedError,
    Event,
    KeyRange,
    Outcome,
    Record,
    Store,
    StoreRefusedError,
    Watch,
)
from tests.store.conftest import Subject

PATIENCE = 5.0
"""Seconds within which a watch must have said what it has to say."""


@pytest.fixture
def store(subject: Subject) -> Store:
    """The store under test."""
    return subject.store


@pytest.fixture
def root(subject: Subject) -> str:
    """What the test's keys begin with."""
    return subject.root


async def write(store: Store, key: str, value: bytes | None) -> int:
    """Set a record whatever it is now; returns the revision."""
    now = await store.read([key])
    outcome = await store.commit([Change(key, value, now.records[0].revision if now.records else 0)])
    assert outcome.chosen == 0
    return outcome.revision


async def take(watch: Watch, count: int) -> list[Event]:
    """The next ``count`` events, in the order in which they come."""
    events: list[Event] = []
    batches = aiter(watch)
    try:
        with trio.fail_after(PATIENCE):
            while len(events) < count:
                events += await anext(batches)
    finally:
        if isinstance(batches, AsyncGenerator):  # a store may iterate by one, which wants to be closed
            await batches.aclose()
    return events


def named(records: Sequence[Record]) -> dict[str, bytes]:
    """Values by key."""
    return {record.key: record.value for record in records}


async def test_read_gives_keys_and_prefixes_and_leaves_out_absent_ones(store: Store, root: str) -> None:
    """A read returns the records that exist, of the keys and below the prefixes, each once."""
    for name in ("a", "b/1", "b/2", "b0", "c"):
        await write(store, root + name, name.encode())
    snapshot = await store.read([root + "a", root + "b/1", root + "absent"], [root + "b/", root + "none/"])
    assert sorted(record.key for record in snapshot.records) == [root + name for name in ("a", "b/1", "b/2")]
    assert named(snapshot.records)[root + "b/2"] == b"b/2"


async def test_read_of_nothing_tells_the_revision(store: Store, root: str) -> None:
    """A read that finds nothing still tells the store's revision."""
    revision = await write(store, root + "a", b"1")
    assert await store.read([root + "absent"]) == await store.read([], [root + "absent/"])
    assert (await store.read([])).revision == revision


async def test_read_of_many_keys_and_large_prefixes(store: Store, root: str) -> None:
    """A read is complete beyond the limits of a single request of the store."""
    for start in range(0, 1200, 100):
        made = [Change(f"{root}p/{n:04}", str(n).encode(), 0) for n in range(start, start + 100)]
        assert (await store.commit(made)).chosen == 0
    everything = {f"{root}p/{n:04}": str(n).encode() for n in range(1200)}
    assert named((await store.read([], [root + "p/"])).records) == everything
    some = [f"{root}p/{n:04}" for n in range(250)]
    assert list(named((await store.read(some)).records)) == some


async def test_read_of_many_keys_is_of_one_revision(store: Store, root: str) -> None:
    """A read of more keys than fit one request shows no commit half: all its records stood together."""
    keys = [f"{root}{n:03}" for n in range(110)]
    await store.commit([Change(key, b"0", 0) for key in keys[:60]])
    await store.commit([Change(key, b"0", 0) for key in keys[60:]])
    both = (keys[0], keys[-1])
    expected = {record.key: record.revision for record in (await store.read(both)).records}
    seen: set[tuple[bytes, bytes]] = set()
    stop = trio.Event()

    async def read() -> None:
        while not stop.is_set():
            values = named((await store.read(keys)).records)
            seen.add((values[keys[0]], values[keys[-1]]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for n in range(1, 100):
            value = str(n).encode()
            outcome = await store.commit([Change(key, value, expected[key]) for key in both])
            assert outcome.chosen == 0
            expected = dict.fromkeys(both, outcome.revision)
        stop.set()
    assert all(first == last for first, last in seen)


async def test_create_update_delete(store: Store, root: str) -> None:
    """A record is created while absent, and changed and deleted at the revision it was read at."""
    key = root + "a"
    made = await store.commit([Change(key, b"1", 0)])
    assert (made.chosen, made.records, made.window) == (0, {}, ())
    assert (await store.read([key])).records == (Record(key, b"1", made.revision),)
    changed = await store.commit([Change(key, b"2", made.revision)])
    assert changed.revision > made.revision
    assert (await store.read([key])).records == (Record(key, b"2", changed.revision),)
    deleted = await store.commit([Change(key, None, changed.revision)])
    snapshot = await store.read([key])
    assert snapshot.records == ()
    assert snapshot.revision >= deleted.revision > changed.revision
    assert (await store.commit([Change(key, b"3", 0)])).chosen == 0


async def test_a_set_is_written_at_one_revision(store: Store, root: str) -> None:
    """All records of a change set get the revision of the commit."""
    old = await write(store, root + "c", b"old")
    outcome = await store.commit(
        [Change(root + "a", b"1", 0), Change(root + "b", b"2", 0), Change(root + "c", None, old)]
    )
    records = (await store.read([], [root])).records
    assert [(record.key, record.revision) for record in records] == [
        (root + "a", outcome.revision),
        (root + "b", outcome.revision),
    ]


async def test_conflict_changes_nothing_and_tells_what_is(store: Store, root: str) -> None:
    """A set of which one expectation fails is not written at all; the outcome has the records as they are."""
    revision = await write(store, root + "a", b"1")
    before = await store.read([], [root])
    outcome = await store.commit(
        [Change(root + "new", b"x", 0), Change(root + "a", b"2", revision - 1), Change(root + "gone", None, 3)]
    )
    assert outcome == Outcome(None, before.revision, {root + "a": Record(root + "a", b"1", revision)})
    assert await store.read([], [root]) == before


@pytest.mark.parametrize("value", [b"x", None])
async def test_create_of_something_that_exists_conflicts(store: Store, root: str, value: bytes | None) -> None:
    """Expecting 0 holds only while the key is absent, whether it is to be written or only compared."""
    await write(store, root + "a", b"1")
    assert (await store.commit([Change(root + "a", value, 0)])).chosen is None


async def test_change_of_something_absent_conflicts(store: Store, root: str) -> None:
    """Expecting a revision does not hold for an absent key, not even to delete it."""
    revision = await write(store, root + "a", b"1")
    await write(store, root + "a", None)
    assert (await store.commit([Change(root + "a", b"2", revision)])).chosen is None
    assert (await store.commit([Change(root + "a", None, revision)])).chosen is None


async def test_absence_as_a_mere_condition(store: Store, root: str) -> None:
    """A change to nothing that expects absence only compares: it writes no record and takes no revision."""
    before = (await store.read([])).revision
    only = await store.commit([Change(root + "a", None, 0)])
    assert (only.chosen, only.revision) == (0, before)
    both = await store.commit([Change(root + "a", None, 0), Change(root + "b", b"1", 0)])
    assert (both.chosen, both.revision) == (0, before + 1)
    assert list(named((await store.read([], [root])).records)) == [root + "b"]


async def test_first_possible_alternative_is_chosen(store: Store, root: str) -> None:
    """Of several change sets the first that can be is committed, and none of the others."""
    await write(store, root + "taken", b"1")

    def claim(name: str) -> ChangeSet:
        return [Change(root + name, b"me", 0), Change(root + name + "-affinity", b"me", 0)]

    outcome = await store.commit(claim("taken"), claim("second"), claim("third"), window=KeyRange(root, root + "~", 9))
    assert (outcome.chosen, outcome.records, outcome.window) == (1, {}, ())
    found = named((await store.read([], [root])).records)
    assert found == {root + "taken": b"1", root + "second": b"me", root + "second-affinity": b"me"}
    assert (await store.commit(claim("taken"), claim("second"), claim("third"))).chosen == 2
    assert (await store.commit(claim("first"), claim("fourth"))).chosen == 0


async def test_no_alternative_possible_tells_all_records_and_the_window(store: Store, root: str) -> None:
    """If no set can be committed, the outcome has every named record that exists, and the window's keys."""
    for name in ("a", "b", "c", "d"):
        await write(store, root + name, name.encode())
    sets = [[Change(f"{root}{name}", b"x", 0), Change(f"{root}{name}-new", b"x", 0)] for name in ("a", "b", "c")]
    outcome = await store.commit(*sets, window=KeyRange(root + "b", root + "z", 2))
    assert outcome.chosen is None
    assert named(tuple(outcome.records.values())) == {root + name: name.encode() for name in ("a", "b", "c")}
    assert outcome.window == (root + "b", root + "c")
    assert named((await store.read([], [root])).records) == {root + name: name.encode() for name in "abcd"}


async def test_a_hundred_changes_at_once(store: Store, root: str) -> None:
    """A set of a hundred records is committed whole, and when it cannot be all hundred are told."""
    changes = [Change(f"{root}{n:03}", b"x", 0) for n in range(100)]
    assert (await store.commit(changes)).chosen == 0
    again = await store.commit(changes, window=KeyRange(root, root + "~", 500))
    assert again.chosen is None
    assert sorted(again.records) == list(again.window) == [change.key for change in changes]


async def test_list_keys_in_byte_order_with_limit(store: Store, root: str) -> None:
    """Listing gives the window's keys in byte order, end excluded, up to the limit."""
    names = ["10.0.0.0-26", "10.0.0.128-26", "10.0.0.64-26", "A", "a", "é", "\U0001f600"]
    for name in reversed(names):
        revision = await write(store, root + name, b"")
    keys = [root + name for name in names]
    assert await store.list_keys(KeyRange(root, root + "\U0010ffff", 100)) == (revision, tuple(keys))
    assert (await store.list_keys(KeyRange(keys[1], keys[4], 100)))[1] == tuple(keys[1:4])
    assert (await store.list_keys(KeyRange(root, root + "\U0010ffff", 3)))[1] == tuple(keys[:3])
    assert (await store.list_keys(KeyRange(root + "x", root + "y", 3)))[1] == ()


@pytest.mark.parametrize(
    "value",
    [b"", '{"a":"é <&> \U0001f600"}'.encode(), bytes(range(256)), b"x" * 1_000_000],
    ids=["empty", "unicode", "binary", "1 MB"],
)
async def test_values_come_back_as_they_were(store: Store, root: str, value: bytes) -> None:
    """Values are bytes and come back unchanged, from a read, from a conflict and from a watch."""
    key = root + "é <&>"
    before = (await store.read([])).revision
    revision = await write(store, key, value)
    assert (await store.read([key])).records == (Record(key, value, revision),)
    assert (await store.commit([Change(key, b"", 0)])).records == {key: Record(key, value, revision)}
    async with store.watch() as watch:
        watch.add(key, before)
        assert await take(watch, 1) == [Event(key, value, revision)]


async def test_watch_from_the_past_sees_everything_once(store: Store, root: str) -> None:
    """A watch from a revision delivers each later change of its key, in order, and none twice."""
    key = root + "a"
    revisions = [await write(store, key, b"0"), await write(store, key, b"1"), await write(store, key, None)]
    async with store.watch() as watch:
        watch.add(key, revisions[0])
        watch.add(key, 0)  # adding twice is one, and the first counts
        events = await take(watch, 2)
        revisions.append(await write(store, key, b"3"))
        events += await take(watch, 1)
    assert events == [
        Event(key, b"1", revisions[1]),
        Event(key, None, revisions[2]),
        Event(key, b"3", revisions[3]),
    ]


async def test_each_name_has_its_own_beginning(store: Store, root: str) -> None:
    """A name added from a later revision than another one brings nothing of what came before."""
    old = await write(store, root + "a", b"1")
    await write(store, root + "b", b"before")
    late = await write(store, root + "a", b"2")
    async with store.watch() as watch:
        watch.add(root + "a", old)
        watch.add(root + "b", late)
        last = await write(store, root + "b", b"after")
        assert {(event.key, event.revision) for event in await take(watch, 2)} == {
            (root + "a", late),
            (root + "b", last),
        }


async def test_watch_of_a_prefix(store: Store, root: str) -> None:
    """A prefix stands for the keys that begin with it, a key only for itself."""
    async with store.watch() as watch:
        now = (await store.read([])).revision
        watch.add(root + "p/", now, prefix=True)
        watch.add(root + "k", now)
        for name in ("p/1", "p", "k/1", "k", "p0", "p/2"):
            await write(store, root + name, b"")
        events = await take(watch, 3)
    assert sorted(event.key for event in events) == [root + name for name in ("k", "p/1", "p/2")]


async def test_watch_grows_and_shrinks_while_iterated(store: Store, root: str) -> None:
    """Names added while the watch is being waited for are seen; names removed are not any more."""
    send, receive = trio.open_memory_channel[Event](100)

    async def collect(watch: Watch) -> None:
        async for batch in watch:
            for event in batch:
                await send.send(event)

    async with store.watch() as watch, trio.open_nursery() as nursery:
        nursery.start_soon(collect, watch)
        await trio.testing.wait_all_tasks_blocked(0.05)
        now = (await store.read([])).revision
        watch.add(root + "a", now)
        with trio.fail_after(PATIENCE):
            first = await write(store, root + "a", b"1")
            assert await receive.receive() == Event(root + "a", b"1", first)
            watch.add(root + "b", now)
            watch.remove(root + "a")
            watch.remove(root + "never added")
            second = await write(store, root + "b", b"1")
            assert await receive.receive() == Event(root + "b", b"1", second)
            await write(store, root + "a", b"2")
            third = await write(store, root + "b", b"2")
            assert await receive.receive() == Event(root + "b", b"2", third)
            watch.add(root + "a", third)
            fourth = await write(store, root + "a", b"3")
            assert await receive.receive() == Event(root + "a", b"3", fourth)
        nursery.cancel_scope.cancel()


async def test_batches_are_in_order_of_revision(store: Store, root: str) -> None:
    """The changes of one name arrive in order of revision, also when many are made while nobody looks."""
    now = (await store.read([])).revision
    expected = []
    for n in range(15):  # the embedded store of this suite remembers 20 revisions
        name = root + str(n % 3)
        expected.append((name, await write(store, name, str(n).encode())))
    async with store.watch() as watch:
        watch.add(root, now, prefix=True)
        events = await take(watch, 15)
    assert [(event.key, event.revision) for event in events] == expected


async def test_watch_from_a_compacted_revision(subject: Subject) -> None:
    """A watch whose revisions are gone raises CompactedError; one from the present goes on."""
    store, root = subject.store, subject.root
    old = await write(store, root + "a", b"1")
    await write(store, root + "a", b"2")
    await subject.forget((await store.read([])).revision)
    now = (await store.read([])).revision

    async def watch_from(revision: int) -> None:
        async with store.watch() as watch:
            watch.add(root + "a", revision)
            await take(watch, 1)

    with pytest.raises(CompactedError):
        await watch_from(old - 1)
    async with store.watch() as watch:
        watch.add(root + "a", now)
        await write(store, root + "a", b"3")
        assert [event.value for event in await take(watch, 1)] == [b"3"]


async def test_entering_a_watch_does_not_hide_what_its_body_raises(store: Store) -> None:
    """An error raised inside the watch's context leaves it as it is, not in a group."""

    async def fail() -> None:
        async with store.watch() as watch:
            watch.add("/a", 1)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()


# --- leases ---------------------------------------------------------------------------------------------------


async def test_what_is_bound_to_a_lease_goes_with_it(store: Store, root: str) -> None:
    """A lease that nobody renews ends by itself: its records vanish, all in one change, and a watch tells of them."""
    lease = await store.grant(1)
    assert lease.ttl >= 1
    made = await store.commit([Change(root + "a", b"1", 0, lease.id), Change(root + "b", b"2", 0, lease.id)])
    await write(store, root + "stays", b"3")
    assert len((await store.read([], [root])).records) == 3
    async with store.watch() as watch:
        watch.add(root, made.revision + 1, prefix=True)
        gone = await take(watch, 2)
    assert {(event.key, event.value) for event in gone} == {(root + "a", None), (root + "b", None)}
    assert gone[0].revision == gone[1].revision > made.revision
    assert named((await store.read([], [root])).records) == {root + "stays": b"3"}
    assert await store.renew(lease.id) == 0


async def test_a_lease_that_is_renewed_lasts(store: Store, root: str) -> None:
    """While another one ends, the one that is renewed keeps its record."""
    kept, left = await store.grant(1), await store.grant(1)
    made = await store.commit([Change(root + "kept", b"", 0, kept.id), Change(root + "left", b"", 0, left.id)])
    async with store.watch() as watch, trio.open_nursery() as nursery:

        async def renew() -> None:
            while True:
                assert await store.renew(kept.id) >= 1
                await trio.sleep(0.1)

        nursery.start_soon(renew)
        watch.add(root, made.revision, prefix=True)
        assert [event.key for event in await take(watch, 1)] == [root + "left"]
        nursery.cancel_scope.cancel()
    assert list(named((await store.read([], [root])).records)) == [root + "kept"]


async def test_a_lease_that_is_revoked_ends_at_once(store: Store, root: str) -> None:
    """With its records; to revoke it again is harmless, to renew it in vain."""
    lease = await store.grant(60)
    await store.commit([Change(root + "a", b"1", 0, lease.id)])
    await store.revoke(lease.id)
    assert (await store.read([], [root])).records == ()
    await store.revoke(lease.id)
    assert await store.renew(lease.id) == 0


async def test_a_record_written_anew_is_bound_to_the_last_lease_only(store: Store, root: str) -> None:
    """Whoever writes a record says what it is bound to from then on: another lease, or none."""
    first, second = await store.grant(60), await store.grant(60)
    both = await store.commit([Change(root + "a", b"1", 0, first.id), Change(root + "b", b"1", 0, first.id)])
    await store.commit([Change(root + "a", b"2", both.revision), Change(root + "b", b"2", both.revision, second.id)])
    await store.revoke(first.id)
    assert named((await store.read([], [root])).records) == {root + "a": b"2", root + "b": b"2"}
    await store.revoke(second.id)
    assert named((await store.read([], [root])).records) == {root + "a": b"2"}


async def test_a_lease_that_is_gone_binds_nothing(store: Store, root: str) -> None:
    """A commit that names it is refused, whole."""
    lease = await store.grant(60)
    await store.revoke(lease.id)
    with pytest.raises(StoreRefusedError, match="lease not found"):
        await store.commit([Change(root + "a", b"1", 0), Change(root + "b", b"1", 0, lease.id)])
    assert (await store.read([], [root])).records == ()


# --- what is told of the store --------------------------------------------------------------------------------


async def test_calls_are_counted(store: Store, root: str) -> None:
    """Calls are counted by kind."""
    before = dict(store.calls)
    await store.read([root])
    await store.list_keys(KeyRange(root, root + "~", 1))
    await store.commit([Change(root + "a", b"", 0)])
    await store.commit([Change(root + "a", b"", 0)])
    async with store.watch() as watch:
        watch.add(root + "a", (await store.read([])).revision - 1)
        await take(watch, 1)
    lease = await store.grant(60)
    await store.renew(lease.id)
    await store.revoke(lease.id)
    made = {kind: store.calls[kind] - count for kind, count in before.items()}
    assert made == {"read": 2, "list": 1, "commit": 2, "watch": 1, "lease": 3}


async def test_connected_after_a_call(store: Store, root: str) -> None:
    """A store that answered is connected."""
    await store.read([root])
    assert store.connected
