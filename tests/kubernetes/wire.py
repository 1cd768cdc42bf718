"""A Cluster of the daemon's own code, connected to the tests' API server in memory: no socket, and a virtual clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import httpx
import trio
import trio.testing
from httpcore._backends.trio import TrioStream

from ipamd.kubernetes.access import Access, Credentials, Load
from ipamd.kubernetes.client import Client
from ipamd.kubernetes.cluster import Cluster
from tests.kubernetes_server import ApiServer

NODE = "node-a"


class _Stream(TrioStream):
    """One end in memory, which has no socket to ask."""

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class _Memory(httpcore.AsyncNetworkBackend):
    """Connects to the API server in the same process."""

    def __init__(self, wire: "Wire") -> None:
        self._wire = wire

    async def connect_tcp(self, *_where: Any, **_how: Any) -> httpcore.AsyncNetworkStream:
        if self._wire.away:
            raise httpcore.ConnectError("Connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self._wire.nursery.start_soon(self._wire.server.serve, theirs)
        return _Stream(ours)


class Wire:
    """The way from clients to one API server; ``away``: no connection is accepted."""

    def __init__(self, server: ApiServer, nursery: trio.Nursery) -> None:
        self.server, self.nursery = server, nursery
        self.away = False
        self.reports: list[tuple[str, dict[str, str]]] = []

    def client(self, load: Load | None = None) -> Client:
        """A client of the daemon's, on this wire."""

        def transport(_tls: object) -> httpx.AsyncBaseTransport:
            made = httpx.AsyncHTTPTransport(trust_env=False)
            made._pool = httpcore.AsyncConnectionPool(network_backend=_Memory(self))
            return made

        return Client(Credentials(load or (lambda _files: Access("http://api"))), transport)

    def cluster(self, load: Load | None = None, timeout: float = 5.0) -> Cluster:
        """A node's view of the cluster, not yet running."""
        return Cluster(self.client(load), NODE, timeout, lambda event, values: self.reports.append((event, values)))

    @asynccontextmanager
    async def running(self, load: Load | None = None, *, synced: bool = True) -> AsyncIterator[Cluster]:
        """A cluster that is kept up to date, and on entry is."""
        cluster = self.cluster(load)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.run)
            if synced:
                await until(lambda: cluster.connected and self.server.watches == 2)
            yield cluster
            nursery.cancel_scope.cancel()

    async def cut(self, *, away: bool = True) -> None:
        """Cut all connections, and with ``away`` accept no new ones."""
        self.away = away
        self.server.drop()
        await trio.testing.wait_all_tasks_blocked()


async def until(condition: Any) -> None:
    """Wait, in virtual time, until it is so."""
    with trio.fail_after(1000):
        while not condition():
            await trio.sleep(0.05)
