"""Connections on the API's sockets, from accept to close.

``_advance`` serves what has arrived and never waits; it returns what to wait for next. So a request that is there when
its connection is accepted, as the plugin's mostly is, is answered at once. Those that wait for input are in a
``Poller``, and answered when it comes in the turn of one task. Only a connection that has to wait for anything else
gets a Trio task, which would cost as much as the answer.

What it promises:

- A handler that returns a Response is answered without a task switch between receive and send. A handler that
  returns an awaitable is cancelled as soon as its client hangs up. A client that ends its half of the connection
  counts as one that hung up.
- Whatever arrives, the server goes on: a request that cannot be read is refused, an error of a handler becomes a
  500 reply and a call of ``on_crash``; each is the end of its connection only.
- No client costs more than its ``Limits``, and none keeps the others waiting: after ``_TURN`` requests in a row a
  connection lets the rest of the daemon run.
- Who may only read (a guest: neither root nor the daemon's own user) takes nothing from who administers: guests have
  at most half of the connections, and lose them, even amid a request, before an administrator is refused.

Order of calls: ``serve`` once for each listener, ``stop`` once; ``serve`` returns when the last of its connections
is closed. May import ``connection``, ``poller``, ``http``, ``refusals``, ``access`` and
``ipamd.core.errors``.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from itertools import chain
from math import inf
from typing import Final

import trio
from msgspec.structs import replace

from ipamd.api.access import UNKNOWN, Peer, own_uids, peer_of
from ipamd.api.connection import Connection, Limits, acceptor
from ipamd.api.http import CONTINUE, BadRequestError, Request, Response, serialize
from ipamd.api.poller import Poller
from ipamd.api.refusals import CRASHED, FULL, OVERLOADED, STOPPING, TOO_SLOW, refusal
from ipamd.core.errors import Code

Handler = Callable[[Request, Peer], Response | Awaitable[Response]]
AfterReply = Callable[[Request, Response, Peer], None]
Wait = Callable[[], Awaitable[bool]]
"""What a connection has to wait for; answers whether it is to be served further."""


class _Input(Enum):
    """The wait that needs no task."""

    AWAITED = auto()


OnCrash = Callable[[Exception], None]

_TURN: Final = 32  # requests in a row, about a millisecond
_ACCEPT_TURN: Final = 16  # connections in a row, each perhaps with a request to answer
_ACCEPT_PAUSE: Final = 0.1  # seconds; while descriptors are short, the listener stays readable
_LINGER: Final = 2.0  # seconds in which a refused client may still send, so that it gets to read the refusal
_LINGER_BYTES: Final = 1 << 24
_READER_BODY: Final = 1 << 16  # bytes; no route that only reads asks for any
_SHORT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REMEDIES: Final = {
    413: "shorten the network configuration, or raise api.max_body",
    414: "correct the client, or raise api.max_head",
    431: "shorten what the runtime passes in CNI_ARGS, or raise api.max_head",
}
"""What to do about a request that is too large: usually a plugin's, whose parts the operator knows by these names."""
_READER_REMEDY: Final = "only root and the daemon's own user may send more; use sudo"
_ABORTED: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH}
)
"""What accept(2) reports of a connection that is gone already, not of the listener."""


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
        self._accepting: dict[socket.socket, trio.CancelScope] = {}
        self._idle: dict[Connection, None] = {}
        """Those that wait for another request, the longest first."""
        self._unheard: dict[Connection, None] = {}
        """Those that we wait for, for a first request or the rest of one: the longest first."""
        self._guests: dict[Connection, None] = {}
        """Those of others than administrators: the oldest first."""
        self._own_uids = own_uids()
        self._max_guests = max(1, limits.max_connections // 2)
        self._lesser = replace(limits, max_body=min(limits.max_body, _READER_BODY), max_held=limits.max_held // 2)
        """The limits of all but administrators."""
        self._held = 0
        """The bytes of requests that are not whole yet, of all connections."""
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
                poller = Poller(nursery)
                try:
                    await self._welcome(listener, poller, task_status)
                finally:
                    for connection in poller.close():  # few, or soon gone: from now on each waits in a task
                        self._start(connection, partial(self._take, connection))
            sweeping.cancel_scope.cancel()

    async def _welcome(self, listener: socket.socket, poller: Poller, task_status: trio.TaskStatus[None]) -> None:
        """Accept connections, and serve them, until no more are to be accepted; closes the listener."""
        async with trio.open_nursery() as attending:
            attending.start_soon(self._attend, poller)
            with listener, trio.CancelScope() as accepting:
                self._accepting[listener] = accepting
                if self._stop_at < inf:
                    accepting.cancel()
                task_status.started()
                await self._accept(listener, poller)
            del self._accepting[listener]
            attending.cancel_scope.cancel()

    def abandon(self, listener: socket.socket) -> None:
        """Accept no more on this listener; the connections that it brought are served further."""
        self._accepting[listener].cancel()

    def stop(self, grace: float) -> None:
        """Accept no more, close idle connections, and close the others after their request or ``grace`` seconds."""
        self._stop_at = trio.current_time() + grace
        for accepting in self._accepting.values():
            accepting.cancel()
        for connection in self._connections:  # those without a task get one when no more are accepted
            if connection.scope is not None:
                connection.scope.deadline = self._stop_at
                if connection.waiting_since is not None and not connection.has_input():
                    connection.scope.cancel()

    async def _accept(self, listener: socket.socket, poller: Poller) -> None:
        accept = acceptor(listener)
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPT_TURN):
                try:
                    sock = accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _SHORT_OF:
                        self._evict(for_guest=False)
                        await trio.sleep(_ACCEPT_PAUSE)
                        break
                    if error.errno not in _ABORTED:
                        raise
                else:
                    self._admit(sock, poller)

    async def _attend(self, poller: Poller) -> None:
        """Serve those who were waiting for input when it comes."""
        while True:
            for connection in await poller.ready():
                self._heard(connection)
                self._receive(connection)

    def _admit(self, sock: socket.SocketType, poller: Poller) -> None:
        """Start serving a connection, or turn it away if too many are busy."""
        peer = peer_of(sock)
        limits = self._limits if peer.uid in self._own_uids else self._lesser
        guest = limits is self._lesser and peer is not UNKNOWN  # over TCP all are alike
        connection = Connection(sock, peer, limits, trio.current_time(), poller)
        full = len(self._connections) >= self._limits.max_connections
        if (full or (guest and len(self._guests) >= self._max_guests)) and not self._evict(for_guest=guest):
            self.turned_away += 1
            connection.send(OVERLOADED)
            sock.close()
            return
        self._connections.add(connection)
        if guest:
            self._guests[connection] = None
        self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        """Serve what has arrived, and see to what the connection waits for then."""
        wait: Wait | _Input | None = _Input.AWAITED
        try:
            data = connection.receive()
            if data:
                connection.parser.feed(data)
                wait = self._advance(connection)
            elif data is not None:
                wait = None
        except Exception as error:  # noqa: BLE001 - with _run the one boundary that turns an error into a reply
            self._crash(connection, error)
            wait = None
        if wait is _Input.AWAITED and self._expect(connection):
            connection.poller.watch(connection)
        elif wait is None or wait is _Input.AWAITED:
            self._close(connection)
        else:
            connection.poller.forget(connection)
            self._start(connection, wait)

    def _start(self, connection: Connection, wait: Wait) -> None:
        """Serve a connection in a task, until it only waits for input."""
        connection.scope = trio.CancelScope(deadline=self._stop_at)
        connection.poller.nursery.start_soon(self._run, connection, connection.scope, wait)

    def _evict(self, *, for_guest: bool) -> bool:
        """Close the connection that is needed least, if there is one that may be closed for this newcomer.

        A plugin sends its request as it connects. One that is closed before it did so, under a flood, tries again.
        """
        victim = next(self._evictable(for_guest=for_guest), None)
        if victim is None:
            return False
        self._forget(victim)
        victim.begun = None  # not its slowness ends it: nothing is said
        if victim.replying:
            self.turned_away += 1
            victim.send(OVERLOADED)
            victim.replying = False
        self._end(victim)
        return True

    def _evictable(self, *, for_guest: bool) -> Iterator[Connection]:
        """A guest that has been idle for longest, or else kept us waiting. For an administrator then any guest.

        Or else another administrator's that has been idle or kept us waiting; never one that we keep waiting.
        """
        for each in chain(self._idle, self._unheard):
            if each in self._guests:
                yield each
        if not for_guest:
            yield from chain(self._guests, self._idle, self._unheard)

    async def _sweep(self) -> None:
        """End the connections that are overdue. One task for all: a timer for each request would cost more."""
        limits = self._limits
        period = min(limits.request_timeout, limits.idle_timeout, limits.send_timeout) / 4
        while True:
            await trio.sleep(period)
            now = trio.current_time()
            for connection in [each for each in self._connections if each.due <= now]:
                self._end(connection)

    async def _run(self, connection: Connection, scope: trio.CancelScope, wait: Wait) -> None:
        """Serve a connection until it only waits for input. Cancelling its scope ends it at any point."""
        further: Wait | _Input | None = wait
        try:
            with scope:
                while not isinstance(further, _Input | None):
                    further = self._advance(connection) if await further() else None
                    if further is _Input.AWAITED and not connection.poller.open:
                        further = partial(self._listen, connection)
            if scope.cancelled_caught:
                self._explain(connection)
        except Exception as error:  # noqa: BLE001 - with _receive the one boundary that turns an error into a reply
            self._crash(connection, error)
            further = None
        finally:
            if further is not _Input.AWAITED or scope.cancel_called or not self._expect(connection):
                self._close(connection)
            else:
                connection.scope = None
                connection.poller.watch(connection)

    def _end(self, connection: Connection) -> None:
        """End a connection, whatever it waits for."""
        if connection.scope is not None:
            connection.scope.cancel()
        else:
            self._explain(connection)
            self._close(connection)

    def _crash(self, connection: Connection, error: Exception) -> None:
        self._on_crash(_unwrap(error))
        if connection.replying:
            connection.send(CRASHED)

    def _forget(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._unheard.pop(connection, None)
        self._guests.pop(connection, None)
        self._held -= connection.held
        connection.held = 0

    def _close(self, connection: Connection) -> None:
        self._forget(connection)
        connection.poller.forget(connection)
        connection.sock.close()

    def _explain(self, connection: Connection) -> None:
        """Tell a client why its connection ends here, unless it waits for nothing or reads half a reply."""
        if connection.replying:
            connection.send(STOPPING)
        elif connection.begun is not None and connection.parser.partial:
            connection.send(TOO_SLOW)

    def _advance(self, connection: Connection) -> Wait | _Input | None:
        """Serve what was received; return what to wait for before the next call, None if the connection is to end."""
        parser = connection.parser
        for _ in range(_TURN):
            try:
                request = parser.next()
            except BadRequestError as error:
                return partial(self._refuse, connection, error)
            if request is None:
                return partial(self._invite, connection) if parser.expects_continue else _Input.AWAITED
            connection.begun = None
            self._unheard.pop(connection, None)
            connection.replying = True
            answer = self._handler(request, connection.peer)
            if not isinstance(answer, Response):
                return partial(self._complete, connection, request, answer)
            keep = self._reply(connection, request, answer)
            if connection.unsent:
                return partial(self._finish, connection, request, answer, keep=keep)
            if not keep:
                return None
        return self._pause

    def _reply(self, connection: Connection, request: Request, response: Response) -> bool:
        """Send a response, or what the socket takes of it; whether the connection is to be kept."""
        keep_alive = request.keep_alive and not response.close and self._stop_at == inf
        data = serialize(response, keep_alive=keep_alive, omit_body=request.method == "HEAD")
        connection.replying = False
        if not connection.send(data):
            return False
        if self._after_reply is not None and not connection.unsent:
            self._after_reply(request, response, connection.peer)
        return keep_alive

    # --- what a connection may wait for -----------------------------------------------------------------------

    @staticmethod
    async def _pause() -> bool:
        """Let the rest of the daemon run."""
        await trio.lowlevel.checkpoint()
        return True

    async def _listen(self, connection: Connection) -> bool:
        """Wait for input where no poller does any more."""
        if not self._expect(connection):
            return False
        await trio.lowlevel.wait_readable(connection.sock)
        self._heard(connection)
        return await self._take(connection)

    @staticmethod
    async def _take(connection: Connection) -> bool:
        """Receive what has arrived; False if the client hung up."""
        data = connection.receive()
        if data:
            connection.parser.feed(data)
        return data != b""

    def _expect(self, connection: Connection) -> bool:
        """Let a connection wait for input, unless it would be the beginning of a request and the server is to stop."""
        if self._stop_at < inf and not connection.parser.partial:
            return False
        if not self._hold(connection):
            return False
        connection.expect(trio.current_time(), self._limits)
        waiting = self._idle if connection.begun is None else self._unheard
        waiting.setdefault(connection)  # who sends bit by bit keeps his place
        return True

    def _hold(self, connection: Connection) -> bool:
        """Count what is kept of a request that is not whole; tell the client if all of them together are too much."""
        held = connection.parser.buffered
        self._held += held - connection.held
        connection.held = held
        if not held or self._held <= max(connection.limits.max_held, held):  # there is always room for one
            return True
        connection.send(FULL)
        return False

    def _heard(self, connection: Connection) -> None:
        """There is input, or the end of it."""
        self._idle.pop(connection, None)
        connection.waiting_since = None
        connection.due = inf

    async def _invite(self, connection: Connection) -> bool:
        """Ask for the body that the client holds back."""
        connection.parser.continued()
        return connection.send(CONTINUE) and await self._drain(connection)

    async def _finish(self, connection: Connection, request: Request, response: Response, *, keep: bool) -> bool:
        """Send the rest of a response that the socket did not take at once."""
        if not await self._drain(connection):
            return False
        if self._after_reply is not None:
            self._after_reply(request, response, connection.peer)
        return keep

    async def _drain(self, connection: Connection) -> bool:
        """Wait until the socket has taken all that was sent; False if the client hung up."""
        connection.due = trio.current_time() + self._limits.send_timeout
        while connection.unsent:
            await trio.lowlevel.wait_writable(connection.sock)
            if not connection.send(connection.unsent):
                return False
        connection.due = inf
        return True

    async def _complete(self, connection: Connection, request: Request, answer: Awaitable[Response]) -> bool:
        """Answer a request whose handler has to wait."""
        response = await self._wait(connection, answer)
        if response is None or not connection.replying:  # evicted as the answer came: it was told so
            return False
        keep = self._reply(connection, request, response)
        return await self._finish(connection, request, response, keep=keep) if connection.unsent else keep

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
        limits = connection.limits
        while connection.parser.buffered < limits.max_head + limits.max_body:
            await trio.lowlevel.wait_readable(connection.sock)
            data = connection.receive()
            if data:
                connection.parser.feed(data)
            elif data is not None:
                handling.cancel()
                return

    async def _refuse(self, connection: Connection, error: BadRequestError) -> bool:
        """Answer a request that cannot be read, and let the client finish sending so that it reads the answer."""
        remedy = _REMEDIES.get(error.status, "correct the client")
        if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and connection.limits is self._lesser:
            remedy = _READER_REMEDY
        response = refusal(error.status, Code.UNDECODABLE, f"{error}; {remedy}")
        connection.begun = None
        if not connection.send(serialize(response, keep_alive=False)) or not await self._drain(connection):
            return False
        connection.end_output()
        room = _LINGER_BYTES
        with trio.move_on_after(_LINGER):
            while room > 0:
                await trio.lowlevel.wait_readable(connection.sock)
                data = connection.receive()
                if data == b"":
                    break
                room -= len(data or b"")
        return False


def _unwrap(error: Exception) -> Exception:
    """Return what a handler raised without the groups that nurseries put around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
