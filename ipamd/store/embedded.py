"""The embedded store: records in one SQLite file, for a single node, through the standard library.

The statements on the file are in ``sqlite``; here they are run in a worker thread, one at a time, and watched:
watches read the file's log, at once when this process committed, and once a second for the sake of another process
that writes to the same file.

May import of ipamd only ``store.base`` and ``store.sqlite``.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from ipamd.store.base import (
    ChangeSet,
    CompactedError,
    Event,
    KeyRange,
    Lease,
    Outcome,
    Snapshot,
    StoreUnavailableError,
    Watch,
    nobody_to_tell,
)
from ipamd.store.sqlite import SqliteFile, in_words

T = TypeVar("T")

HISTORY = 1000
"""Revisions that a watch may lag behind; with full blocks of 64 some 16 MB."""
POLL_SECONDS = 1.0


class EmbeddedStore:
    """Records in the file ``path``, made with its schema at the first call. See ``base.Store`` for the promises."""

    name = "embedded"

    def __init__(self, path: Path, *, history: int = HISTORY) -> None:
        self.calls = {"read": 0, "commit": 0, "list": 0, "watch": 0, "lease": 0}
        self.distrust: Callable[[], None] = nobody_to_tell
        self._file = SqliteFile(path, history)
        self._one = trio.CapacityLimiter(1)
        self._connected = False
        self._watches: set[_EmbeddedWatch] = set()

    @property
    def connected(self) -> bool:
        """Whether the last call could use the file."""
        return self._connected

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``base.Store``."""
        return await self._call("read", lambda: self._file.read(keys, prefixes))

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``base.Store``."""
        return await self._call("list", lambda: self._file.list_keys(window))

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``base.Store``."""
        if not alternatives:
            raise ValueError("cannot commit nothing; give at least one change set")
        outcome = await self._call("commit", lambda: self._file.commit(alternatives, window))
        self._wake_watches()
        return outcome

    async def grant(self, ttl: float) -> Lease:
        """See ``base.Store``."""
        return await self._call("lease", lambda: self._file.grant(ttl))

    async def renew(self, lease: int) -> float:
        """See ``base.Store``."""
        return await self._call("lease", lambda: self._file.renew(lease))

    async def revoke(self, lease: int) -> None:
        """See ``base.Store``."""
        await self._call("lease", lambda: self._file.revoke(lease))
        self._wake_watches()

    def _wake_watches(self) -> None:
        for watch in self._watches:
            watch.wake()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """See ``base.Store``."""
        self.calls["watch"] += 1
        watch = _EmbeddedWatch(self)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    async def aclose(self) -> None:
        """Close the file; later calls raise StoreUnavailableError."""
        self._connected = False
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._file.close, limiter=self._one)

    async def changes(self, after: int) -> tuple[int, int, Sequence[Event]]:
        """The store's revision, the last one that left the log, and the changes after ``after``: for watches."""
        return await self._call(None, lambda: self._file.changes(after))

    async def _call(self, kind: str | None, work: Callable[[], T]) -> T:
        if kind is not None:
            self.calls[kind] += 1
        try:
            result = await trio.to_thread.run_sync(work, limiter=self._one)
        except sqlite3.Error as error:
            self._connected = False
            raise in_words(error, self._file.path) from error
        self._connected = True
        return result


class _EmbeddedWatch:
    """A watch that reads the log; see ``base.Watch``."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._names: dict[str, _Cursor] = {}
        self._bell = trio.Event()

    def wake(self) -> None:
        """There may be something to see."""
        self._bell.set()

    def add(self, name: str, revision: int, *, prefix: bool = False) -> None:
        """See ``base.Watch``."""
        self._names.setdefault(name, _Cursor(prefix, revision))
        self.wake()

    def remove(self, name: str) -> None:
        """See ``base.Watch``."""
        self._names.pop(name, None)

    def __aiter__(self) -> "_EmbeddedWatch":
        return self

    async def __anext__(self) -> Sequence[Event]:
        """The next changes. Raises CompactedError; nothing is watched any more then: add the names anew."""
        while True:
            self._bell = trio.Event()
            try:
                batch = await self._look()
            except StoreUnavailableError:
                batch = ()  # the next look, a second later, finds what this one missed
            if batch:
                return batch
            with trio.move_on_after(POLL_SECONDS):
                await self._bell.wait()

    async def _look(self) -> Sequence[Event]:
        asked = dict(self._names)
        if not asked:
            return ()
        low = min(cursor.after for cursor in asked.values())
        revision, compacted, events = await self._store.changes(low)
        names = {name: cursor for name, cursor in asked.items() if self._names.get(name) is cursor}
        if lost := [name for name, cursor in names.items() if cursor.after < compacted]:
            self._names.clear()
            raise CompactedError(
                f"cannot watch {', '.join(lost)} from where it stopped: "
                f"the log begins after revision {compacted}; read again"
            )
        prefixes = [(name, cursor) for name, cursor in names.items() if cursor.prefix]
        batch = [
            event
            for event in events
            if ((own := names.get(event.key)) is not None and own.wants(event.key, event))
            or any(cursor.wants(name, event) for name, cursor in prefixes)
        ]
        for cursor in names.values():
            cursor.after = max(cursor.after, revision)
        return batch


class _Cursor:
    """How far the changes of one watched name were delivered."""

    def __init__(self, prefix: bool, after: int) -> None:  # noqa: FBT001 - private
        self.prefix = prefix
        self.after = after

    def wants(self, name: str, event: Event) -> bool:
        """Whether the event is news for the name."""
        matches = event.key.startswith(name) if self.prefix else event.key == name
        return matches and event.revision > self.after
