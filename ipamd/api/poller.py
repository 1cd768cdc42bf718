"""Who waits for input, all behind one descriptor: Trio waits for that, whichever of them has something.

A Trio task for each would take as many steps to wake as its request takes to answer; here those who have input are
served one after another in one task's turn. May import nothing of ipamd.
"""

import select
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ipamd.api.connection import Connection

_TURN: Final = 32  # connections in a row, before the rest of the daemon runs


class Poller:
    """Waits for the input of connections, of each from ``watch`` until ``forget``, and until ``close``.

    ``nursery`` is for the tasks of those that wait for something else.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.open = True
        self._epoll = select.epoll()
        self._watched: dict[int, Connection] = {}

    def close(self) -> "list[Connection]":
        """Wait for nobody any more; returns those that were watched."""
        self.open = False
        left = list(self._watched.values())
        self._watched.clear()
        self._epoll.close()
        return left

    def watch(self, connection: "Connection") -> None:
        """Tell of its input from now on; it may be watched already."""
        descriptor = connection.sock.fileno()
        if descriptor not in self._watched:
            self._epoll.register(descriptor, select.EPOLLIN)
            self._watched[descriptor] = connection

    def forget(self, connection: "Connection") -> None:
        """Tell of its input no more, before something else reads it or it is closed."""
        descriptor = connection.sock.fileno()
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def ready(self) -> "list[Connection]":
        """Wait until some have input, or were closed by their clients; returns these, at most 32."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        return [self._watched[descriptor] for descriptor, _events in self._epoll.poll(0, _TURN)]
