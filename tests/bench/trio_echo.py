"""``python -m tests.bench.trio_echo SOCKET``: what ``echo.c`` is in C, in Python on Trio, and no more than that.

It decides, remembers and writes down nothing, and looks at the request no closer than for its end and its verb. So it
is the least that a daemon on this event loop can be: what lies between it and the C program no daemon of ours can save.
"""

import socket
import sys
from pathlib import Path

import trio

BACKLOG = 512
ROOM = 65536
ADDED = (
    b'{\n    "cniVersion": "1.0.0",\n    "ips": [\n        {\n            "address": "192.168.120.64/26"\n        }\n    ],\n'
    b'    "routes": [\n        {\n            "dst": "192.168.120.64/26"\n        }\n    ]\n}'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\nIpamd-Exit: 0\r\n\r\n"
)


def whole(request: bytes) -> bool:
    """Whether a request is there to its end."""
    head, end, body = request.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])


async def answer(connection: socket.socket) -> None:
    """Read one request, answer it, and close."""
    with connection:
        request = b""
        while not whole(request):
            try:
                got = connection.recv(ROOM)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(connection)
                continue
            if not got:
                return
            request += got
        body = ADDED if b"Cni-Command: ADD" in request else b""
        connection.send(HEAD % len(body) + body)


async def serve(path: Path) -> None:
    """Serve one connection after the other, as the C program does, for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                connection, _address = listener.accept()
            except BlockingIOError:
                continue
            connection.setblocking(False)
            await answer(connection)


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]))
