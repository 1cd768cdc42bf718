"""``/v1/events``: what this daemon answered and did, the last so many, in order, for who follows it.

Nothing is added between a request and its reply: ``served`` is called after the reply and keeps request and response as
they are; they are read only when somebody asks. What the daemon says of itself (``note``) are its log lines and the
blocks that come and go.

Numbers grow, also over a restart: they begin at the time of the start in microseconds.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import msgspec
import trio
from msgspec import Struct

from ipamd.api import cni
from ipamd.api.access import Peer, own_uids
from ipamd.api.answers import read_query, refused, shown
from ipamd.api.http import Request, Response
from ipamd.core.errors import Code, RefusedError
from ipamd.core.records import MALFORMED, rfc3339

KEPT = 1000
"""How many events are kept: some 3 MB."""

KEPT_FAILURES = 20
"""How many refused requests are kept beside them, so that a burst of others does not push them out."""

LONGEST = 16384
"""Bytes of a request's body above which it is not kept (the list of a GC)."""

LONGEST_WAIT = 30.0
"""Seconds that a request may wait for an event."""

READERS = 16
"""How many requests of others than administrators may wait at once."""


class Event(Struct, frozen=True):
    """One thing that happened. ``kind`` is a CNI verb in lower case, ``log`` or ``block``.

    Of a request: the pod (or "") and its attachment, the ``addresses`` it was answered with, or its refusal's ``code``
    and text (``what``). Else ``what`` happened, with its ``values``, and the ``level`` of the log line.
    """

    number: int
    at: str
    kind: str
    what: str = ""
    level: str = "info"
    code: int = 0
    namespace: str = ""
    pod: str = ""
    network: str = ""
    container: str = ""
    interface: str = ""
    addresses: tuple[str, ...] = ()
    values: dict[str, str] = {}


class _Served(Struct, frozen=True):
    """A request and what it was answered, at a time (Unix, ns)."""

    number: int
    at: int
    request: Request
    response: Response


class Events:
    """``unix`` reads the clock (ns); ``close`` ends all waits, because the daemon stops."""

    def __init__(self, unix: Callable[[], int]) -> None:
        self._unix = unix
        self._number = self._start = unix() // 1000
        self._kept: deque[_Served | Event] = deque(maxlen=KEPT)
        self._failed: deque[_Served] = deque(maxlen=KEPT_FAILURES)
        self._waiting: trio.Event | None = None
        self._readers = 0
        """How many requests of others than administrators wait."""
        self._own_uids = own_uids()
        self._closed = False

    # --- what happens -----------------------------------------------------------------------------------------

    def served(self, request: Request, response: Response) -> None:
        """A request to the CNI path was answered; called after the reply."""
        self._number += 1
        if len(request.body) > LONGEST:
            request = msgspec.structs.replace(request, body=b"")
        served = _Served(self._number, self._unix(), request, response)
        if response.status != 200:
            self._failed.append(served)
        self._keep(served)

    def note(self, kind: str, what: str, values: Mapping[str, object], level: str = "info") -> None:
        """The daemon did something by itself, or logged it."""
        self._number += 1
        texts = {name: _text(str(value)) for name, value in values.items()}
        self._keep(Event(self._number, rfc3339(self._unix()), kind, what, level, values=texts))

    def _keep(self, event: _Served | Event) -> None:
        self._kept.append(event)
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    def logged(self, level: str, values: Mapping[str, object]) -> None:
        """A line was logged; those for who works on ipamd itself do not count."""
        if level != "debug":
            rest = {name: value for name, value in values.items() if name not in ("event", "component")}
            self.note("log", str(values.get("event", "")), rest, level)

    def blocks(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Note which blocks this node got or lost (``views.shares``)."""
        for cidr in sorted(before.keys() | after.keys()):
            share = after.get(cidr, "none")
            if share != before.get(cidr, "none"):
                self.note("block", "this node's share of a block changed", {"block": cidr, "share": share})

    def close(self) -> None:
        """End all waits, those to come too."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.set()

    # --- who asks ---------------------------------------------------------------------------------------------

    def answer(self, request: Request, peer: Peer) -> Response | Awaitable[Response]:
        """Events after a number, all that are kept without one; with ``wait`` (s) until there is one."""
        try:
            asked = read_query(request, ("after", "wait"))
            after, wait = _integer(asked, "after", 1 << 62), _integer(asked, "wait", int(LONGEST_WAIT))
        except RefusedError as error:
            return refused(error)
        if wait and after >= self._number:
            return self._wait(after, wait) if peer.uid in self._own_uids else self._let_wait(after, wait)
        return shown(self._after(after))

    async def _let_wait(self, after: int, seconds: float) -> Response:
        """Let one wait who may only read: at most so many at once, as each has a connection open."""
        if self._readers >= READERS:
            return refused(
                RefusedError(
                    Code.TRY_AGAIN_LATER,
                    f"cannot wait for an event: {READERS} requests of members of socket_group wait already; "
                    "ask without wait, or try again later",
                )
            )
        self._readers += 1
        try:
            return await self._wait(after, seconds)
        finally:
            self._readers -= 1

    async def _wait(self, after: int, seconds: float) -> Response:
        with trio.move_on_after(seconds):
            while not self._closed and self._number <= after:
                if self._waiting is None:
                    self._waiting = trio.Event()
                await self._waiting.wait()
        return shown(self._after(after))

    def _after(self, after: int) -> dict[str, object]:
        """``lost``: how many of this daemon's events after the number are not kept any more."""
        found = [each for each in self._kept if each.number > after]
        first = found[0].number if found else self._number + 1
        return {
            "events": [_read(each) for each in found],
            "last": max(after, self._number),
            "lost": max(0, first - max(after, self._start) - 1) if after else 0,
        }

    def failures(self) -> list[Event]:
        """The last refused requests, the latest first."""
        return [_read(each) for each in reversed(self._failed)]


def _integer(asked: Mapping[str, str], name: str, most: int) -> int:
    text = asked.get(name, "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > most:
        raise RefusedError(
            Code.INVALID_ENVIRONMENT,
            f"cannot read the query of /v1/events: {name} is {text[:80]!r}; write a whole number from 0 to {most}",
        )
    return int(text)


class _Network(Struct, frozen=True):
    name: str = ""


class _Result(Struct, frozen=True):
    ips: list[dict[str, object]] = []
    ip4: dict[str, object] = {}
    ip6: dict[str, object] = {}
    code: int = 0
    msg: str = ""


def _read(kept: _Served | Event) -> Event:
    """A request and its answer as an event; what cannot be read of them is left out."""
    if isinstance(kept, Event):
        return kept
    headers, network, result, labels = kept.request.headers, _Network(), _Result(), dict[str, str]()
    with suppress(*MALFORMED):
        network = msgspec.json.decode(kept.request.body, type=_Network)
    with suppress(*MALFORMED):
        result = msgspec.json.decode(kept.response.body or b"{}", type=_Result)
    with suppress(RefusedError):
        labels = cni.read_args(headers.get("cni-args", ""))
    given = [each.get("address", "") for each in result.ips]
    given += [each["ip"] for each in (result.ip4, result.ip6) if "ip" in each]
    return Event(
        kept.number,
        rfc3339(kept.at),
        _text(headers.get("cni-command", "?")).lower(),
        result.msg,
        "warning" if kept.response.status != 200 else "info",
        result.code,
        _text(labels.get("K8S_POD_NAMESPACE", "")),
        _text(labels.get("K8S_POD_NAME", "")),
        network.name,
        _text(headers.get("cni-containerid", "")),
        _text(headers.get("cni-ifname", "")),
        tuple(str(address).partition("/")[0] for address in given),
    )


def _text(field: str) -> str:
    """A field as JSON may hold it: what is not UTF-8 replaced, and not longer than any name."""
    return field[:1024].encode(errors="replace").decode()
