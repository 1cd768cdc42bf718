"""The daemon's store, through its socket: the part of ``base.Store`` that commands need.

Large reads come in pages; each page is of one revision, all of them together need not be. May import of ipamd only
``core``, ``store.base``, ``store.wire`` and ``ctl``'s client and errors.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from ipamd.ctl.client import Client
from ipamd.store.base import ChangeSet, KeyRange, Outcome, Record, Snapshot
from ipamd.store.wire import CONTENT_TYPE, KEYS, CommitRequest, Page, ReadRequest

T = TypeVar("T", bound=Struct)

_ALL = 1 << 62
"""A limit that no range of keys reaches."""


class RelayedStore:
    """The store behind a daemon. Raises UnreachableError where a store raises StoreUnavailableError."""

    name = "daemon"

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``base.Store``, but for the one revision: it is that of the first page."""
        revision, found = 0, dict[str, Record]()
        left = list(keys)
        while left or not (revision or prefixes):
            page = await self._page(ReadRequest(tuple(left[:KEYS])))
            revision = revision or page.revision
            found.update((record.key, record) for record in page.records)
            left = left[left.index(page.next) :] if page.next else left[KEYS:]
        for prefix in prefixes:
            window = KeyRange.below(prefix, _ALL)
            start = window.start
            while start:
                page = await self._page(ReadRequest(window=KeyRange(start, window.end, _ALL)))
                revision = revision or page.revision
                found.update((record.key, record) for record in page.records)
                start = page.next
        return Snapshot(revision, tuple(found[key] for key in sorted(found)))

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``base.Store``."""
        revision, names, start = 0, list[str](), window.start
        while start:
            asked = KeyRange(start, window.end, window.limit - len(names))
            page = await self._page(ReadRequest(window=asked, names_only=True))
            revision = revision or page.revision
            names += page.names
            start = page.next
        return revision, tuple(names)

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``base.Store``."""
        request = CommitRequest(tuple(tuple(changes) for changes in alternatives), window)
        return await self._call("/v1/store/commit", request, Outcome)

    async def _page(self, request: ReadRequest) -> Page:
        return await self._call("/v1/store/read", request, Page)

    async def _call(self, path: str, request: Struct, kind: type[T]) -> T:
        answer = await self._client.request("POST", path, msgspec.msgpack.encode(request), CONTENT_TYPE)
        return msgspec.msgpack.decode(answer, type=kind)

    async def aclose(self) -> None:
        """There is nothing to let go of."""
