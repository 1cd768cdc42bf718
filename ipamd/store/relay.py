"""The daemon's own store, served to administrators: the requests of ``wire`` passed on, within bounds.

A request costs the daemon no more than a few calls of the store, one after the other, and a megabyte of memory. It is
refused in words: with TRY_AGAIN_LATER while the store is away.

May import of ipamd only ``core`` and ``store``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from ipamd.core.errors import Code, RefusedError
from ipamd.core.records import MALFORMED
from ipamd.store.base import KeyRange, Record, Store, StoreRefusedError, StoreUnavailableError
from ipamd.store.wire import BYTES, END, KEYS, ROOT, CommitRequest, Page, ReadRequest

T = TypeVar("T", bound=Struct)

CHUNK = 100
"""Keys in one call of the store: one round trip to etcd."""


class Relay:
    """Answers the bodies of requests; ``store`` gives the daemon's store, None while it is not open yet.

    ``committed`` is told the keys of every change that was made.
    """

    def __init__(self, store: Callable[[], Store | None], committed: Callable[[Iterable[str], int], None]) -> None:
        self._store, self._committed = store, committed

    async def read(self, body: bytes) -> bytes:
        """Answer a ReadRequest with a Page; raises RefusedError."""
        request = _decode(body, ReadRequest)
        window = request.window
        _check(list(request.keys), window)
        store = self._open("read")
        try:
            if window is None:
                return msgspec.msgpack.encode(await _page(store, request.keys, ""))
            limit = min(window.limit, KEYS)
            revision, names = await store.list_keys(KeyRange(window.start, window.end, limit))
            more = names[-1] + "\0" if len(names) == limit < window.limit else ""
            if request.names_only:
                return msgspec.msgpack.encode(Page(revision, (), names, more))
            return msgspec.msgpack.encode(await _page(store, names, more, revision))
        except (StoreUnavailableError, StoreRefusedError) as error:
            raise _refusal("read", error) from error

    async def commit(self, body: bytes, uid: int) -> bytes:
        """Answer a CommitRequest of a user with an Outcome; raises RefusedError."""
        request = _decode(body, CommitRequest)
        named = [change.key for changes in request.alternatives for change in changes]
        _check(named, request.window, [change.expected for changes in request.alternatives for change in changes])
        if not named:
            raise RefusedError(Code.UNDECODABLE, "cannot commit nothing; give at least one change")
        try:
            outcome = await self._open("commit to").commit(*request.alternatives, window=request.window)
        except (StoreUnavailableError, StoreRefusedError) as error:
            raise _refusal("commit to", error) from error
        if outcome.chosen is not None:
            self._committed([change.key for change in request.alternatives[outcome.chosen]], uid)
        return msgspec.msgpack.encode(outcome)

    def _open(self, verb: str) -> Store:
        store = self._store()
        if store is None:
            raise RefusedError(
                Code.TRY_AGAIN_LATER, f"cannot {verb} the store: it is not open yet; try again in a moment"
            )
        return store


async def _page(store: Store, names: tuple[str, ...], more: str, revision: int = 0) -> Page:
    """As many of the records as make a page, and where the next one begins."""
    records: list[Record] = []
    for start in range(0, len(names), CHUNK):
        snapshot = await store.read(names[start : start + CHUNK])
        revision = revision or snapshot.revision
        records += snapshot.records
        rest = names[start + CHUNK :]
        if rest and sum(len(record.value) for record in records) >= BYTES:
            return Page(revision, tuple(records), (), rest[0])
    return Page(revision or (await store.read(())).revision, tuple(records), (), more)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except MALFORMED as error:
        raise RefusedError(
            Code.UNDECODABLE, f"cannot read the request: {error}; send a {kind.__name__} as MessagePack"
        ) from error


def _check(names: list[str], window: KeyRange | None, revisions: Sequence[int] = ()) -> None:
    if len(names) > KEYS:
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot serve {len(names)} keys at once: {KEYS} are the most; ask for fewer"
        )
    stray = next((name for name in names if not name.startswith(ROOT)), None)
    if window is not None and not ROOT <= window.start <= window.end <= END:
        stray = window.start
    if stray is not None:
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot serve the key {stray[:80]!r}: only keys below {ROOT} are served"
        )
    if window is not None and window.limit < 1:
        raise RefusedError(Code.INVALID_CONFIGURATION, "cannot serve a range of no keys; give a limit of at least 1")
    largest = max((*revisions, 0 if window is None else window.limit))
    if largest >= 1 << 63:  # no store can take it
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot serve the number {largest}: limits and revisions are smaller than 2^63"
        )


def _refusal(verb: str, error: StoreUnavailableError | StoreRefusedError) -> RefusedError:
    code = Code.TRY_AGAIN_LATER if isinstance(error, StoreUnavailableError) else Code.IO_FAILURE
    words = str(error)
    return RefusedError(code, words if words.startswith("cannot ") else f"cannot {verb} the store: {words}")
