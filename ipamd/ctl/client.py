"""HTTP over the daemon's socket: one request at a time, answers as JSON or bytes, refusals in words.

May import nothing of ipamd but ``ctl.errors``.
"""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from ipamd.ctl.errors import CommandError, UnreachableError

SECONDS = 30.0
"""How long an answer may take: more than any call of the daemon to its store."""
_AWAY = frozenset({502, 503, 504})


class Client:
    """The daemon behind the socket ``path``; each request has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def get(self, path: str) -> Any:
        """The JSON of a GET. Raises UnreachableError, CommandError."""
        return json.loads(await self.request("GET", path))

    async def post(self, path: str, value: object = None) -> Any:
        """The JSON that a POST of a value is answered with; None for an empty answer."""
        body = b"" if value is None else json.dumps(value).encode()
        return json.loads(await self.request("POST", path, body) or b"null")

    async def request(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        """The body of an answer. Raises UnreachableError, and CommandError with the daemon's words if it refuses."""
        import trio

        status, answer = await trio.to_thread.run_sync(
            self._exchange, method, path, body, content_type, abandon_on_cancel=True
        )
        if status < 300:
            return answer
        words = _words(answer) or f"cannot {method} {path}: the daemon answers {status}; see its log"
        raise UnreachableError(words) if status in _AWAY else CommandError(words)

    def _exchange(self, method: str, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        connection = _Connection(self.path)
        try:
            connection.request(method, path, body or None, {"Content-Type": content_type})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            number = error.errno if isinstance(error, OSError) else None
            cause = os.strerror(number).lower() if number else str(error) or type(error).__name__
            raise UnreachableError(
                f"cannot reach ipamd at {self.path}: {cause}; start it, name another socket with --socket, "
                "or name a store with --etcd-endpoints or --db"
            ) from error
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("ipamd", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(os.fspath(self._path))


def _words(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["msg"])
    except (ValueError, LookupError, TypeError):
        return ""
