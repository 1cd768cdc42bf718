"""A store in memory with etcd's semantics, for tests under a virtual clock: revisions, compare-and-swap, watches.

Passes the stores' contract suite. Leases last by Trio's clock. ``away`` makes every call fail; ``lose_replies`` makes commits take effect but
answer with StoreUnavailableError: the unknown outcome.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from ipamd.store.base import (
    ChangeSet,
    CompactedError,
    Event,
    KeyRange,
    Lease,
    Outcome,
    Record,
    Snapshot,
    StoreRefusedError,
    StoreUnavailableError,
    nobody_to_tell,
)


class MemoryStore:
    """See the module; ``history`` holds every change since the start, ``delay`` is the time a call takes (s)."""

    name = "memory"

    def __init__(self, delay: float = 0.0) -> None:
        self.records: dict[str, Record] = {}
        self.history: list[Event] = []
        self.revision = 1
        self.compacted = 0
        self.calls = {"read": 0, "commit": 0, "list": 0, "watch": 0, "lease": 0}
        self.distrust: Callable[[], None] = nobody_to_tell
        self.away = False
        self.lose_replies = 0
        self.delay = delay
        self.commits: list[tuple[ChangeSet, ...]] = []
        self._changed = trio.Event()
        self.leases: dict[int, tuple[float, float]] = {}
        """By id: for how long each lasts, and until when unless it is renewed (s)."""
        self._bound: dict[str, int] = {}
        self._granted = 0

    @property
    def connected(self) -> bool:
        """Whether the store answers."""
        return not self.away

    async def _call(self, kind: str) -> None:
        self.calls[kind] += 1
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailableError("memory: away")

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``Store.read``."""
        await self._call("read")
        return self.snapshot(keys, prefixes)

    def snapshot(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """What ``read`` answers now."""
        self.expire()
        found = [
            record
            for key, record in sorted(self.records.items())
            if key in keys or any(key.startswith(prefix) for prefix in prefixes)
        ]
        return Snapshot(self.revision, tuple(found))

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``Store.list_keys``."""
        await self._call("list")
        return self.revision, self.window(window)

    def window(self, window: KeyRange) -> tuple[str, ...]:
        """The existing keys of a window."""
        self.expire()
        return tuple(key for key in sorted(self.records) if window.start <= key < window.end)[: window.limit]

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``Store.commit``."""
        await self._call("commit")
        self.commits.append(alternatives)
        outcome = self.apply(alternatives, window)
        if self.lose_replies and outcome.chosen is not None:
            self.lose_replies -= 1
            raise StoreUnavailableError("memory: the reply was lost")
        return outcome

    def apply(self, alternatives: Sequence[ChangeSet], window: KeyRange | None = None) -> Outcome:
        """Do what ``commit`` asks for, now."""
        self.expire()
        for chosen, changes in enumerate(alternatives):
            if all(self._revision_of(change.key) == change.expected for change in changes):
                if not {change.lease for change in changes} <= {0, *self.leases}:
                    raise StoreRefusedError("memory: lease not found")
                if any(change.value is not None or change.expected for change in changes):
                    self._write(changes)
                return Outcome(chosen, self.revision, {})
        named = {change.key for changes in alternatives for change in changes}
        current = {key: self.records[key] for key in named if key in self.records}
        return Outcome(None, self.revision, current, self.window(window) if window else ())

    def put(self, key: str, value: bytes | None) -> None:
        """Write as a stranger would."""
        self.revision += 1
        self._set(key, value)
        self._announce()

    def _revision_of(self, key: str) -> int:
        return self.records[key].revision if key in self.records else 0

    def _write(self, changes: ChangeSet) -> None:
        self.revision += 1
        for change in changes:
            if change.value is not None or change.key in self.records:
                self._set(change.key, change.value)
                if change.lease:
                    self._bound[change.key] = change.lease
        self._announce()

    def _set(self, key: str, value: bytes | None) -> None:
        self._bound.pop(key, None)
        if value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = Record(key, value, self.revision)
        self.history.append(Event(key, value, self.revision))

    # --- leases -----------------------------------------------------------------------------------------------

    async def grant(self, ttl: float) -> Lease:
        """See ``Store.grant``."""
        await self._call("lease")
        return self.lease(ttl)

    async def renew(self, lease: int) -> float:
        """See ``Store.renew``."""
        await self._call("lease")
        return self.prolong(lease)

    async def revoke(self, lease: int) -> None:
        """See ``Store.revoke``."""
        await self._call("lease")
        self.end(lease)

    def lease(self, ttl: float) -> Lease:
        """Do what ``grant`` asks for, now."""
        self._granted += 1
        self.leases[self._granted] = (ttl, trio.current_time() + ttl)
        self._announce()
        return Lease(self._granted, ttl)

    def prolong(self, lease: int) -> float:
        """Do what ``renew`` asks for, now."""
        self.expire()
        if lease not in self.leases:
            return 0.0
        ttl, _until = self.leases[lease]
        self.leases[lease] = (ttl, trio.current_time() + ttl)
        return ttl

    def end(self, lease: int) -> None:
        """Do what ``revoke`` asks for, now."""
        keys = [key for key, bound in self._bound.items() if bound == lease]
        self.leases.pop(lease, None)
        if keys:
            self.revision += 1
            for key in keys:
                self._set(key, None)
            self._announce()

    def expire(self) -> None:
        """End the leases whose time is over."""
        if self.leases:
            now = trio.current_time()
            for lease in [lease for lease, (_ttl, until) in self.leases.items() if until <= now]:
                self.end(lease)

    def next_expiry(self) -> float:
        """In how many seconds a lease is over if nobody renews it; an hour at most."""
        return min([3600.0, *(until - trio.current_time() for _ttl, until in self.leases.values())])

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def compact(self) -> None:
        """Forget all history so far."""
        self.compacted = self.revision
        self._announce()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator["MemoryWatch"]:
        """See ``Store.watch``."""
        self.calls["watch"] += 1
        yield MemoryWatch(self)

    async def aclose(self) -> None:
        """There is nothing to let go of."""


class MemoryWatch:
    """Events of the watched names, in order, each once."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._names: dict[str, tuple[bool, int]] = {}

    def add(self, name: str, revision: int, *, prefix: bool = False) -> None:
        """See ``Watch.add``."""
        self._names.setdefault(name, (prefix, revision))
        self._store._announce()

    def remove(self, name: str) -> None:
        """See ``Watch.remove``."""
        self._names.pop(name, None)

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        while True:
            changed = self._store._changed
            if not self._store.away:
                events = self._pending()
                if events:
                    yield events
                    continue
            with trio.move_on_after(0.1 if self._store.away else self._store.next_expiry()):
                await changed.wait()

    def _pending(self) -> list[Event]:
        self._store.expire()
        if any(revision < self._store.compacted for _prefix, revision in self._names.values()):
            raise CompactedError("memory: compacted")
        oldest = min((revision for _prefix, revision in self._names.values()), default=self._store.revision)
        start = bisect_right(self._store.history, oldest, key=lambda event: event.revision)
        events = [event for event in self._store.history[start:] if self._wants(event)]
        for name, (prefix, revision) in list(self._names.items()):
            self._names[name] = (prefix, max(revision, self._store.revision))
        return events

    def _wants(self, event: Event) -> bool:
        return any(
            (event.key.startswith(name) if prefix else event.key == name) and event.revision > revision
            for name, (prefix, revision) in self._names.items()
        )
