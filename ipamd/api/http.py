"""HTTP/1.1 on the API's sockets: bytes to requests, responses to bytes; a strict subset of RFC 9112, no I/O.

Order of calls: ``feed`` what arrived, then ``next`` until it answers None (nothing complete yet); pipelined
requests come out one by one. While ``expects_continue`` is true the client holds its body back: send ``CONTINUE``
and call ``continued``. After a BadRequestError the parser stays refused: answer it and close the connection.

The subset: origin-form targets (``/path?query``, handed on undecoded), bodies with Content-Length only, HTTP/1.1
and HTTP/1.0 (never kept alive). What RFC 9112 lets a server tolerate is refused, because tolerance is how two
parsers come to see different requests: bare LF or CR, obs-fold, blanks before a colon, empty lines before a
request, control characters, repeated fields that are not lists. Responses carry no Date (RFC 9110 6.6.1): the
clock of a client on this machine is the same.

Field values are decoded as UTF-8 with ``surrogateescape``, as Python decodes the environment, because the plugin
sends environment variables as fields: ``value.encode("utf-8", "surrogateescape")`` gives the bytes back.

May import nothing of ipamd. Bytes and time are the caller's: no socket, no clock.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from itertools import compress, repeat
from operator import is_not
from typing import Final

from msgspec import Struct

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

MAX_LINE: Final = 8000
"""Longest request line, in bytes: what RFC 9112 section 3 asks every server to take."""

_NO_CONTENT: Final = int(HTTPStatus.NO_CONTENT)
_LEGAL: Final = bytes(octet for octet in range(256) if (octet >= 0x20 and octet != 0x7F) or octet in b"\t\r\n")
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ ]+) HTTP/([0-9])\.([0-9])")
_TARGET: Final = re.compile(r"(/[!\"$->@-~]*)(?:\?([!\"$-~]*))?")
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE: Final = "((?:[!-~](?:[ -~]*[!-~])?)?)"  # nothing to strip, nothing to refuse
_PLUGIN_FIELDS: Final = (
    *("cni-command", "cni-containerid", "cni-netns", "cni-ifname", "cni-args", "cni-path"),
    *("ipamd-plugin", "ipamd-started"),
)
_PLUGIN_KEYS: Final = ("host", "connection", *_PLUGIN_FIELDS, "content-length")
_PLUGIN: Final = re.compile(
    "POST /v1/cni HTTP/1\\.1\r\nHost: (ipamd)\r\n(?:Connection: (close)\r\n)?"
    + "".join(f"(?:{name.title()}: {_VALUE}\r\n)?" for name in _PLUGIN_FIELDS)
    + "Content-Length: ([0-9]{1,6})"
)
"""The heads that our plugin sends, if nothing in them is to be refused or stripped: read by this at half the cost.

All others, also the plugin's with other values, are read line by line; a head means the same to both.
"""
_LISTS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "forwarded",
        "via",
        "x-forwarded-for",
    }
)
"""Fields that may appear more than once, because their value is a list (RFC 9110 5.3). Any other is refused."""


class BadRequestError(Exception):
    """A request that is not answered but refused with ``status``; the connection must be closed afterwards.

    ``reason`` completes "cannot read the request: ...".
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"cannot read the request: {reason}")
        self.status = status
        self.reason = reason


class Request(Struct, frozen=True):
    """A complete request. ``path`` and ``query`` are as sent, field names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool
    """Whether the client will read another response on this connection."""


class Response(Struct, frozen=True):
    """What a handler answers. ``close``: end the connection after it, whatever the client wants."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


class Parser:
    """The requests in one connection's bytes. Limits are in bytes, ``max_head`` with the empty line at its end."""

    def __init__(self, max_head: int, max_body: int) -> None:
        self._max_head = max_head
        self._max_body = max_body
        # What arrived. A request mostly arrives in one piece, so bytes are kept as they are until a second comes.
        self._buffer: bytes | bytearray = b""
        self._at = 0  # what lies before it has been handed out
        self._checked = 0  # what lies before it has no illegal octet, and no end of a head begins before it - 3
        self._head: Request | None = None
        self._length = 0  # of the body that belongs to _head
        self._continue = False

    @property
    def buffered(self) -> int:
        """How many bytes were fed and not yet handed out."""
        return len(self._buffer) - self._at

    @property
    def partial(self) -> bool:
        """Whether a request has begun to arrive; only meaningful after ``next`` answered None."""
        return self._head is not None or self._at < len(self._buffer)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for ``CONTINUE`` before it sends the body (RFC 9110 10.1.1)."""
        return self._continue

    def continued(self) -> None:
        """``CONTINUE`` was sent."""
        self._continue = False

    def feed(self, data: bytes) -> None:
        """Take what arrived, any number of bytes."""
        if self._at == len(self._buffer):
            self._buffer, self._at, self._checked = data, 0, 0
            return
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(self._buffer)
        if self._at:
            del self._buffer[: self._at]
            self._checked = max(self._checked - self._at, 0)
            self._at = 0
        self._buffer += data

    def next(self) -> Request | None:
        """Return the next request, None if it is not complete yet; raises BadRequestError."""
        head = self._head
        if head is None:
            if self._at == len(self._buffer):
                return None
            head = self._take_head()
            if head is None or not self._length:
                return head
        body_end = self._at + self._length
        if len(self._buffer) < body_end:
            self._head = head
            return None
        body = bytes(self._buffer[self._at : body_end])
        self._at = self._checked = body_end
        self._head = None
        self._continue = False
        return Request(head.method, head.path, head.query, head.headers, body, head.keep_alive)

    def _take_head(self) -> Request | None:
        """Return the next request without its body, whose length it sets; None if its head is not complete."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n\r\n", max(at, self._checked - 3), at + self._max_head)
        if end < 0:
            self._check_incomplete()
            return None
        text = buffer[at:end].decode("utf-8", "surrogateescape")
        usual = _PLUGIN.fullmatch(text)
        if usual is not None:
            values = usual.groups()
            length = int(values[-1])
            if length <= self._max_body:
                self._at = self._checked = end + 4
                self._length = length
                present = map(is_not, values, repeat(None))
                headers = dict(compress(zip(_PLUGIN_KEYS, values, strict=True), present))
                return Request("POST", "/v1/cni", "", headers, b"", "connection" not in headers)
        _check_octets(buffer[self._checked : end])
        lines = text.split("\r\n")
        if len(lines[0]) > MAX_LINE:
            raise BadRequestError(414, f"its request line is longer than {MAX_LINE} bytes")
        method, path, query, modern = _parse_request_line(lines[0])
        headers = _parse_fields(lines[1:])
        length = _body_length(headers, self._max_body, modern=modern)
        expect = headers.get("expect")
        if expect is not None and expect.lower() != "100-continue":
            raise BadRequestError(417, "its only known expectation is 100-continue")
        connection = headers.get("connection")
        keep_alive = modern and (connection is None or not _has_close(connection))
        self._at = self._checked = end + 4
        self._length = length
        self._continue = expect is not None and modern and length > 0
        return Request(method, path, query, headers, b"", keep_alive)

    def _check_incomplete(self) -> None:
        """Refuse at once what can no longer become a head: a client that errs should not wait for a timeout."""
        buffer, at = self._buffer, self._at
        if buffer[at] in b"\r\n":
            raise BadRequestError(400, "it begins with an empty line")
        if len(buffer) - at >= self._max_head:
            if buffer.find(b"\r\n", at, at + self._max_head) < 0:
                raise BadRequestError(414, f"its request line is longer than {self._max_head} bytes")
            raise BadRequestError(431, f"its head is longer than {self._max_head} bytes")
        stop = len(buffer) - buffer.endswith(b"\r")  # a CR whose LF is still to come is not a bare one
        if stop > self._checked:
            _check_octets(buffer[self._checked : stop])
            self._checked = stop


def _check_octets(text: bytes | bytearray) -> None:
    """Refuse control characters and line ends other than CRLF. ``text`` begins and ends at no half of a CRLF."""
    if text.translate(None, _LEGAL):
        raise BadRequestError(400, "its head holds a control character")
    ends = text.count(b"\r\n")
    if ends != text.count(b"\n") or ends != text.count(b"\r"):
        raise BadRequestError(400, "its head holds a bare CR or LF; lines end with CRLF")


@lru_cache(maxsize=64)
def _parse_request_line(line: str) -> tuple[str, str, str, bool]:
    """Return method, path, query and whether the version is 1.1."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequestError(400, "its first line is not '<method> <target> HTTP/1.1'")
    method, target, major, minor = match.groups()
    if major != "1" or minor not in "01":
        raise BadRequestError(505, f"its version is HTTP/{major}.{minor}; use HTTP/1.1")
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise BadRequestError(400, "its target is not a path of visible ASCII characters that begins with '/'")
    return method, parts[1], parts[2] or "", minor == "1"


@lru_cache(maxsize=128)
def _field_name(name: str) -> str:
    """Return the name in lower case. Cached, because all clients send the same few."""
    if not name:
        raise BadRequestError(400, "a field has no name")
    if name[0] in " \t":
        raise BadRequestError(400, "a field is continued on a second line (obs-fold), or begins with a blank")
    if not _FIELD_NAME.fullmatch(name):
        raise BadRequestError(400, "a field's name is not a token of at most 256 characters followed by a colon")
    return name.lower()


def _parse_fields(lines: list[str]) -> dict[str, str]:
    """Return the fields in the lines of a head after the first."""
    if not lines:
        return {}
    # Without a loop: each step of the interpreter is one for each field of each request.
    names, colons, values = zip(*map(str.partition, lines, repeat(":")), strict=True)
    if "" in colons:
        raise BadRequestError(400, "a line after the first has no colon")
    keys = tuple(map(_field_name, names))
    values = tuple(map(str.strip, values, repeat(" \t")))
    headers = dict(zip(keys, values, strict=True))
    return headers if len(headers) == len(keys) else _join_lists(keys, values)


def _join_lists(keys: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """Return fields of which some appear more than once: as if each list were in one."""
    headers: dict[str, str] = {}
    for key, value in zip(keys, values, strict=True):
        if key in headers and key not in _LISTS:
            raise BadRequestError(400, f"it has two {key} fields")
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def _body_length(headers: dict[str, str], limit: int, *, modern: bool) -> int:
    """Return the length of the body in bytes (RFC 9112 6.3) and refuse what leaves a doubt about it."""
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        if length is not None:
            raise BadRequestError(400, "it has both Transfer-Encoding and Content-Length")
        raise BadRequestError(501, "it has a Transfer-Encoding; send the body with Content-Length")
    if modern and "host" not in headers:
        raise BadRequestError(400, "it has no Host field")
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()):
        raise BadRequestError(400, "its Content-Length is not a decimal number")
    # int() is quadratic and refuses more than 4,300 digits; no limit of ours has more than 18.
    size = int(length) if len(length) <= 18 else limit + 1
    if size > limit:
        raise BadRequestError(413, f"its body is longer than {limit} bytes")
    return size


@lru_cache(maxsize=16)
def _has_close(connection: str) -> bool:
    """Whether a Connection field has the option ``close``."""
    return any(option.strip(" \t").lower() == "close" for option in connection.split(","))


def serialize(response: Response, *, keep_alive: bool, omit_body: bool = False) -> bytes:
    """Return the response as sent: ``keep_alive`` false announces the close, ``omit_body`` answers a HEAD.

    Raises ValueError for an extra field that would not stay within its line.
    """
    body = response.body
    head = _head(response.status, response.content_type, response.headers, keep_alive and not response.close)
    if response.status == _NO_CONTENT:
        return head + b"\r\n"
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), b"" if omit_body else body)


@lru_cache(maxsize=128)
def _head(status: int, content_type: str, headers: tuple[tuple[str, str], ...], keep_alive: bool) -> bytes:  # noqa: FBT001 - a key of the cache
    """Return the part of a response that few responses differ in; cached for that."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status != _NO_CONTENT:
        lines.append(f"Content-Type: {content_type}")
    if not keep_alive:
        lines.append("Connection: close")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii") + _extra(headers)


def _extra(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Return the fields that a handler added."""
    lines = []
    for name, value in headers:
        line = f"{name}: {value}"
        if not _FIELD_NAME.fullmatch(name) or not line.isprintable():
            raise ValueError(f"cannot send the field {name!r}: its name or value would break the response's head")
        lines.append(f"{line}\r\n")
    return "".join(lines).encode()
