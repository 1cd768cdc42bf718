"""The server on real sockets: what a client sees, and what no client can do to the others."""

import errno
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress

import h11
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipamd.api.access import UNKNOWN, Peer
from ipamd.api.connection import Limits
from ipamd.api.http import Response
from ipamd.api.server import Server
from ipamd.api.sockets import bind

LIMITS = Limits(max_connections=3, max_head=2048, max_body=4096, request_timeout=10, idle_timeout=60, send_timeout=20)
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
BIG = b"x" * 5_000_000


@pytest.fixture(autouse=True)
def _end_in_time():
    """End a test that hangs: where the clock is mocked, no timeout of Trio's does."""

    def hung(number, frame):
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def echo(request, peer):
    """Answer with the path and body of the request."""
    return Response(200, request.path.encode() + request.body, "text/plain")


def get(path):
    """Return a request for a path."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Client:
    """A client's end of a connection, reading with h11."""

    def __init__(self, stream):
        self.stream = stream
        self.rest = b""

    async def send(self, data):
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def receive(self):
        """Return status and body of the next response; its connection's fate is in ``must_close``."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        reader.send(h11.EndOfMessage())
        if self.rest:  # h11 takes no bytes for the end of the connection
            reader.receive_data(self.rest)
        status, body = 0, b""
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data = await self.stream.receive_some()
                assert data or reader.their_state is not h11.SEND_RESPONSE, "closed without a response"
                reader.receive_data(data)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                status = event.status_code
        self.must_close = reader.their_state is h11.MUST_CLOSE
        self.rest = reader.trailing_data[0]
        return status, body

    async def ask(self, data):
        """Send a request and return status and body of its response."""
        await self.send(data)
        return await self.receive()

    async def receive_some(self):
        """Return bytes as they come, none at the end; a Unix socket's end is a reset if input was left unread."""
        try:
            return await self.stream.receive_some()
        except trio.BrokenResourceError:
            return b""

    async def at_end(self):
        """Whether nothing more comes; waits for the server to close."""
        return self.rest + await self.receive_some() == b""


class Running:
    """A server that runs, its socket's path, and what it reported."""

    def __init__(self, path, handler, limits):
        self.path = path
        self.crashes = []
        self.replies = []
        self.clients = []
        self.scope = trio.CancelScope()
        self.served = trio.Event()
        self.server = Server(handler, limits, self.crashes.append, self.after_reply)

    def after_reply(self, request, response, peer):
        """Remember what was answered."""
        self.replies.append((request.path, response.status, peer))

    async def seen(self, connections):
        """Wait until the server has accepted so many: the kernel may tell it later than its client."""
        while self.server.connections < connections:
            await wait_all_tasks_blocked(0.001)

    async def connect(self):
        """Return a new client, which is closed at the end of the test."""
        self.clients.append(Client(await trio.open_unix_socket(os.fspath(self.path))))
        return self.clients[-1]

    async def serve(self, listener, task_status=trio.TASK_STATUS_IGNORED):
        """Serve, and tell when it is over."""
        with self.scope:
            await self.server.serve(listener, task_status=task_status)
        self.served.set()


@asynccontextmanager
async def running(tmp_path, handler=echo, limits=LIMITS, listener=None):
    """Run a server for the length of the block."""
    async with trio.open_nursery() as nursery:
        run = Running(tmp_path / "s", handler, limits)
        await nursery.start(run.serve, listener or bind(run.path, None))
        try:
            yield run
        finally:
            for client in run.clients:
                client.stream.socket.close()
        run.scope.cancel()


async def test_requests_on_one_connection(tmp_path):
    """A connection is kept for request after request, and each reply is told with who asked."""
    async with running(tmp_path) as run:
        client = await run.connect()
        for number in range(3):
            assert await client.ask(get(f"/{number}")) == (200, f"/{number}".encode())
            assert not client.must_close
        me = Peer(os.getpid(), os.getuid(), os.getgid())
        assert run.replies == [("/0", 200, me), ("/1", 200, me), ("/2", 200, me)]
        assert run.server.connections == 1


async def test_connection_close_is_obeyed(tmp_path):
    """A client that asks for the close gets its reply and then the end."""
    async with running(tmp_path) as run:
        for request in (
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
            b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        ):
            client = await run.connect()
            assert await client.ask(request) == (200, b"/hi")
            assert client.must_close
            assert await client.at_end()
        await wait_all_tasks_blocked()
        assert run.server.connections == 0


async def test_a_client_that_ends_its_half_is_still_answered(tmp_path):
    """Requests that are answered at once are answered also when the client has nothing more to say."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(GET + GET)
        await client.stream.send_eof()
        assert await client.receive() == (200, b"/x")
        assert await client.receive() == (200, b"/x")
        assert await client.at_end()


async def test_a_request_in_pieces(tmp_path):
    """A request may arrive byte by byte."""
    async with running(tmp_path) as run:
        client = await run.connect()
        for octet in b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi":
            await client.send(bytes([octet]))
            await wait_all_tasks_blocked()
        assert await client.receive() == (200, b"/ahi")


class Steps(trio.abc.Instrument):
    """Counts the steps that tasks take."""

    def __init__(self):
        self.count = 0

    def before_task_step(self, task):
        """Count a step."""
        self.count += 1


async def test_an_immediate_answer_takes_no_task_switch(tmp_path):
    """From the handler's call until the reply is sent no other task runs; so for pipelined requests as well."""
    steps = Steps()
    at_call, at_reply = [], []

    def handler(request, peer):
        at_call.append(steps.count)
        return Response(200)

    async with running(tmp_path, handler) as run:
        trio.lowlevel.add_instrument(steps)
        run.server._after_reply = lambda *_: at_reply.append(steps.count)  # the server offers no later choice
        client = await run.connect()
        await client.send(GET * 5)
        for _ in range(5):
            await client.receive()
        trio.lowlevel.remove_instrument(steps)
    assert at_call == at_reply
    assert len(set(at_call)) == 1


async def test_requests_that_arrive_together_are_answered_in_one_turn(tmp_path):
    """Kept connections wait without tasks of their own: one step serves all that have input."""
    steps, at_call = Steps(), []

    def handler(request, peer):
        at_call.append(steps.count)
        return Response(200)

    async with running(tmp_path, handler) as run:
        clients = [await run.connect() for _ in range(3)]
        for client in clients:
            await client.ask(GET)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        at_call.clear()
        for client in clients:
            client.stream.socket._sock.send(GET)  # at once: Trio's own would let the server run between them
        for client in clients:
            assert (await client.receive())[0] == 200
        trio.lowlevel.remove_instrument(steps)
    assert len(at_call) == 3
    assert len(set(at_call)) == 1


async def test_an_awaitable_answer_is_waited_for(tmp_path):
    """A handler may take its time; other clients are served meanwhile, and its own requests keep their order."""
    go_on = trio.Event()

    def handler(request, peer):
        return slow() if request.path == "/slow" else echo(request, peer)

    async def slow():
        await go_on.wait()
        return Response(200, b"late")

    async with running(tmp_path, handler) as run:
        waiting, other = await run.connect(), await run.connect()
        await waiting.send(get("/slow"))
        await wait_all_tasks_blocked()
        await waiting.send(get("/2") + get("/3")[:5])
        await wait_all_tasks_blocked()
        assert await other.ask(get("/other")) == (200, b"/other")
        go_on.set()
        assert await waiting.receive() == (200, b"late")
        assert await waiting.receive() == (200, b"/2")
        assert await waiting.ask(get("/3")[5:]) == (200, b"/3")


async def test_a_handler_is_cancelled_when_its_client_hangs_up(tmp_path):
    """Nobody waits for an address that nobody will use: the end of the connection cancels the handler."""
    waiting, cancelled = trio.Event(), trio.Event()

    async def handler(request, peer):
        try:
            waiting.set()
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with running(tmp_path, handler) as run:
        client = await run.connect()
        await client.send(GET + GET)
        await waiting.wait()
        await wait_all_tasks_blocked()
        assert not cancelled.is_set()
        await client.stream.aclose()
        with trio.fail_after(5):
            await cancelled.wait()
        await wait_all_tasks_blocked()
        assert run.server.connections == 0
        assert (run.crashes, run.replies) == ([], [])


async def test_what_a_client_sends_ahead_is_bounded(tmp_path):
    """While a handler waits, no more is kept of what its client sends ahead than a request may be long."""
    go_on = trio.Event()

    async def handler(request, peer):
        await go_on.wait()
        return Response(200)

    async with running(tmp_path, handler) as run:
        client = await run.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.2) as sending:
            await client.send(b"x" * 10_000_000)
        assert sending.cancelled_caught
        (connection,) = run.server._connections
        assert connection.parser.buffered < LIMITS.max_head + LIMITS.max_body + 65536
        go_on.set()
        assert (await client.receive())[0] == 200


async def test_a_flood_of_requests_does_not_keep_others_waiting(tmp_path):
    """A client with thousands of requests in one piece is answered in turns with the others."""
    order = []

    def handler(request, peer):
        if not order:
            other.send(get("/other"))
        order.append(request.path)
        return Response(204)

    async with running(tmp_path, handler) as run:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(os.fspath(run.path))
            await wait_all_tasks_blocked()
            client = await run.connect()
            await client.send(get("/flood") * 2000)
            replies = b""
            while replies.count(b"\r\n\r\n") < 2000:
                replies += await client.receive_some()
    assert 0 < order.index("/other") < 100
    assert len(order) == 2001


async def test_a_reply_larger_than_the_socket_takes(tmp_path):
    """A large reply arrives whole, although the client reads it late and in pieces."""
    async with running(tmp_path, lambda *_: Response(200, BIG)) as run:
        client = await run.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        assert run.replies == []
        assert await client.receive() == (200, BIG)
        await wait_all_tasks_blocked()
        assert len(run.replies) == 1


async def test_a_client_that_hangs_up_amid_a_reply(tmp_path):
    """A client that leaves before it read its reply costs nothing but its connection."""
    async with running(tmp_path, lambda *_: Response(200, BIG)) as run:
        client = await run.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert (run.server.connections, run.crashes, run.replies) == (0, [], [])


async def test_a_client_that_does_not_read_is_dropped(tmp_path, mock_clock):
    """A reply that is not taken within the send timeout is given up, and nothing is put behind its half."""
    async with running(tmp_path, lambda *_: Response(200, BIG)) as run:
        client = await run.connect()
        await client.send(GET + GET[:3])
        await wait_all_tasks_blocked()
        assert run.server.connections == 1
        mock_clock.jump(LIMITS.send_timeout + LIMITS.request_timeout)
        await wait_all_tasks_blocked()
        assert run.server.connections == 0
        received = b""
        while data := await client.receive_some():
            received += data
        assert received.endswith(b"xxx")


async def test_a_slow_request_is_given_up(tmp_path, mock_clock):
    """A request must be whole within its timeout from its first byte, however busily it drips."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.ask(GET)
        mock_clock.jump(LIMITS.idle_timeout / 2)
        for octet in GET[:9]:
            await client.send(bytes([octet]))
            await wait_all_tasks_blocked()
            mock_clock.jump(LIMITS.request_timeout / 10)
            await wait_all_tasks_blocked()
        assert run.server.connections == 1
        mock_clock.jump(LIMITS.request_timeout / 2)
        await wait_all_tasks_blocked()
        status, body = await client.receive()
        assert (status, msgspec.json.decode(body)["code"]) == (408, 11)
        assert await client.at_end()
        assert run.server.connections == 0


async def test_a_connection_that_says_nothing_is_closed(tmp_path, mock_clock):
    """A client has the request timeout to begin its first request; it is told nothing, as it asked nothing."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await wait_all_tasks_blocked()
        mock_clock.jump(LIMITS.request_timeout * 1.3)
        assert await client.at_end()


async def test_an_idle_connection_is_closed(tmp_path, mock_clock):
    """A kept connection may be idle for the idle timeout, counted from its last reply."""
    async with running(tmp_path) as run:
        client = await run.connect()
        for _ in range(3):
            assert (await client.ask(GET))[0] == 200
            await wait_all_tasks_blocked()
            mock_clock.jump(LIMITS.idle_timeout * 0.9)
            await wait_all_tasks_blocked()
        mock_clock.jump(LIMITS.idle_timeout * 0.2)
        assert await client.at_end()


async def test_a_waiting_handler_has_no_deadline_of_the_server(tmp_path, mock_clock):
    """How long an answer may take is its handler's business."""

    async def handler(request, peer):
        await trio.sleep(500)
        return Response(200)

    async with running(tmp_path, handler) as run:
        client = await run.connect()
        await wait_all_tasks_blocked()
        await client.send(GET)
        await wait_all_tasks_blocked()
        for _ in range(5):
            mock_clock.jump(100)
            await wait_all_tasks_blocked()
        assert (await client.receive())[0] == 200


async def test_too_many_busy_connections(tmp_path):
    """Beyond the limit a newcomer gets 503 and the end while nobody is idle; whoever is being served stays."""
    go_on = trio.Event()

    async def handler(request, peer):
        await go_on.wait()
        return Response(200)

    async with running(tmp_path, handler) as run:
        busy = [await run.connect() for _ in range(3)]
        for client in busy:
            await client.send(GET)
        await wait_all_tasks_blocked()
        newcomer = await run.connect()
        status, body = await newcomer.receive()
        assert (status, msgspec.json.decode(body)["code"]) == (503, 11)
        assert await newcomer.at_end()
        assert run.server.turned_away == 1
        go_on.set()
        for client in busy:
            assert (await client.receive())[0] == 200


async def test_the_oldest_idle_connection_makes_room(tmp_path, mock_clock):
    """Beyond the limit the connection that has been idle for longest goes; one that was never served does not."""
    async with running(tmp_path) as run:
        fresh, young, old = [await run.connect() for _ in range(3)]
        await wait_all_tasks_blocked()
        mock_clock.jump(0.5)
        for client in (old, young):
            await client.ask(GET)
            await wait_all_tasks_blocked()
            mock_clock.jump(0.5)
        newcomer = await run.connect()
        assert (await newcomer.ask(GET))[0] == 200
        assert await old.at_end()
        assert run.server.connections == 3
        assert (await fresh.ask(GET))[0] == 200
        assert (await young.ask(GET))[0] == 200
        assert run.server.turned_away == 0


@pytest.mark.parametrize("sent", [b"", GET[:10]])
async def test_who_does_not_finish_a_request_makes_room(tmp_path, mock_clock, sent):
    """Where nobody is idle, the one goes who has kept the daemon waiting for longest; who waits for a reply stays."""
    go_on = trio.Event()

    async def handler(request, peer):
        if request.path == "/slow":
            await go_on.wait()
        return echo(request, peer)

    async with running(tmp_path, handler) as run:
        busy = await run.connect()
        await busy.send(get("/slow"))
        old = await run.connect()
        await run.seen(2)
        await old.send(sent)
        await wait_all_tasks_blocked(0.02)
        mock_clock.jump(0.5)
        young = await run.connect()
        await run.seen(3)
        await young.send(sent)
        await wait_all_tasks_blocked(0.02)
        mock_clock.jump(0.5)
        newcomer = await run.connect()
        assert (await newcomer.ask(GET))[0] == 200
        assert await old.at_end()
        assert (await young.ask(GET[len(sent) :]))[0] == 200
        go_on.set()
        assert await busy.receive() == (200, b"/slow")
        assert run.server.turned_away == 0


async def test_each_of_a_burst_gets_its_own_room(tmp_path, mock_clock):
    """Newcomers accepted at once close one idle connection each, and the limit holds."""
    async with running(tmp_path) as run:
        idle = [await run.connect() for _ in range(3)]
        for client in idle:
            await client.ask(GET)
            await wait_all_tasks_blocked()
            mock_clock.jump(0.5)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for newcomer in (first, second):
                newcomer.connect(os.fspath(run.path))
                newcomer.send(GET)
            assert await idle[0].at_end()
            assert await idle[1].at_end()
            await wait_all_tasks_blocked()
            assert run.server.connections == 3
            assert [path for path, *_ in run.replies] == ["/x"] * 5


ADMINISTRATOR, READER = Peer(1, os.geteuid(), 1), Peer(2, os.geteuid() + 1000, 2)


@pytest.fixture
def arriving(monkeypatch):
    """Who the next connections are of, by what the kernel would say; afterwards administrators."""
    peers = []
    monkeypatch.setattr("ipamd.api.server.peer_of", lambda _sock: peers.pop(0) if peers else ADMINISTRATOR)
    return peers


async def overloaded(client):
    """Whether a client is told to come again later, and then the end."""
    status, body = await client.receive()
    return (status, msgspec.json.decode(body)["code"]) == (503, 11) and await client.at_end()


@pytest.mark.parametrize("sent", [b"", GET[:10], GET, get("/slow")])
async def test_readers_leave_room_for_administrators(tmp_path, arriving, sent):
    """Whatever they wait for: they have half of the connections, and lose them before an administrator is refused."""
    go_on = trio.Event()

    async def slow():
        await go_on.wait()
        return Response(200, b"late")

    def handler(request, peer):
        return slow() if request.path == "/slow" else echo(request, peer)

    async with running(tmp_path, handler, Limits(max_connections=8)) as run:
        arriving += [READER] * 6
        readers = [await run.connect() for _ in range(6)]
        for reader in readers:
            with suppress(trio.BrokenResourceError):  # it had to go for the next
                await reader.send(sent)
            await wait_all_tasks_blocked(0.01)
        assert run.server.connections <= 4
        administrators = [await run.connect() for _ in range(8)]
        for client in administrators:
            await client.send(get("/slow"))
        await wait_all_tasks_blocked(0.01)
        assert run.server.connections == 8
        assert await overloaded(await run.connect())
        go_on.set()
        for client in administrators:
            assert await client.receive() == (200, b"late")


async def test_a_reader_that_waits_is_told_why_it_has_to_go(tmp_path, arriving):
    """Its handler is cancelled for an administrator; the oldest goes first, and no administrator goes for a reader."""
    cancelled = []

    async def handler(request, peer):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(request.path)

    async with running(tmp_path, handler, Limits(max_connections=4)) as run:
        arriving += [READER, READER, ADMINISTRATOR, ADMINISTRATOR, ADMINISTRATOR, READER]
        clients = []
        for number in range(5):
            clients.append(await run.connect())
            await clients[-1].send(get(f"/{number}"))
            await wait_all_tasks_blocked(0.01)
        assert cancelled == ["/0"]
        assert await overloaded(clients[0])
        assert await overloaded(await run.connect())
        assert (cancelled, run.server.connections, run.server.turned_away) == (["/0"], 4, 2)


async def test_a_reader_sends_no_large_body(tmp_path, arriving):
    """Before it is read, let alone kept; an administrator's is limited by the configuration."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    async with running(tmp_path, limits=Limits()) as run:
        arriving += [READER, READER]
        small, large = await run.connect(), await run.connect()
        assert await small.ask(head % 65536 + b"x" * 65536) == (200, b"/" + b"x" * 65536)
        status, body = await large.ask(head % 65537)
        assert status == 413
        assert msgspec.json.decode(body)["msg"] == (
            "cannot read the request: its body is longer than 65536 bytes; "
            "only root and the daemon's own user may send more; use sudo"
        )
        administrator = await run.connect()
        assert await administrator.ask(head % 65537 + b"x" * 65537) == (200, b"/" + b"x" * 65537)


async def test_what_is_kept_of_half_requests_is_bounded(tmp_path, arriving):
    """Whoever sends more when all together have sent much is told to come again later; those who were first are served.

    Readers reach the bound sooner, so that they take nothing from administrators.
    """
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n"
    half = head + b"x" * 40000
    async with running(tmp_path, limits=Limits(max_held=200_000)) as run:

        def kept():
            return sum(connection.parser.buffered for connection in run.server._connections)

        arriving += [READER] * 4
        clients = []
        for number in range(9):
            clients.append(await run.connect())
            await clients[-1].send(half)
            await wait_all_tasks_blocked(0.01)
            assert kept() == 40000 * (min(number + 1, 2) + max(0, min(number - 3, 3)))
        for late in (2, 3, 7, 8):
            assert await overloaded(clients[late])
        for early in (0, 1, 4, 5, 6):
            assert (await clients[early].ask(b"x" * 10000))[0] == 200
        again = await run.connect()
        await again.send(half)
        assert (await again.ask(b"x" * 10000))[0] == 200
        assert run.server._held == kept() == 0


class Faulty(socket.socket):
    """A listener whose first accepts fail."""

    faults: tuple[int, ...] = ()
    calls = 0

    def _accept(self):
        """Fail, or accept."""
        self.calls += 1
        if self.faults:
            first, *rest = self.faults
            self.faults = tuple(rest)
            raise OSError(first, os.strerror(first))
        return super()._accept()


async def test_running_out_of_descriptors_is_waited_out(tmp_path, mock_clock):
    """Without free descriptors the server pauses instead of spinning, and then accepts who waited."""
    listener = Faulty(fileno=bind(tmp_path / "s", None).detach())
    listener.faults = (errno.EMFILE, errno.ENFILE)
    async with running(tmp_path, listener=listener) as run:
        client = await run.connect()
        await client.send(GET)
        for calls in (1, 2):
            await wait_all_tasks_blocked()
            assert listener.calls == calls
            mock_clock.jump(0.2)
        assert (await client.receive())[0] == 200


async def test_connections_that_are_gone_before_the_accept(tmp_path, mock_clock):
    """An accept that fails for its connection alone is passed over at once."""
    listener = Faulty(fileno=bind(tmp_path / "s", None).detach())
    listener.faults = (errno.ECONNABORTED, errno.EPROTO)
    async with running(tmp_path, listener=listener) as run:
        assert (await (await run.connect()).ask(GET))[0] == 200


async def test_a_handler_that_crashes(tmp_path):
    """An unexpected error becomes a 500 reply and a report; the daemon and other clients go on."""

    async def late():
        await trio.lowlevel.checkpoint()
        raise LookupError("late")

    def handler(request, peer):
        if request.path == "/late":
            return late()
        if request.path == "/now":
            raise LookupError("now")
        if request.path == "/bad":
            return Response(200, headers=(("A", "b\r\n"),))
        return echo(request, peer)

    async with running(tmp_path, handler) as run:
        for path in ("/late", "/now", "/bad"):
            client = await run.connect()
            await client.ask(get("/fine"))
            status, body = await client.ask(get(path))
            assert status == 500
            assert msgspec.json.decode(body)["code"] == 5
            assert "internal error" in msgspec.json.decode(body)["msg"]
            assert await client.at_end()
        assert [str(crash) for crash in run.crashes[:2]] == ["late", "now"]
        assert [type(crash) for crash in run.crashes] == [LookupError, LookupError, ValueError]
        assert (await (await run.connect()).ask(GET))[0] == 200


async def test_a_crash_after_the_reply_does_not_reply_twice(tmp_path):
    """What goes wrong once a reply is sent is reported and ends the connection, without a second reply."""

    def after_reply(*_):
        raise UnicodeError("cannot log")

    async with running(tmp_path) as run:
        run.server._after_reply = after_reply
        client = await run.connect()
        assert (await client.ask(GET))[0] == 200
        assert await client.at_end()
        assert [str(crash) for crash in run.crashes] == ["cannot log"]


async def test_what_cannot_be_read_is_refused(tmp_path):
    """A bad request is answered with its status and the reason, after the good ones before it."""
    async with running(tmp_path) as run:
        client = await run.connect()
        assert (await client.ask(GET + b"GET nonsense HTTP/1.1\r\nHost: x\r\n\r\n" + GET))[0] == 200
        status, body = await client.receive()
        assert status == 400
        assert msgspec.json.decode(body)["msg"].startswith("cannot read the request: its target")
        assert client.must_close
        assert await client.at_end()
        assert len(run.replies) == 1


async def test_a_body_that_is_too_long_is_refused_readably(tmp_path):
    """A client that sends a body of 10 MB before it reads gets to read the refusal."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000)
        status, body = await client.receive()
        assert status == 413
        assert "raise api.max_body" in msgspec.json.decode(body)["msg"]
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert run.server.connections == 0


async def test_a_head_that_is_too_long_is_refused_in_the_words_of_a_runtime(tmp_path):
    """What makes a head long is CNI_ARGS, and that the daemon's limit can be raised is said."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nCni-Args: " + b"x" * 3000 + b"\r\n\r\n")
        status, body = await client.receive()
        assert status == 431
        words = msgspec.json.decode(body)["msg"]
        assert words.endswith("shorten what the runtime passes in CNI_ARGS, or raise api.max_head")


async def test_a_refused_client_does_not_stay(tmp_path, mock_clock):
    """A refused client that neither reads nor leaves is gone soon."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(b"\n")
        await wait_all_tasks_blocked()
        assert run.server.connections == 1
        mock_clock.jump(3)
        await wait_all_tasks_blocked()
        assert run.server.connections == 0


async def test_expect_continue(tmp_path):
    """A client that asks whether to send its body is told to, once."""
    async with running(tmp_path) as run:
        client = await run.connect()
        for _ in range(2):
            await client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"h")
            await wait_all_tasks_blocked()
            await client.send(b"i")
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_connections_of_a_listener_that_was_given_up_are_served_further(tmp_path):
    """Whoever came by a listener that accepts no more, idle or amid a request, still gets answers; nobody comes anew."""
    listener = bind(tmp_path / "s", None)
    async with running(tmp_path, listener=listener) as run:
        idle, half = await run.connect(), await run.connect()
        await idle.ask(GET)
        await half.send(GET[:5])
        await wait_all_tasks_blocked()
        run.server.abandon(listener)
        await wait_all_tasks_blocked()
        with pytest.raises(OSError, match="refused"):
            await run.connect()
        for _ in range(2):
            assert (await idle.ask(GET))[0] == 200
        assert (await half.ask(GET[5:]))[0] == 200
        assert not run.served.is_set()
        for client in (idle, half):
            await client.stream.aclose()
        await run.served.wait()


async def test_head(tmp_path):
    """HEAD is answered like GET, without the body."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(b"HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await client.stream.receive_some()
        assert b"Content-Length: 4\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")


async def test_tcp(tmp_path):
    """A TCP listener is served alike, with peers of whom nothing is known."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with running(tmp_path, listener=listener) as run:
        run.clients.append(client := Client(await trio.open_tcp_stream("127.0.0.1", port)))
        assert (await client.ask(GET))[0] == 200
        assert run.replies == [("/x", 200, UNKNOWN)]


async def test_stop_lets_requests_finish(tmp_path):
    """Stopping refuses newcomers and closes idle connections, but answers what was asked before, and then ends."""
    go_on = trio.Event()

    async def handler(request, peer):
        if request.path == "/slow":
            await go_on.wait()
        return Response(200)

    async with running(tmp_path, handler) as run:
        idle, busy, half = [await run.connect() for _ in range(3)]
        await idle.ask(GET)
        await busy.send(get("/slow"))
        await half.send(GET[:5])
        await wait_all_tasks_blocked()
        run.server.stop(grace=30)
        assert await idle.at_end()
        with pytest.raises(OSError, match="refused"):
            await run.connect()
        assert not run.served.is_set()
        assert (await half.ask(GET[5:]))[0] == 200
        assert half.must_close
        go_on.set()
        assert (await busy.receive())[0] == 200
        assert busy.must_close
        await run.served.wait()


async def test_stop_does_not_drop_a_request_that_has_arrived(tmp_path):
    """A request that lies in the socket when the server is stopped is answered."""
    async with running(tmp_path) as run:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(run.path))
            await wait_all_tasks_blocked()
            client.send(GET)
            run.server.stop(grace=30)
            await run.served.wait()
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


async def test_stop_ends_after_its_grace(tmp_path, mock_clock):
    """Whoever is not done within the grace is told to come again, and handlers are cancelled."""

    async def handler(request, peer):
        await trio.sleep_forever()

    async with running(tmp_path, handler) as run:
        client, half = await run.connect(), await run.connect()
        await client.send(GET)
        await half.send(GET[:5])
        await wait_all_tasks_blocked()
        run.server.stop(grace=3)
        await wait_all_tasks_blocked()
        mock_clock.jump(2.9)
        await wait_all_tasks_blocked()
        assert not run.served.is_set()
        mock_clock.jump(0.1)
        await run.served.wait()
        assert await client.receive() == (
            503,
            b'{"cniVersion":"1.1.0","code":11,"msg":"cannot serve the request: ipamd is stopping; try again later"}',
        )
        assert (await half.receive())[0] == 408
        assert run.crashes == []


async def test_a_connection_accepted_while_stopping(tmp_path, mock_clock):
    """A client that is accepted at the moment of the stop and says nothing does not hold it up."""

    class Stopping(socket.socket):
        def _accept(self):
            accepted = super()._accept()
            run.server.stop(grace=30)
            return accepted

    async with running(tmp_path, listener=Stopping(fileno=bind(tmp_path / "s", None).detach())) as run:
        client = await run.connect()
        await run.served.wait()
        assert await client.at_end()


async def test_stop_before_serve(tmp_path):
    """A server that was stopped serves nobody any more."""
    server = Server(echo, LIMITS, print)
    server.stop(grace=1)
    with trio.fail_after(5):
        await server.serve(bind(tmp_path / "s", None))


async def test_cancelling_the_server_is_not_a_crash(tmp_path):
    """The daemon's own cancellation passes through handlers and closes every socket."""

    async def handler(request, peer):
        await trio.sleep_forever()

    async with running(tmp_path, handler) as run:
        client = await run.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        run.scope.cancel()
        await run.served.wait()
        assert run.crashes == []
        assert await client.at_end()
