"""The store protocol's verbs on an etcd cluster: read, list, commit, lease, watch.

A commit is one transaction in one round trip. A read of many keys or of large prefixes takes several, the later
ones at the revision of the first; if etcd compacted that one meanwhile, the read begins anew.
"""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from ipamd.store.base import (
    ChangeSet,
    KeyRange,
    Lease,
    Outcome,
    Record,
    Snapshot,
    StoreRefusedError,
    StoreUnavailableError,
    Watch,
    nobody_to_tell,
)
from ipamd.store.etcd import messages, rpc, transaction
from ipamd.store.etcd.call import NoSpaceError, RpcFailedError
from ipamd.store.etcd.session import Session
from ipamd.store.etcd.settings import EtcdSettings
from ipamd.store.etcd.watch import EtcdWatch

OPERATIONS = 100
"""Ranges in one transaction of a read; etcd takes 128 operations unless it is configured otherwise."""
PAGE = 500
"""Records of a prefix in one answer: with full blocks of 64 some 8 MB."""
READ_ATTEMPTS = 3
R = TypeVar("R", rpc.RangeReply, rpc.TxnReply, rpc.LeaseReply, rpc.RevokeReply)
_NOTHING = (b"/calico/", b"")
"""A key that does not exist, to learn the revision by: one that a user of Calico's keys may read."""


class EtcdStore:
    """Records in etcd. Connects with the first call; see ``base.Store`` for the promises."""

    name = "etcd"

    def __init__(self, settings: EtcdSettings) -> None:
        self.calls = {"read": 0, "commit": 0, "list": 0, "watch": 0, "lease": 0}
        self.distrust: Callable[[], None] = nobody_to_tell
        self._session = Session(settings)
        self._one_by_one = False
        """etcd is out of space: it refuses transactions, and raises its alarm anew for each."""

    @property
    def connected(self) -> bool:
        """Whether the last call or the watch stream reached etcd."""
        return self._session.connected

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``base.Store``; one round trip for up to 100 keys and prefixes of up to 500 records each."""
        for _ in range(READ_ATTEMPTS):
            try:
                return await self._read(keys, prefixes)
            except RpcFailedError as error:  # compacted under our feet
                cause = error.details
        raise StoreUnavailableError(f"cannot read etcd at one revision: {cause}; try again")

    async def _read(self, keys: Sequence[str], prefixes: Sequence[str]) -> Snapshot:
        spans = [(key.encode(), b"") for key in keys]
        spans += [(prefix.encode(), messages.prefix_end(prefix.encode())) for prefix in prefixes]
        spans = spans or [_NOTHING]
        records: dict[str, Record] = {}
        revision = 0
        while spans:
            asked, spans = spans[:OPERATIONS], spans[OPERATIONS:]
            revision, answers = await self._ranges(asked, revision)
            for (_, end), answer in zip(asked, answers, strict=True):
                records.update((kv.key.decode(), transaction.record(kv)) for kv in answer.kvs)
                if answer.more:
                    spans.append((answer.kvs[-1].key + b"\0", end))
        return Snapshot(revision=revision, records=tuple(records[key] for key in sorted(records)))

    async def _ranges(
        self, spans: Sequence[tuple[bytes, bytes]], revision: int
    ) -> tuple[int, Sequence[rpc.RangeReply]]:
        """A page of each of ``spans`` at ``revision`` (0: the current one), and the revision they are of."""
        if len(spans) > 1 and not self._one_by_one:
            txn = messages.Txn()
            for key, end in spans:
                txn.get(messages.get(key, end, limit=PAGE, revision=revision))
            try:
                reply = await self._call("read", "read", lambda stubs: stubs.txn, txn.request)
            except NoSpaceError:
                self._one_by_one = True  # plain ranges are still served
            else:
                return revision or reply.header.revision, [one.response_range for one in reply.responses]
        answers = []
        for key, end in spans:
            single = messages.get(key, end, limit=PAGE, revision=revision)
            answer = await self._call("read", "read", lambda stubs: stubs.range, single)
            revision = revision or answer.header.revision
            answers.append(answer)
        return revision, answers

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``base.Store``; one round trip."""
        request = transaction.window_request(window)
        reply = await self._call("list", "list the keys of", lambda stubs: stubs.range, request)
        return reply.header.revision, transaction.keys(reply)

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``base.Store``; one round trip, sent once."""
        if not alternatives:
            raise ValueError("cannot commit nothing; give at least one change set")
        request = transaction.build(alternatives, window)
        await trio.lowlevel.checkpoint()  # to build it took a while, and so does sending it: requests are answered
        reply = await self._call("commit", "commit to", lambda stubs: stubs.txn, request)
        self._one_by_one = False
        return transaction.outcome(reply, alternatives, window)

    async def grant(self, ttl: float) -> Lease:
        """See ``base.Store``; etcd counts whole seconds, and has a least (2 by default)."""
        request = messages.grant(math.ceil(ttl))
        reply = await self._call("lease", "get a lease of", lambda stubs: stubs.grant, request)
        return Lease(reply.ID, reply.TTL)

    async def renew(self, lease: int) -> float:
        """See ``base.Store``."""
        reply = await self._call("lease", "renew a lease of", lambda stubs: stubs.renew, messages.renew(lease))
        return reply.TTL

    async def revoke(self, lease: int) -> None:
        """See ``base.Store``."""
        try:
            await self._call("lease", "end a lease of", lambda stubs: stubs.revoke, messages.revoke(lease))
        except StoreRefusedError as error:
            if "lease not found" not in str(error):
                raise

    async def _call(self, kind: str, verb: str, pick: Callable[[rpc.Stubs], rpc.Method[R]], request: rpc.Request) -> R:
        self.calls[kind] += 1
        reply = await self._session.call(verb, pick, request)
        before, self._session.cluster = self._session.cluster, reply.header.cluster_id
        if before not in (0, reply.header.cluster_id):
            self.distrust()
            raise StoreUnavailableError(
                f"cannot {verb} etcd: cluster {reply.header.cluster_id:x} answers where {before:x} did, restored from "
                "a backup or another one; reading everything again"
            )
        return reply

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """See ``base.Store``."""
        watch = EtcdWatch(self._session, self.calls)
        # The nursery is left by hand so that what the body raises reaches the caller as it is, not in a group.
        manager = trio.open_nursery()
        nursery = await manager.__aenter__()
        nursery.start_soon(watch.run)
        try:
            yield watch
        finally:
            nursery.cancel_scope.cancel()
            await manager.__aexit__(None, None, None)

    async def aclose(self) -> None:
        """Close the connections; calls under way end with StoreUnavailableError."""
        self._session.close()
        await trio.lowlevel.checkpoint()
