"""The narrow protocol that every store implements, and its values.

Keys are Calico's etcd keys (``/calico/...``) in every store: they name kind, family and object, so a store with
another key space (the Kubernetes API with Calico's CRDs) can translate them. Values are the records' JSON bytes.
Revisions are integers that grow with every commit of the whole store; a record's revision is that of its last
change. One contract suite (``tests/store/test_contract.py``) is run against every implementation.

May import nothing of ipamd outside ``core``.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct

from ipamd.core.facts import Committed


class StoreUnavailableError(Exception):
    """The store did not answer in time or cannot be reached; whether a commit took effect is not known.

    The text says which endpoint and why, for logs and for the error a pod's events show.
    """


class StoreRefusedError(Exception):
    """The store answered and said no: authentication, permission, quota (NOSPACE), a request too large."""


class OtherClusterError(StoreRefusedError):
    """The store's records are another cluster's than those that this node's state is of: nothing of it was merged."""

    def __init__(self, known: str, found: str) -> None:
        super().__init__(
            f"the store is cluster {found} (ClusterInformation's clusterGUID), and this node's state is of cluster "
            f"{known}; nothing of the one was written to the other; correct the endpoints, or recreate the pods here"
        )
        self.known = known
        self.found = found


class CompactedError(Exception):
    """The revisions from which a watch was to resume are gone, or not yet there: the store's history was set back.

    Read everything again, then watch from there.
    """


def nobody_to_tell() -> None:
    """Nobody remembers what this store said (see ``Store.distrust``)."""


class Record(Struct, frozen=True):
    """A key with its value and the revision of its last change."""

    key: str
    value: bytes
    revision: int


class Change(Struct, frozen=True):
    """One record's new value (None: delete), valid only while the record's revision is ``expected`` (0: absent)."""

    key: str
    value: bytes | None
    expected: int
    lease: int = 0
    """The lease (``Store.grant``) with whose end the record vanishes; 0: it stays."""


ChangeSet = Sequence[Change]
"""Changes that belong together, in an order of which every prefix is safe.

Allocate: handle before block. Release: block before handle. Claim: affinity, handle, block (a store of single
objects writes the affinity twice: pending, and confirmed when the block is there).
etcd and the embedded store commit a set whole; a store that writes single objects applies it in order and stops
at the first that fails. A key appears at most once in a set.
"""


class KeyRange(Struct, frozen=True):
    """Keys with ``start <= key < end`` in byte order, at most ``limit`` of them."""

    start: str
    end: str
    limit: int

    @classmethod
    def below(cls, prefix: str, limit: int) -> "KeyRange":
        """All keys that begin with ``prefix``, which must not be empty."""
        return cls(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1), limit)


class Outcome(Struct, frozen=True):
    """What a commit did.

    ``chosen`` is the index of the change set that was committed, None if none could be; ``revision`` the store's
    revision at that moment (all written records have it, if one was chosen). If none was chosen, ``records`` holds
    the current record of every key named by any of the sets (absent keys: no entry), and ``window`` the existing
    keys of the range asked for.
    """

    chosen: int | None
    revision: int
    records: dict[str, Record]
    window: tuple[str, ...] = ()


class Snapshot(Struct, frozen=True):
    """Records as they stood together at ``revision``."""

    revision: int
    records: tuple[Record, ...]

    def facts(self, names: Iterable[str] = ()) -> list[Committed]:
        """The records as facts; the keys of ``names`` that have none were asked for and are absent."""
        found = [Committed(record.key, record.revision, record.value) for record in self.records]
        present = {record.key for record in self.records}
        return found + [Committed(key, self.revision, None) for key in names if key not in present]


class Lease(Struct, frozen=True):
    """What a store granted: the lease's id, and for how many seconds it lasts unless it is renewed."""

    id: int
    ttl: float


class Event(Struct, frozen=True):
    """A record changed: its new value (None: deleted) and the revision of the change."""

    key: str
    value: bytes | None
    revision: int


class Watch(Protocol):
    """A stream of changes of a set of keys and prefixes that may grow and shrink while it runs.

    Iterate it for batches of events in revision order. It resumes by itself, without loss, after the store was
    away; it raises CompactedError when that is not possible.
    """

    def add(self, name: str, revision: int, *, prefix: bool = False) -> None:
        """Watch ``name`` (or every key beginning with it) for changes after ``revision``; adding twice is one."""

    def remove(self, name: str) -> None:
        """Stop watching ``name``; events already under way may still arrive."""

    def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        """Batches of events; never ends by itself.

        Raises CompactedError, or StoreRefusedError (login, permission); nothing is watched any more then.
        """


class Store(Protocol):
    """A store of records with revisions. Every call has a deadline of its own and raises StoreUnavailableError."""

    name: str
    """``etcd`` or ``embedded``: for status and metrics."""
    calls: dict[str, int]
    """How many calls were made since the start, by kind (``read``, ``commit``, ``list``, ``watch``, ``lease``)."""
    distrust: Callable[[], None]
    """Called, whoever asked, when what answers has another history than what answered before: restored from a backup,
    or another cluster. All that is known of revisions is to be read again before anything is written.
    """

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """All records with these keys and below these prefixes, linearizable and at one revision."""

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """The store's revision and the existing keys of the window, in byte order."""

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """Commit the first change set all of whose expectations hold, in one round trip.

        On StoreUnavailableError the outcome is unknown: read again before deciding anything. A lease that is gone
        makes it a StoreRefusedError.
        """

    async def grant(self, ttl: float) -> Lease:
        """A lease of ``ttl`` seconds, or of somewhat more: records can be bound to it (``Change.lease``)."""

    async def renew(self, lease: int) -> float:
        """Begin a lease's time anew; returns for how many seconds from now on, 0 if there is no such lease any more."""

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete what is bound to it; harmless if there is none."""

    def watch(self) -> AbstractAsyncContextManager[Watch]:
        """A watch of nothing yet; entering it does not wait for the store."""

    @property
    def connected(self) -> bool:
        """Whether the last call or the watch stream reached the store."""

    async def aclose(self) -> None:
        """Let go of connections, threads and files."""
