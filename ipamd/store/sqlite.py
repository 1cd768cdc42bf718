"""The embedded store's file: its tables and the statements on them. Blocking, and knows nothing of Trio.

Tables: ``records`` (key, value, revision of the last change), ``log`` (every change of the last ``history``
revisions, so that watches can resume), ``meta`` (the store's revision, and the last revision that left the log),
``leases`` (until when each lasts, by CLOCK_BOOTTIME in s) and ``leased`` (which records are bound to which).
Every method is one SQLite transaction; a commit gets one revision. WAL with ``synchronous=NORMAL``: a commit
survives the death of the process; a power failure may take the last ones along, and the pods with them.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ipamd.store.base import (
    Change,
    ChangeSet,
    Event,
    KeyRange,
    Lease,
    Outcome,
    Record,
    Snapshot,
    StoreRefusedError,
    StoreUnavailableError,
)

T = TypeVar("T")

LOCK_SECONDS = 5.0
"""How long a call waits for another process's transaction: the deadline of every call."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS log (revision INTEGER, key TEXT, value BLOB, PRIMARY KEY (revision, key));
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS leased (key TEXT PRIMARY KEY, lease INTEGER NOT NULL);
INSERT OR IGNORE INTO meta VALUES ('revision', 1), ('compacted', 0);
"""
# The last code point ends a prefix's keys: SQLite compares text as UTF-8 bytes.
_BELOW = "SELECT key, value, revision FROM records WHERE key >= :prefix AND key < :prefix || char(0x10FFFF)"
# One that lasts for longer than it can is of an earlier boot.
_OVER = "SELECT id FROM leases WHERE until <= :now OR until > :now + ttl"
_REFUSED = {
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; move it away and let the daemon rebuild it",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database; give another path or move it away",
    sqlite3.SQLITE_READONLY: "the file cannot be written; check its owner and mode",
    sqlite3.SQLITE_PERM: "access is denied; check its owner and mode",
    sqlite3.SQLITE_TOOBIG: "a value is too large; send less",
}


def in_words(error: sqlite3.Error, path: Path) -> StoreRefusedError | StoreUnavailableError:
    """The store's error for SQLite's."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the extended part
    if code in _REFUSED:
        return StoreRefusedError(f"cannot use the store {path}: {_REFUSED[code]}")
    return StoreUnavailableError(f"cannot use the store {path}: {error}")


class SqliteFile:
    """The SQLite file. Its methods block, and are called by one thread at a time."""

    def __init__(self, path: Path, history: int) -> None:
        self.path = path
        self._history = history
        self._db: sqlite3.Connection | None = None
        self._closed = False

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailableError(f"cannot use the store {self.path}: it is closed")
        if self._db is None:
            db = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _use_wal(db)
                db.execute("PRAGMA synchronous=NORMAL")
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            except sqlite3.Error:
                db.close()
                raise
            self._db = db
        return self._db

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        self._closed = True
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _transaction(self, kind: str, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._open()
        if db.execute(_OVER, {"now": _now()}).fetchone():
            self._run(db, "IMMEDIATE", self._expire)
        return self._run(db, kind, work)

    def _run(self, db: sqlite3.Connection, kind: str, work: Callable[[sqlite3.Connection], T]) -> T:
        db.execute(f"BEGIN {kind}")
        try:
            result = work(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite rolls back by itself when the disk is full
                db.execute("ROLLBACK")
            raise
        return result

    def read(self, keys: Sequence[str], prefixes: Sequence[str]) -> Snapshot:
        """The records of the keys and below the prefixes, in key order."""

        def work(db: sqlite3.Connection) -> Snapshot:
            found = _records(db, keys)
            for prefix in prefixes:
                rows = db.execute(_BELOW, {"prefix": prefix})
                found.update((row[0], Record(*row)) for row in rows)
            return Snapshot(revision=_number(db, "revision"), records=tuple(found[key] for key in sorted(found)))

        return self._transaction("DEFERRED", work)

    def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """The revision, and the window's keys."""
        return self._transaction("DEFERRED", lambda db: (_number(db, "revision"), _window(db, window)))

    def commit(self, alternatives: Sequence[ChangeSet], window: KeyRange | None) -> Outcome:
        """Write the first change set whose expectations hold."""

        def work(db: sqlite3.Connection) -> Outcome:
            current = _records(db, {change.key for changes in alternatives for change in changes})
            revision = _number(db, "revision")
            for index, changes in enumerate(alternatives):
                if all(_revision(current, change.key) == change.expected for change in changes):
                    return Outcome(chosen=index, revision=self._write(db, changes, revision), records={})
            keys = _window(db, window) if window is not None else ()
            return Outcome(chosen=None, revision=revision, records=current, window=keys)

        return self._transaction("IMMEDIATE", work)

    def _write(self, db: sqlite3.Connection, changes: ChangeSet, revision: int) -> int:
        """Apply a set whose expectations hold; returns the revision after it (the same if nothing was written)."""
        writes = [change for change in changes if change.value is not None or change.expected]
        if not writes:
            return revision
        revision += 1
        for change in writes:
            if change.value is None:
                db.execute("DELETE FROM records WHERE key = ?", (change.key,))
                db.execute("DELETE FROM leased WHERE key = ?", (change.key,))
            else:
                self._bind(db, change.key, change.lease)
                row = (change.key, change.value, revision)
                db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)
            db.execute("INSERT INTO log VALUES (?, ?, ?)", (revision, change.key, change.value))
        oldest = max(revision - self._history, 0)
        db.execute("DELETE FROM log WHERE revision <= ?", (oldest,))
        db.executemany("UPDATE meta SET number = ? WHERE name = ?", [(revision, "revision"), (oldest, "compacted")])
        return revision

    # --- leases -----------------------------------------------------------------------------------------------

    def grant(self, ttl: float) -> Lease:
        """A new lease."""

        def work(db: sqlite3.Connection) -> Lease:
            done = db.execute("INSERT INTO leases (ttl, until) VALUES (?, ?)", (ttl, _now() + ttl))
            return Lease(done.lastrowid or 0, ttl)

        return self._transaction("IMMEDIATE", work)

    def renew(self, lease: int) -> float:
        """How long the lease lasts from now on; 0: it is gone."""

        def work(db: sqlite3.Connection) -> float:
            found = db.execute("SELECT ttl FROM leases WHERE id = ?", (lease,)).fetchone()
            if found is None:
                return 0.0
            db.execute("UPDATE leases SET until = ? WHERE id = ?", (_now() + found[0], lease))
            return float(found[0])

        return self._transaction("IMMEDIATE", work)

    def revoke(self, lease: int) -> None:
        """End the lease, and delete its records."""
        self._transaction("IMMEDIATE", lambda db: self._end(db, lease))

    def _bind(self, db: sqlite3.Connection, key: str, lease: int) -> None:
        db.execute("DELETE FROM leased WHERE key = ?", (key,))
        if not lease:
            return
        if db.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone() is None:
            raise StoreRefusedError(f"cannot commit to the store {self.path}: lease not found; get another one")
        db.execute("INSERT INTO leased VALUES (?, ?)", (key, lease))

    def _expire(self, db: sqlite3.Connection) -> None:
        for (lease,) in db.execute(_OVER, {"now": _now()}).fetchall():
            self._end(db, lease)

    def _end(self, db: sqlite3.Connection, lease: int) -> None:
        keys = [key for (key,) in db.execute("SELECT key FROM leased WHERE lease = ?", (lease,))]
        gone = [Change(record.key, None, record.revision) for record in _records(db, keys).values()]
        self._write(db, gone, _number(db, "revision"))
        db.execute("DELETE FROM leases WHERE id = ?", (lease,))

    # --- for watches ------------------------------------------------------------------------------------------

    def changes(self, after: int) -> tuple[int, int, Sequence[Event]]:
        """The revision, the last one that left the log, and the changes after ``after`` in order."""

        def work(db: sqlite3.Connection) -> tuple[int, int, Sequence[Event]]:
            query = "SELECT key, value, revision FROM log WHERE revision > ? ORDER BY revision, rowid"
            events = [Event(*row) for row in db.execute(query, (after,))]
            return _number(db, "revision"), _number(db, "compacted"), events

        return self._transaction("DEFERRED", work)


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL. Of several processes that open a new file at once SQLite lets all but one fail without waiting."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _now() -> float:
    """The time since the host's boot (s), its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _number(db: sqlite3.Connection, name: str) -> int:
    (number,) = db.execute("SELECT number FROM meta WHERE name = ?", (name,)).fetchone()
    return int(number)


def _records(db: sqlite3.Connection, keys: Sequence[str] | set[str]) -> dict[str, Record]:
    query = "SELECT key, value, revision FROM records WHERE key = ?"
    rows = (db.execute(query, (key,)).fetchone() for key in keys)
    return {row[0]: Record(*row) for row in rows if row is not None}


def _window(db: sqlite3.Connection, window: KeyRange) -> tuple[str, ...]:
    query = "SELECT key FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
    return tuple(key for (key,) in db.execute(query, (window.start, window.end, window.limit)))


def _revision(records: dict[str, Record], key: str) -> int:
    record = records.get(key)
    return record.revision if record is not None else 0
