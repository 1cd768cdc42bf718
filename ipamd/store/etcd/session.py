"""A session with the cluster: one deadline a call, one endpoint at a time, a token that is renewed, errors in words.

Order of a call: deadline, link (dialled, after a probe if there are several endpoints, and again when the TLS files
changed), token, RPC. A call is sent once: repeating it elsewhere could commit twice. Only an etcd that refused the
token, and so did nothing, is asked again, once, with a new one. After a failure the next call dials the next
endpoint, and probes it before it trusts it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import trio

from ipamd.store.base import StoreRefusedError, StoreUnavailableError
from ipamd.store.etcd import messages, rpc
from ipamd.store.etcd.call import RpcFailedError, T, invoke
from ipamd.store.etcd.channel import Link, TlsFiles
from ipamd.store.etcd.settings import EtcdSettings

TLS_CHECK_SECONDS = 1.0
PROBE_SECONDS = 1.0
GRACE_SECONDS = 0.25
"""gRPC's own deadline comes first: it knows the cause."""


class Session:
    """The way to the cluster that all calls and watches of a store share."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.connected = False
        self.cluster = 0
        """etcd's id of the cluster that answered last; 0: none did."""
        self._endpoints = settings.parsed
        self._where = ", ".join(settings.endpoints)
        self._first = 0
        self._link: Link | None = None
        self._dialling = trio.Lock()
        self._tls: TlsFiles | None = None
        self._tls_checked = 0.0
        self._token: str | None = None
        self._authenticating = trio.Lock()
        self._closed = False

    async def call(self, verb: str, pick: Callable[[rpc.Stubs], rpc.Method[T]], request: rpc.Request) -> T:
        """Make the call that ``pick`` chooses; ``verb`` ("read", "commit to") is for the errors' texts.

        Raises StoreUnavailableError and StoreRefusedError, and RpcFailedError with code OUT_OF_RANGE for a
        revision that is compacted.
        """
        limit = self.settings.timeout
        with trio.move_on_after(limit + GRACE_SECONDS):
            reply = await self._attempts(verb, pick, request, trio.current_time() + limit)
            self.connected = True
            return reply
        self.connected = False
        raise StoreUnavailableError(f"cannot {verb} etcd at {self._where}: no answer within {limit:g} s")

    async def _attempts(
        self, verb: str, pick: Callable[[rpc.Stubs], rpc.Method[T]], request: rpc.Request, deadline: float
    ) -> T:
        for last in (False, True):
            link = await self.link()
            used: str | None = None
            try:
                metadata, used = await self._metadata(link, deadline)
                return await self._on(link, pick(link.stubs), request, metadata, deadline)
            except RpcFailedError as error:
                if error.stale_token and used is not None and not last:
                    self.forget_token(used)
                    continue
                if error.code == "OUT_OF_RANGE":
                    raise
                raise self.failed(link, error, verb) from None
        raise AssertionError("the last attempt returns or raises")

    async def _on(
        self,
        link: Link,
        method: rpc.Method[T],
        request: rpc.Request,
        metadata: rpc.Metadata,
        deadline: float,
    ) -> T:
        link.enter()
        try:
            remaining = deadline - trio.current_time()
            return await invoke(method, request, seconds=remaining, metadata=metadata)
        finally:
            link.leave()

    def failed(self, link: Link, error: RpcFailedError, verb: str) -> StoreRefusedError | StoreUnavailableError:
        """Take note that an RPC failed; returns what to raise. The next call avoids the link if that may help."""
        self.connected = not error.unavailable
        if error.unavailable and link is self._link and not self._closed:
            self._tls_checked = -math.inf  # perhaps the certificates are why
            if len(self._endpoints) > 1:
                self._first = (self._endpoints.index(link.endpoint) + 1) % len(self._endpoints)
                self._link = None
                link.retire()
        return error.in_words(verb, link.endpoint.url)

    async def link(self) -> Link:
        """The link for the next call. Raises StoreUnavailableError, StoreRefusedError."""
        self._check_open()
        if self._link is not None and not self._renewal_due():
            return self._link
        async with self._dialling:
            self._check_open()
            if self._link is not None and not self._tls_changed():
                return self._link
            old, self._link = self._link, await self._dial()
            if old is not None:
                old.retire()
            return self._link

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("cannot reach etcd: the store is closed")

    def _renewal_due(self) -> bool:
        now = trio.current_time()
        if now - self._tls_checked < TLS_CHECK_SECONDS:
            return False
        self._tls_checked = now
        return self._tls_changed()

    def _tls_changed(self) -> bool:
        return self._tls is not None and self._tls.changed()

    async def _dial(self) -> Link:
        await trio.to_thread.run_sync(rpc.load)
        self._check_open()
        if self._tls is None:
            self._tls = TlsFiles(self.settings)
        material = self._tls.read()
        if len(self._endpoints) == 1:
            return Link(self.settings, self._endpoints[0], material)
        causes = []
        for endpoint in (*self._endpoints[self._first :], *self._endpoints[: self._first]):
            link = Link(self.settings, endpoint, material)
            cause = await self._probe(link)
            if cause is None:
                return link
            causes.append(f"{endpoint.url} ({cause})")
        self.connected = False
        raise StoreUnavailableError(f"cannot reach etcd at any endpoint: {', '.join(causes)}")

    async def _probe(self, link: Link) -> str | None:
        """Why the member behind ``link`` is of no use, None if it answers; closes the link in the former case."""
        usable = False
        share = self.settings.timeout / (len(self._endpoints) + 1)
        try:
            await invoke(link.stubs.status, messages.status(), seconds=min(PROBE_SECONDS, share))
            usable = True
        except RpcFailedError as error:
            usable = not error.unavailable  # it answered, if only to refuse
            return None if usable else error.details
        finally:
            if not usable:
                link.close()
        return None

    async def _metadata(self, link: Link, deadline: float) -> tuple[rpc.Metadata, str | None]:
        """What goes with every request, and the token in it.

        ``hasleader``: a member that is cut off from its peers says so instead of hanging.
        """
        metadata = [("hasleader", "true")]
        if self.settings.username is None:
            return metadata, None
        async with self._authenticating:
            if self._token is None:
                self._token = await self._authenticate(link, deadline)
            token = self._token
        return [*metadata, ("token", token)] if token else metadata, token

    async def _authenticate(self, link: Link, deadline: float) -> str:
        """A new token; empty if etcd's authentication is (still) off."""
        request = messages.authenticate(self.settings.username or "", self._password())
        try:
            reply = await self._on(link, link.stubs.authenticate, request, (), deadline)
        except RpcFailedError as error:
            if "authentication is not enabled" in error.details:
                return ""
            raise
        return reply.token

    def _password(self) -> str:
        path = Path(self.settings.password_file or "")
        try:
            return path.read_text("utf-8").removesuffix("\n")
        except OSError as error:
            raise StoreRefusedError(
                f"cannot read the etcd password from {path}: {error.strerror}; check password_file"
            ) from None

    def forget_token(self, used: str) -> None:
        """Authenticate again before the next request, unless another call did already since ``used`` was current."""
        if self._token == used:
            self._token = None

    async def stream_start(self) -> tuple[Link, rpc.Metadata, str | None]:
        """A link, the metadata to open a stream with, and the token in it.

        Raises StoreUnavailableError, StoreRefusedError.
        """
        link = await self.link()
        try:
            return link, *await self._metadata(link, trio.current_time() + self.settings.timeout)
        except RpcFailedError as error:
            raise self.failed(link, error, "authenticate to") from None

    def close(self) -> None:
        """End every call and stream; later calls are refused."""
        self._closed = True
        self.connected = False
        link, self._link = self._link, None
        if link is not None:
            link.retire()
            link.close()
