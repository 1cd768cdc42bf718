"""GET requests to the API server: whole answers, and watches line by line.

HTTP/1.1 by httpx, which runs on Trio by itself. The server is reached directly, whatever the environment says of
proxies to the node's other programs; redirects are not followed.
"""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

import httpx
import trio

from ipamd import __version__
from ipamd.kubernetes.access import Access, Credentials, Tls
from ipamd.kubernetes.errors import ApiError, NonsenseError
from ipamd.kubernetes.objects import Status, decode

CALL_SECONDS = 10.0
"""In which an answer must begin: a list of thousands of namespaces takes the server a while."""

MAX_LINE = 8 << 20
"""Bytes in a line of a watch: five times what etcd, and so the API, lets an object have."""

_UNAUTHORIZED = 401
_SOCKET_OPTIONS = (
    # A peer that is gone without a word ends a silent watch in half a minute, not at its next bookmark.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)

Transport = Callable[[ssl.SSLContext], httpx.AsyncBaseTransport]


def tcp(context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """Connections over TCP: two for the watches, the others for pods that are asked for by name."""
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30)
    return httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits, socket_options=_SOCKET_OPTIONS)


class Client:
    """Asks the server that ``credentials`` name; each answer must begin within CALL_SECONDS."""

    def __init__(self, credentials: Credentials, transport: Transport = tcp) -> None:
        self._credentials, self._transport = credentials, transport
        self._session: httpx.AsyncClient | None = None
        self._tls: Tls | None = None

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.aclose()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """The body of an answer; raises ApiError."""
        async with self._answer(path, params or {}, CALL_SECONDS) as response:
            with self._told(CALL_SECONDS):
                return await response.aread()

    async def follow(
        self,
        path: str,
        params: Mapping[str, str],
        silence: float,
        opened: Callable[[], None],
        take: Callable[[bytes], None],
    ) -> None:
        """Call ``opened``, then ``take`` with each line of an answer as it comes, until the server ends it.

        Raises ApiError, also what ``take`` raises, and after ``silence`` seconds without a word.
        """
        failed: list[ApiError] = []
        async with self._answer(path, params, silence) as response:
            opened()
            buffer = b""
            # A failure cancels the reading where it waits: httpx's iterators, left in the middle, would not be closed.
            with self._told(silence), trio.CancelScope() as reading:
                async for chunk in response.aiter_bytes():
                    try:
                        buffer = _take_lines(buffer + chunk, take) if not failed else b""
                    except ApiError as error:
                        failed.append(error)
                        reading.cancel()
        if failed:
            raise failed[0]

    @asynccontextmanager
    async def _answer(self, path: str, params: Mapping[str, str], read: float) -> AsyncIterator[httpx.Response]:
        with self._told(CALL_SECONDS):
            try:
                with trio.fail_after(CALL_SECONDS):
                    response = await self._ask(path, params, read)
            except trio.TooSlowError as error:
                raise ApiError(_late(CALL_SECONDS)) from error
        try:
            if response.status_code != httpx.codes.OK:
                raise await self._refusal(response)
            yield response
        finally:
            await response.aclose()

    async def _ask(self, path: str, params: Mapping[str, str], read: float) -> httpx.Response:
        response = await self._send(self._credentials.current(), path, params, read)
        if response.status_code == _UNAUTHORIZED:  # the token expired, and the file may hold a new one
            await response.aclose()
            response = await self._send(self._credentials.current(refused=True), path, params, read)
        return response

    async def _send(self, access: Access, path: str, params: Mapping[str, str], read: float) -> httpx.Response:
        session = await self._session_for(access.tls)
        headers = {"Accept": "application/json"}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        timeout = httpx.Timeout(CALL_SECONDS, read=read)
        request = session.build_request("GET", access.server + path, params=params, headers=headers, timeout=timeout)
        return await session.send(request, stream=True)

    async def _session_for(self, tls: Tls) -> httpx.AsyncClient:
        """The connections made with these certificates; those made with others end, and watches resume on new ones."""
        if self._session is None or self._tls != tls:
            replaced, self._tls = self._session, tls
            self._session = httpx.AsyncClient(
                transport=self._transport(_context(tls)), headers={"User-Agent": f"ipamd/{__version__}"}
            )
            if replaced is not None:
                await replaced.aclose()
        return self._session

    async def _refusal(self, response: httpx.Response) -> ApiError:
        message = ""
        with suppress(ApiError), trio.move_on_after(CALL_SECONDS), self._told(CALL_SECONDS):
            message = decode(await response.aread(), Status).message
        after = response.headers.get("retry-after", "")
        return ApiError(
            f"the Kubernetes API answered {response.status_code}{f': {message}' if message else ''}",
            response.status_code,
            float(after) if after.isascii() and after.isdecimal() and len(after) < 6 else 0.0,
        )

    @contextmanager
    def _told(self, timeout: float) -> Iterator[None]:
        """Turn what httpx raises into an ApiError with words."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise ApiError(_late(timeout)) from error
        # UnicodeError: what getaddrinfo says of a host name that cannot be one.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            raise ApiError(f"the Kubernetes API cannot be reached ({_words(error)})") from error


def _take_lines(data: bytes, take: Callable[[bytes], None]) -> bytes:
    """Take the whole lines of ``data``; returns what is left."""
    # Not httpx's aiter_lines: it also ends a line at U+0085 and others that JSON may hold as they are.
    *lines, rest = data.split(b"\n")
    for line in lines:
        take(line)
    if len(rest) > MAX_LINE:
        raise NonsenseError(f"the Kubernetes API sent a line of more than {MAX_LINE} bytes")
    return rest


def _late(timeout: float) -> str:
    return f"the Kubernetes API did not answer in {timeout:g} s"


def _words(error: BaseException) -> str:
    """The first words in an error's chain of causes: httpx's own are often empty."""
    found: BaseException | None = error
    while found is not None:
        if str(found):
            return str(found)
        found = found.__cause__ or found.__context__
    return type(error).__name__


def _context(tls: Tls) -> ssl.SSLContext:
    """A TLS context that checks the server; raises ApiError for certificates that cannot be used."""
    try:
        context = ssl.create_default_context(cadata=tls.ca.decode() if tls.ca is not None else None)
        # Python 3.13 demands an Authority Key Identifier, which the certificates of many clusters lack.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if tls.cert is not None and tls.key is not None:
            _load_certificate(context, tls.cert, tls.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ApiError(f"the certificates for the Kubernetes API cannot be used ({error})") from error
    return context


def _load_certificate(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    # ssl reads a client's certificate from a file only; this one is in memory, and nobody else's to read.
    descriptor = os.memfd_create("ipamd-client-certificate")
    with open(descriptor, "wb") as file:  # noqa: PTH123 - Path cannot open a descriptor
        file.write(cert + b"\n" + key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
