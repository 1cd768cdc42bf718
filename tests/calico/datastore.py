"""The datastore as Calico's programs use it: one record a call, each change a compare-and-swap on its revision.

It acts on any store (memory, embedded, etcd), one call of the store for each of its own. ``Fuse`` lets a program crash
between any two calls.
"""

import json
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from ipamd.store.base import Change, ChangeSet, KeyRange, Outcome, Snapshot, Store
from tests.calico.block import encode

IPAM = "/calico/ipam/v2/"
RESOURCES = "/calico/resources/v3/projectcalico.org/"
CONFIG = IPAM + "config"
CLUSTER_INFORMATION = RESOURCES + "clusterinformations/default"


class ConflictError(Exception):
    """The record was changed, made or deleted by somebody else: read it again."""


class CrashedError(Exception):
    """The program died before a call of the datastore; what it had written stays."""


class Entry(Struct, frozen=True):
    """A record: its decoded value, and the revision it was read at."""

    key: str
    value: dict[str, Any]
    revision: int


class Datastore:
    """Single records of Calico's; a soft-deleted record is absent."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def get(self, key: str) -> Entry | None:
        """One record."""
        found = (await self.store.read([key])).records
        return next(_entries(found), None)

    async def list(self, prefix: str) -> list[Entry]:
        """All records below a prefix, in the order of their keys."""
        return list(_entries(sorted((await self.store.read([], [prefix])).records, key=lambda record: record.key)))

    async def create(self, key: str, value: dict[str, Any]) -> Entry:
        """Write a record that must not exist; raises ConflictError."""
        return await self._write(key, value, encode(value), 0)

    async def update(self, entry: Entry, raw: bytes | None = None) -> Entry:
        """Write a record that was read; ``raw`` if its bytes are ready. Raises ConflictError."""
        return await self._write(entry.key, entry.value, encode(entry.value) if raw is None else raw, entry.revision)

    async def delete(self, entry: Entry) -> None:
        """Delete a record that was read; raises ConflictError."""
        await self._write(entry.key, entry.value, None, entry.revision)

    async def _write(self, key: str, value: dict[str, Any], raw: bytes | None, expected: int) -> Entry:
        outcome = await self.store.commit([Change(key, raw, expected)])
        if outcome.chosen is None:
            raise ConflictError(key)
        return Entry(key, value, outcome.revision)


def _entries(records: Sequence[Any]) -> Any:
    for record in records:
        value = json.loads(record.value or b"{}")  # very old affinities have no value
        if not value.get("deleted"):
            yield Entry(record.key, value, record.revision)


class Fuse:
    """A store whose user dies before the call that comes after ``calls`` more; None: it never does."""

    def __init__(self, store: Store, calls: int | None = None) -> None:
        self.store = store
        self.name = store.name
        self.calls = store.calls
        self.left = calls

    def _burn(self) -> None:
        if self.left == 0:
            raise CrashedError
        if self.left is not None:
            self.left -= 1

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``Store.read``."""
        self._burn()
        return await self.store.read(keys, prefixes)

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``Store.list_keys``."""
        self._burn()
        return await self.store.list_keys(window)

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``Store.commit``."""
        self._burn()
        return await self.store.commit(*alternatives, window=window)

    def watch(self) -> Any:
        """See ``Store.watch``."""
        return self.store.watch()

    @property
    def connected(self) -> bool:
        """See ``Store.connected``."""
        return self.store.connected

    async def aclose(self) -> None:
        """The store is its owner's to close."""
