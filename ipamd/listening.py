"""What the API is served on: systemd's sockets or one of its own, and an address for metrics alone if there is one.

May import trio, the configuration, the host and the API's server and sockets.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import trio

from ipamd.api.server import Server
from ipamd.api.sockets import bind, from_systemd, inode
from ipamd.config import Config
from ipamd.host import allow_files, bind_tcp
from ipamd.logs import get_logger, sentence

OWN_FILES = 128
"""Files to be left for others than the API's clients: the state file, its checkpoint, the store, Kubernetes."""

_log = get_logger("daemon")


def connections_allowed(config: Config) -> int:
    """How many connections a server may have, so that files are left for the state file and the store."""
    wanted, servers = config.api.max_connections, 1 + bool(config.metrics_address)
    files = allow_files(servers * wanted + OWN_FILES)
    possible = min(wanted, max(1, (files - OWN_FILES) // servers))
    if possible < wanted:
        _log.warning("fewer connections than configured: raise the limit of open files", max=possible, files=files)
    return possible


class Listening:
    """``open`` the sockets, then ``serve`` them in a nursery; ``look`` each second, until ``stop``.

    ``scrape`` serves ``metrics_address``. ``told`` is called with each server as it begins.
    """

    def __init__(self, config: Config, server: Server, scrape: Server, told: Callable[[Server], None]) -> None:
        self._path: Path = config.socket
        self._group, self._metrics_address = config.socket_group, config.metrics_address
        self._server, self._scrape, self._told = server, scrape, told
        self._listeners: list[socket.socket] = []
        self._scraped: socket.socket | None = None
        self._bound: socket.socket | None = None
        """The Unix socket, if it is our own and not systemd's."""
        self._inode: tuple[int, int] | None = None
        self._lost = trio.Event()
        self._stopped = False

    def open(self) -> None:
        """Take systemd's sockets, or bind our own, and the address for metrics; raises OSError."""
        self._listeners = [sock for _name, sock in from_systemd(os.environ, os.getpid())]
        if not self._listeners:
            self._bound = bind(self._path, self._group)
            self._inode = inode(self._path)
            self._listeners = [self._bound]
        if self._metrics_address:
            self._scraped = bind_tcp(self._metrics_address)

    async def serve(self, serving: trio.Nursery, background: trio.Nursery) -> None:
        """Serve what was opened, in ``serving``; what keeps the socket in its place runs in ``background``."""
        for listener in self._listeners:
            await serving.start(self._server.serve, listener)
        self._told(self._server)
        if self._scraped is not None:
            await serving.start(self._scrape.serve, self._scraped)
            self._told(self._scrape)
        if self._bound is not None:
            background.start_soon(self._keep, serving, self._bound)

    def look(self) -> None:
        """See whether our socket is where it was bound; one that is not is bound anew."""
        if self._bound is None or self._stopped:
            return
        found = inode(self._path)
        if found is None or found != self._inode:
            self._lost.set()

    def stop(self, grace: float) -> None:
        """Accept no more; requests under way get ``grace`` seconds."""
        self._stopped = True
        for server in (self._server, self._scrape):
            server.stop(grace)

    async def _keep(self, serving: trio.Nursery, listener: socket.socket) -> None:
        """Bind the socket anew when somebody removed it: no plugin would find this daemon any more."""
        told = ""
        while True:
            await self._lost.wait()
            self._lost = trio.Event()
            if self._stopped:
                continue
            try:
                successor = bind(self._path, self._group)
            except OSError as error:
                if str(error) != told:
                    _log.error("the socket was removed or replaced, and cannot be bound anew", error=sentence(error))
                told = str(error)
                continue
            _log.error("the socket was removed by somebody else; bound it anew", socket=str(self._path))
            self._inode, told = inode(self._path), ""
            self._server.abandon(listener)
            listener = successor
            await serving.start(self._server.serve, listener)
