"""Many connections at once that send hostile batches and read all that comes back: one process' share of a campaign."""

import selectors
import socket
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.hostile import Batch, End, Hostile

CONNECTIONS = 96
"""Connections open at once, in each process."""

PATIENCE = 60.0
"""Seconds in which something must happen on some connection."""

CRASHED = b"internal error of ipamd"
"""What the server answers in the place of a handler that raised."""


class _Client:
    """One connection: what is still to be sent, and what came."""

    def __init__(self, path: Path, batch: Batch) -> None:
        self.batch, self.awaited = batch, 0 if batch.end is End.HALF_CLOSE else batch.whole
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.sock.setblocking(False)
        self.unsent = memoryview(b"".join(batch.pieces))
        self.received = bytearray()

    def step(self) -> bool:
        """Send and receive what can be; whether it goes on."""
        try:
            if self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
                if not self.unsent and self.batch.end is End.HANG_UP:
                    return False
        except BlockingIOError:
            pass
        except OSError:  # it had enough of us: what it said may still be read
            self.unsent = memoryview(b"")
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.received += data
        return bool(data)

    def end_output(self) -> None:
        """Say that no more will come, once all is sent and every whole request is answered."""
        if self.awaited < 0 or self.unsent or self.received.count(b"HTTP/1.1 ") < self.awaited:
            return
        self.awaited = -1
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


def send(path: Path, seed: int, requests: int, results: Connection) -> None:
    """Send this many requests; tells how many were sent, the statuses that came, and the batches that crashed."""
    hostile, sent = Hostile(seed), 0
    statuses: Counter[str] = Counter()
    crashed: list[list[bytes]] = []
    with selectors.DefaultSelector() as selector:
        while sent < requests or selector.get_map():
            while sent < requests and len(selector.get_map()) < CONNECTIONS:
                client = _Client(path, hostile.batch())
                sent += len(client.batch.pieces)
                selector.register(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
            ready = selector.select(PATIENCE)
            if not ready:
                raise TimeoutError(f"nothing happens on {len(selector.get_map())} connections")
            for key, _events in ready:
                client = key.data
                if client.step():
                    client.end_output()
                    if not client.unsent:
                        selector.modify(client.sock, selectors.EVENT_READ, client)
                    continue
                selector.unregister(client.sock)
                client.sock.close()
                for part in bytes(client.received).split(b"HTTP/1.1 ")[1:]:
                    statuses[part[:3].decode("latin-1")] += 1
                if CRASHED in client.received and len(crashed) < 5:
                    crashed.append(client.batch.pieces)
    results.send((sent, statuses, crashed))
