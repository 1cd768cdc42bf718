"""One client's connection: a socket, the parser of what it sends, and its deadlines as plain values.

Holds no task and never waits: the server calls ``receive`` and ``send``, and waits between them where it has to;
the server's sweep and its overload rule read the rest. May import ``access``, ``http`` and ``poller``; of Trio
only the scope by which a connection is ended.
"""

import socket
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final

import trio
from msgspec import Struct

from ipamd.api.access import Peer
from ipamd.api.http import Parser
from ipamd.api.poller import Poller

_RECEIVE: Final = 65536  # bytes
_NOW: Final = int(socket.MSG_DONTWAIT)


class Limits(Struct, frozen=True):
    """What a client may take. Sizes in bytes, times in seconds (kept to a quarter of the shortest)."""

    max_connections: int = 512
    max_head: int = 32768
    max_body: int = 1 << 20
    request_timeout: float = 10.0
    """For a request to arrive whole, from its first byte (a connection's first request: from the accept)."""
    idle_timeout: float = 60.0
    """For the next request to begin."""
    send_timeout: float = 10.0
    """For a response to be taken whole."""
    max_held: int = 64 << 20
    """What may be kept of all clients' requests that are not whole yet."""


def acceptor(listener: socket.socket) -> Callable[[], socket.SocketType]:
    """Return what accepts a connection that waits at a listening socket; it raises BlockingIOError if there is none.

    The connections are of the plain type, and do not block because each call says so. ``listener.accept()`` and
    ``settimeout`` would take 200 steps of the interpreter and a system call more: a twentieth of an ADD.
    """
    adopt = partial(socket.SocketType, int(listener.family), int(listener.type), listener.proto)

    def accept() -> socket.SocketType:
        fd, _address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - what accept() itself calls
        return adopt(fd)

    return accept


class Connection:
    """What the server knows of one client. Times are Trio's clock, in seconds."""

    __slots__ = (
        "begun",
        "due",
        "held",
        "limits",
        "parser",
        "peer",
        "poller",
        "replying",
        "scope",
        "sock",
        "unsent",
        "waiting_since",
    )

    def __init__(self, sock: socket.SocketType, peer: Peer, limits: Limits, now: float, poller: Poller) -> None:
        self.sock = sock
        self.peer = peer
        self.poller = poller
        """Where it waits for input."""
        self.limits = limits
        self.parser = Parser(limits.max_head, limits.max_body)
        self.held = 0
        """The bytes of a request that is not whole yet, as far as the server has counted them."""
        self.scope: trio.CancelScope | None = None
        """Cancelling it ends the connection, whatever its task is waiting for; None while it has no task."""
        self.begun: float | None = now
        """When the request being received began (the first: at the accept); None while none is."""
        self.due = inf
        """When the sweep is to end the connection."""
        self.waiting_since: float | None = None
        """Since when it waits for a request of which nothing has come yet."""
        self.unsent: bytes | memoryview = b""
        """What the socket has not taken yet of what was sent."""
        self.replying = False
        """Whether a request was read of whose reply nothing was sent."""

    def expect(self, now: float, limits: Limits) -> None:
        """Set the deadline of a wait for input, by what is still to come: the rest of a request or a new one."""
        partial = self.parser.partial
        if partial and self.begun is None:
            self.begun = now
        self.due = now + limits.idle_timeout if self.begun is None else self.begun + limits.request_timeout
        self.waiting_since = None if partial else now

    def receive(self) -> bytes | None:
        """Return what has arrived: None if nothing has, no bytes if the client hung up."""
        try:
            return self.sock.recv(_RECEIVE, _NOW)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: bytes | memoryview) -> bool:
        """Send what the socket takes now, and keep the rest in ``unsent``; False if the client hung up."""
        try:
            sent = self.sock.send(data, _NOW)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        self.unsent = b"" if sent == len(data) else memoryview(data)[sent:]
        return True

    def has_input(self) -> bool:
        """Whether something has arrived that was not received."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | _NOW))
        except OSError:
            return False

    def end_output(self) -> None:
        """Let the client read the end of what was sent to it; it may still send."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it hung up
