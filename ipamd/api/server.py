"""Connections on the API's sockets: one Trio task each, from accept to close.

What it promises:

- A handler that returns a Response is answered without a task switch between receive and send. A handler that
  returns an awaitable is cancelled as soon as its client hangs up. A client that ends its half of the connection
  counts as one that hung up.
- Whatever arrives, the server goes on: a request that cannot be read is refused, an error of a handler becomes a
  500 reply and a call of ``on_crash``; each is the end of its connection only.
- No client costs more than its ``Limits``, and none keeps the others waiting: after ``_TURN`` requests in a row a
  connection lets the rest of the daemon run.

Order of calls: ``serve`` once for each listener, ``stop`` once; ``serve`` returns when the last of its connections
is closed. May import ``connection``, ``http``, ``access`` and ``ipamd.core.errors``.
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final

import msgspec
import trio

from ipamd.api.access import Peer, peer_of
from ipamd.api.connection import Connection, Limits
from ipamd.api.http import CONTINUE, BadRequestError, Request, Response, serialize
from ipamd.core.errors import Code

Handler = Callable[[Request, Peer], Response | Awaitable[Response]]
AfterReply = Callable[[Request, Response, Peer], None]
OnCrash = Callable[[Exception], None]

_TURN: Final = 32  # requests or receives in a row, about a millisecond
_ACCEPT_TURN: Final = 64
_ACCEPT_PAUSE: Final = 0.1  # seconds; while descriptors are short, the listener stays readable
_LINGER: Final = 2.0  # seconds in which a refused client may still send, so that it gets to read the refusal
_LINGER_BYTES: Final = 1 << 24
_SHORT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ABORTED: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH}
)
"""What accept(2) reports of a connection that is gone already, not of the listener."""


def _error(status: int, code: Code, msg: str) -> Response:
    """Return an error of the server's own, in the form of a CNI error object."""
    return Response(status, msgspec.json.encode({"code": code, "msg": msg}), close=True)


_OVERLOADED: Final = serialize(
    _error(503, Code.TRY_AGAIN_LATER, "cannot serve the connection: too many are open; try again later"),
    keep_alive=False,
)
_TOO_SLOW: Final = serialize(
    _error(408, Code.TRY_AGAIN_LATER, "cannot read the request: it did not arrive in time; send it at once"),
    keep_alive=False,
)
_STOPPING: Final = serialize(
    _error(503, Code.TRY_AGAIN_LATER, "cannot serve the request: ipamd is stopping; try again later"), keep_alive=False
)
_CRASHED: Final = serialize(
    _error(500, Code.IO_FAILURE, "cannot serve the request: internal error of ipamd; see its log"), keep_alive=False
)


class Server:
    """Serves HTTP on listening sockets, Unix or TCP, with one set of limits for all its connections.

    ``after_reply`` is called when a reply was sent, ``on_crash`` with what a handler or ``after_reply`` raised; it
    must not raise itself. ``stop`` is final: a stopped server serves nobody any more.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        on_crash: OnCrash,
        after_reply: AfterReply | None = None,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._on_crash = on_crash
        self._after_reply = after_reply
        self._connections: set[Connection] = set()
        self._accepting: set[trio.CancelScope] = set()
        self._stop_at = inf
        self.turned_away = 0
        """How many connections were refused because too many were open."""

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def serve(
        self, listener: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the connections of a listening socket until ``stop``; closes it when it accepts no more."""
        listener.settimeout(0)
        async with trio.open_nursery() as sweeping:
            sweeping.start_soon(self._sweep)
            async with trio.open_nursery() as nursery:
                with listener, trio.CancelScope() as accepting:
                    self._accepting.add(accepting)
                    if self._stop_at < inf:
                        accepting.cancel()
                    task_status.started()
                    await self._accept(listener, nursery)
                self._accepting.discard(accepting)
            sweeping.cancel_scope.cancel()

    def stop(self, grace: float) -> None:
        """Accept no more, close idle connections, and close the others after their request or ``grace`` seconds."""
        self._stop_at = trio.current_time() + grace
        for accepting in self._accepting:
            accepting.cancel()
        for connection in self._connections:
            connection.scope.deadline = self._stop_at
            if connection.waiting_since is not None and not connection.has_input():
                connection.scope.cancel()

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPT_TURN):
                try:
                    sock, _address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _SHORT_OF:
                        self._evict()
                        await trio.sleep(_ACCEPT_PAUSE)
                        break
                    if error.errno not in _ABORTED:
                        raise
                else:
                    self._admit(sock, nursery)

    def _admit(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Start serving a connection, or turn it away if too many are busy."""
        connection = Connection(sock, peer_of(sock), self._limits, trio.current_time())
        if len(self._connections) >= self._limits.max_connections and not self._evict():
            self.turned_away += 1
            connection.send(_OVERLOADED)
            sock.close()
            return
        connection.scope.deadline = self._stop_at
        self._connections.add(connection)
        nursery.start_soon(self._run, connection)

    def _evict(self) -> bool:
        """Close the connection that has been idle for longest; a client that was never served is not idle."""
        idle = [
            (connection.waiting_since, id(connection), connection)
            for connection in self._connections
            if connection.served and connection.waiting_since is not None
        ]
        if not idle:
            return False
        _since, _id, oldest = min(idle)
        self._connections.discard(oldest)
        oldest.scope.cancel()
        return True

    async def _sweep(self) -> None:
        """End the connections that are overdue. One task for all: a timer for each request would cost more."""
        limits = self._limits
        period = min(limits.request_timeout, limits.idle_timeout, limits.send_timeout) / 4
        while True:
            await trio.sleep(period)
            now = trio.current_time()
            for connection in self._connections:
                if connection.due <= now:
                    connection.scope.cancel()

    async def _run(self, connection: Connection) -> None:
        """Serve a connection from its first byte to its close. Cancelling its scope ends it at any point."""
        try:
            with connection.scope:
                await self._converse(connection)
            if connection.scope.cancelled_caught:
                self._explain(connection)
        except Exception as error:  # noqa: BLE001 - the one boundary that turns an error into a reply
            self._on_crash(_unwrap(error))
            if connection.replying:
                connection.send(_CRASHED)
        finally:
            self._connections.discard(connection)
            connection.sock.close()

    def _explain(self, connection: Connection) -> None:
        """Tell a client why its connection ends here, unless it waits for nothing or reads half a reply."""
        if connection.replying:
            connection.send(_STOPPING)
        elif connection.begun is not None and connection.parser.partial:
            connection.send(_TOO_SLOW)

    async def _converse(self, connection: Connection) -> None:
        """Read, answer, read again, until the client hangs up or is not to be served any more."""
        turn = 0
        while True:
            turn += 1
            if turn % _TURN == 0:
                await trio.lowlevel.checkpoint()
            try:
                request = connection.parser.next()
            except BadRequestError as error:
                await self._refuse(connection, error)
                return
            if request is None:
                if not await self._receive(connection):
                    return
                continue
            connection.begun = None
            connection.replying = True
            answer = self._handler(request, connection.peer)
            response = answer if isinstance(answer, Response) else await self._wait(connection, answer)
            if response is None or not await self._reply(connection, request, response):
                return

    async def _receive(self, connection: Connection) -> bool:
        """Feed the parser with what comes next; False if nothing does, and the connection is to be closed."""
        parser = connection.parser
        if parser.expects_continue:
            parser.continued()
            if not await self._send(connection, CONTINUE):
                return False
        while (data := connection.receive()) is None:
            if self._stop_at < inf and not parser.partial:
                return False
            connection.expect(trio.current_time(), self._limits)
            await trio.lowlevel.wait_readable(connection.sock)
            connection.waiting_since = None
            connection.due = inf
        parser.feed(data)
        return bool(data)

    async def _wait(self, connection: Connection, answer: Awaitable[Response]) -> Response | None:
        """Return what the handler answers in the end; None if its client hung up, which cancels it."""
        response = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, connection, nursery.cancel_scope)
            response = await answer
            nursery.cancel_scope.cancel()
        return response

    async def _watch(self, connection: Connection, handling: trio.CancelScope) -> None:
        """Cancel the handling when the client hangs up. What it sends ahead is kept, up to one request's size."""
        while connection.parser.buffered < self._limits.max_head + self._limits.max_body:
            await trio.lowlevel.wait_readable(connection.sock)
            data = connection.receive()
            if data:
                connection.parser.feed(data)
            elif data is not None:
                handling.cancel()
                return

    async def _reply(self, connection: Connection, request: Request, response: Response) -> bool:
        """Send a response; whether the connection is to be kept."""
        keep_alive = request.keep_alive and not response.close and self._stop_at == inf
        data = serialize(response, keep_alive=keep_alive, omit_body=request.method == "HEAD")
        connection.replying = False
        connection.served = True
        if not await self._send(connection, data):
            return False
        if self._after_reply is not None:
            self._after_reply(request, response, connection.peer)
        return keep_alive

    async def _send(self, connection: Connection, data: bytes) -> bool:
        """Send all of the data; False if the client hung up."""
        sent = connection.send(data)
        if sent == len(data):
            return True
        connection.due = trio.current_time() + self._limits.send_timeout
        rest = memoryview(data)
        while sent is not None:
            rest = rest[sent:]
            if not rest:
                connection.due = inf
                return True
            await trio.lowlevel.wait_writable(connection.sock)
            sent = connection.send(rest)
        return False

    async def _refuse(self, connection: Connection, error: BadRequestError) -> None:
        """Answer a request that cannot be read, and let the client finish sending so that it reads the answer."""
        response = _error(error.status, Code.UNDECODABLE, f"{error}; correct the client")
        connection.begun = None
        if not await self._send(connection, serialize(response, keep_alive=False)):
            return
        connection.end_output()
        room = _LINGER_BYTES
        with trio.move_on_after(_LINGER):
            while room > 0:
                await trio.lowlevel.wait_readable(connection.sock)
                data = connection.receive()
                if data == b"":
                    return
                room -= len(data or b"")


def _unwrap(error: Exception) -> Exception:
    """Return what a handler raised without the groups that nurseries put around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
