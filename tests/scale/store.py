"""The memory store for clusters of thousands of nodes: the same semantics, with indexes; and what one node asks of it.

Passes the stores' contract suite. A range is found by bisection, and a change goes to those who watch its key, not to all.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import trio

from ipamd.store.base import ChangeSet, CompactedError, Event, KeyRange, Lease, Outcome, Snapshot, Store, Watch
from tests.memory_store import MemoryStore, MemoryWatch


class IndexedStore(MemoryStore):
    """See the module. A call takes between half of ``delay`` and all of it (s)."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self._order: list[str] = []
        self._watches: defaultdict[str, set[IndexedWatch]] = defaultdict(set)
        self._lengths = Counter[int]()
        self._random, self._slowest = Random(0), delay

    async def _call(self, kind: str) -> None:
        self.delay = self._random.uniform(self._slowest / 2, self._slowest)
        await super()._call(kind)

    def snapshot(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """What ``read`` answers now."""
        self.expire()
        found = {key for key in keys if key in self.records}
        for prefix in prefixes:
            found.update(self._below(prefix))
        return Snapshot(self.revision, tuple(self.records[key] for key in sorted(found)))

    def _below(self, prefix: str) -> Iterator[str]:
        for index in range(bisect_left(self._order, prefix), len(self._order)):
            if not self._order[index].startswith(prefix):
                return
            yield self._order[index]

    def window(self, window: KeyRange) -> tuple[str, ...]:
        """The existing keys of a window."""
        self.expire()
        start, end = bisect_left(self._order, window.start), bisect_left(self._order, window.end)
        return tuple(self._order[start : min(end, start + window.limit)])

    def _set(self, key: str, value: bytes | None) -> None:
        if value is not None and key not in self.records:
            insort(self._order, key)
        elif value is None and key in self.records:
            del self._order[bisect_left(self._order, key)]
        super()._set(key, value)
        for length in self._lengths:
            for watch in self._watches.get(key[:length], ()) if length <= len(key) else ():
                watch.hear(len(self.history) - 1)

    def lease(self, ttl: float) -> Lease:
        """Do what ``grant`` asks for, now; whoever waits for changes waits for its end, too."""
        lease = super().lease(ttl)
        for watch in {watch for watches in self._watches.values() for watch in watches}:
            watch.wake()
        return lease

    def listen(self, name: str, watch: "IndexedWatch") -> None:
        """Tell a watch of changes of a key, and of those below it if it wants them."""
        self._watches[name].add(watch)
        self._lengths[len(name)] += 1

    def ignore(self, name: str, watch: "IndexedWatch") -> None:
        """Tell it no more."""
        self._watches[name].remove(watch)
        if not self._watches[name]:
            del self._watches[name]
        self._lengths -= Counter([len(name)])

    @asynccontextmanager
    async def watch(self) -> AsyncIterator["IndexedWatch"]:
        """See ``Store.watch``."""
        self.calls["watch"] += 1
        watch = IndexedWatch(self)
        try:
            yield watch
        finally:
            watch.close()


class IndexedWatch(MemoryWatch):
    """A watch that is told what concerns it: it never looks through the history of others."""

    _store: IndexedStore

    def __init__(self, store: IndexedStore) -> None:
        super().__init__(store)
        self._due: set[int] = set()
        self._heard = trio.Event()
        self._lost = False

    def add(self, name: str, revision: int, *, prefix: bool = False) -> None:
        """See ``Watch.add``."""
        if name in self._names:
            return
        self._lost = self._lost or revision < self._store.compacted
        self._names[name] = (prefix, revision)
        self._store.listen(name, self)
        history = self._store.history
        for index in range(bisect_right(history, revision, key=lambda event: event.revision), len(history)):
            if self._wants(history[index]):
                self.hear(index)
        if self._lost:
            self._heard.set()

    def remove(self, name: str) -> None:
        """See ``Watch.remove``."""
        if self._names.pop(name, None) is not None:
            self._store.ignore(name, self)

    def hear(self, index: int) -> None:
        """This change of the history may concern one of the names."""
        self._due.add(index)
        self._heard.set()

    def wake(self) -> None:
        """There may be something to see."""
        self._heard.set()

    def close(self) -> None:
        """Watch nothing any more."""
        for name in list(self._names):
            self.remove(name)

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        while True:
            if self._store.away:
                await trio.sleep(0.1)
            elif events := self._pending():
                yield events
            elif self._store.leases:
                with trio.move_on_after(self._store.next_expiry()):
                    await self._heard.wait()
            else:
                await self._heard.wait()

    def _pending(self) -> list[Event]:
        self._store.expire()
        if self._lost:
            raise CompactedError("memory: compacted")
        due, self._due, self._heard = sorted(self._due), set(), trio.Event()
        return [event for event in map(self._store.history.__getitem__, due) if self._wants(event)]


class Meter:
    """One node's way to a store, which counts what the node asks and what it is told. A ``Store``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name, self.calls = store.name, {"read": 0, "commit": 0, "list": 0, "watch": 0, "lease": 0}
        self.conflicts = 0
        """Commits of which nothing took effect."""
        self.values = self.read_bytes = self.keys = 0
        """Records read with their bytes, and keys told without a value: of reads, listings and refused commits."""

    @property
    def round_trips(self) -> int:
        """Calls that were waited for."""
        return self.calls["read"] + self.calls["list"] + self.calls["commit"]

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``Store.read``."""
        self.calls["read"] += 1
        snapshot = await self._store.read(keys, prefixes)
        self.values += len(snapshot.records)
        self.read_bytes += sum(len(record.key) + len(record.value) for record in snapshot.records)
        return snapshot

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``Store.list_keys``."""
        self.calls["list"] += 1
        revision, keys = await self._store.list_keys(window)
        self._told(keys)
        return revision, keys

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``Store.commit``."""
        self.calls["commit"] += 1
        outcome = await self._store.commit(*alternatives, window=window)
        if outcome.chosen is None:
            self.conflicts += 1
            self.values += len(outcome.records)
            self.read_bytes += sum(len(record.key) + len(record.value) for record in outcome.records.values())
            self._told(outcome.window)
        return outcome

    async def grant(self, ttl: float) -> Lease:
        """See ``Store.grant``."""
        self.calls["lease"] += 1
        return await self._store.grant(ttl)

    async def renew(self, lease: int) -> float:
        """See ``Store.renew``."""
        self.calls["lease"] += 1
        return await self._store.renew(lease)

    async def revoke(self, lease: int) -> None:
        """See ``Store.revoke``."""
        self.calls["lease"] += 1
        await self._store.revoke(lease)

    def _told(self, keys: Sequence[str]) -> None:
        self.keys += len(keys)
        self.read_bytes += sum(map(len, keys))

    def watch(self) -> AbstractAsyncContextManager[Watch]:
        """See ``Store.watch``."""
        self.calls["watch"] += 1
        return self._store.watch()

    @property
    def connected(self) -> bool:
        """See ``Store.connected``."""
        return self._store.connected

    async def aclose(self) -> None:
        """The store is its owner's to close."""
