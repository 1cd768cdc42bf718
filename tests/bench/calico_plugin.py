"""A model of Calico's plugin: ADD and DEL by its ten calls of etcd, one after the other, from a fresh process.

``python -m tests.bench.calico_plugin SOCKET ENDPOINT NODE`` serves our own plugin at SOCKET, which stands for the start
of Calico's: for each request it forks a process that takes the host-wide lock, opens a connection to etcd, carries
the request out by the model of ``tests/calico``, answers and ends. What a Go program needs to load and to begin is not in
it, nor what Python needs to begin: so it is the calls' cost, and less than the real plugin's.
"""

import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path

import trio

import ipamd.store.etcd.rpc  # loaded before the first fork  # noqa: F401
from ipamd.store.base import Store
from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.calico.datastore import CONFIG, Entry
from tests.calico.node import Calico
from tests.calico.releasing import Config


class Plugin(Calico):
    """The node's plugin for one request, in as many calls as the real one's ADD was seen to make: 8 reads, 2 writes.

    The model makes two more: it asks whether the datastore is locked, and reads the block once more before it takes
    from it, for the sake of those who share its process.
    """

    def __init__(self, store: Store, node: str) -> None:
        super().__init__(store, node, time.time_ns)
        self._just_read: dict[str, Entry | None] = {}

    async def _config(self) -> Config:
        await self.datastore.get(CONFIG)  # the benchmark leaves it at its defaults
        return Config()

    async def _block(self, cidr: str) -> Entry | None:
        if cidr in self._just_read:
            return self._just_read.pop(cidr)
        entry = self._just_read[cidr] = await super()._block(cidr)
        return entry


async def carry_out(endpoint: str, node: str, verb: str, container: str) -> str:
    """One ADD or DEL over a connection of its own; returns the plugin's output."""
    store = EtcdStore(EtcdSettings(endpoints=(endpoint,)))
    handle = f"k8s-pod-network.{container}"
    try:
        if verb == "DEL":
            await Calico(store, node, time.time_ns).delete(handle, f"default.{container}")
            return ""
        (address,) = await Plugin(store, node).add(handle, {"namespace": "default", "pod": container})
        return f'{{"cniVersion": "1.0.0", "ips": [{{"address": "{address}/32"}}]}}'
    finally:
        await store.aclose()


def serve(listener: socket.socket, endpoint: str, node: str, lock: Path) -> None:
    """Fork for each connection, until the process is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            status = 1
            try:
                _answer(connection, endpoint, node, lock)
                status = 0
            finally:
                os._exit(status)
        connection.close()


def _answer(connection: socket.socket, endpoint: str, node: str, lock: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rb") as request:
        lines = (line.decode().strip().partition(": ") for line in iter(request.readline, b"\r\n"))
        told = {name.lower(): value for name, _, value in lines}
        request.read(int(told["content-length"]))
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        body = trio.run(carry_out, endpoint, node, told["cni-command"], told["cni-containerid"]).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nIpamd-Exit: 0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    connection.close()


def main() -> None:
    """Listen at the socket."""
    path, endpoint, node = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(4096)
        serve(listener, endpoint, node, Path(f"{path}.lock"))


if __name__ == "__main__":
    main()
