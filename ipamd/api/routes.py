"""The API's routes: one literal table of path, method, who may call it, and what answers.

The same noun names the route, the view and the command. ``GET /`` lists the table. What a route may not do: wait for
the store (only an ADD may, inside its handler, ``/v1/explain`` for one look, and the routes of the store itself).
"""

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from ipamd.api import views
from ipamd.api.access import Access, Peer, Rule
from ipamd.api.answers import refused, shown
from ipamd.api.events import Events
from ipamd.api.explain import Explain
from ipamd.api.handlers import Handlers
from ipamd.api.http import Request, Response
from ipamd.api.takeover import Takeover
from ipamd.api.tunnels import Tunnels
from ipamd.core.errors import Code, RefusedError
from ipamd.core.ledger import Ledger

Answer = Callable[[Request, Peer], Response | Awaitable[Response]]


TUNNELS = "/v1/tunnel-addresses"
GC = "/v1/gc"


class Route(Struct, frozen=True):
    """One path: its method, the access rule, what it is for in a line, and what answers."""

    method: str
    path: str
    rule: Rule
    what: str
    answer: Answer


class Reports(Struct, frozen=True, kw_only=True):
    """What the routes show that the ledger does not know: given by the daemon."""

    status: Callable[[], Mapping[str, object]]
    config: Callable[[], Mapping[str, object]]
    metrics: Callable[[str], tuple[str, bytes]]
    """Content type and body of the Prometheus exposition, for who accepts this."""
    ready: Callable[[], str]
    """Why an ADD could not be served now; "" if it could."""
    now: Callable[[], int]
    drain: Callable[[], Mapping[str, object]]
    """Begin a drain, or go on with it; how far it is."""
    undrain: Callable[[], Mapping[str, object]]
    leaks: Callable[[], Awaitable[Mapping[str, object]]]
    """What looks leaked."""
    release_leaks: Callable[[], Awaitable[Mapping[str, object]]]
    check: Callable[[], Mapping[str, object]]
    """What is wrong with memory, and what an administrator should look at."""
    read_store: Callable[[bytes], Awaitable[bytes]]
    """Answers a request for records of the store; raises RefusedError."""
    commit_store: Callable[[bytes, int], Awaitable[bytes]]
    """Answers a commit to the store by a user id; raises RefusedError."""


class Asked(Struct, frozen=True):
    """What answers the routes that are more than a view."""

    handlers: Handlers
    tunnels: Tunnels
    explain: Explain
    events: Events
    takeover: Takeover


def table(asked: Asked, ledger: Ledger, reports: Reports) -> tuple[Route, ...]:
    """All routes of the socket."""
    tunnels = asked.tunnels
    return (
        Route("POST", "/v1/cni", Rule.ADMIN, "one call of the CNI plugin", asked.handlers.cni),
        Route("GET", "/v1/pools", Rule.READ, "IP pools and this node's share", lambda *_: shown(views.pools(ledger))),
        Route("GET", "/v1/blocks", Rule.READ, "this node's blocks", lambda *_: shown(views.blocks(ledger))),
        Route("GET", "/v1/allocations", Rule.READ, "addresses in use", lambda *_: shown(views.allocations(ledger))),
        Route(
            "GET",
            "/v1/reserve",
            Rule.READ,
            "addresses that can be handed out at once",
            lambda *_: shown(views.reserves(ledger, reports.now())),
        ),
        Route("GET", TUNNELS, Rule.READ, "this node's tunnel addresses", tunnels.listed),
        Route("POST", TUNNELS, Rule.ADMIN, "give the tunnel address of a type", tunnels.give),
        Route("DELETE", TUNNELS, Rule.ADMIN, "release the tunnel address of a type", tunnels.release),
        Route("GET", "/v1/explain", Rule.READ, "why: ?pod=NAMESPACE/NAME, ?address=IP or ?node", asked.explain.answer),
        Route(
            "GET",
            "/v1/events",
            Rule.READ,
            "what was done: ?after=NUMBER&wait=SECONDS",
            asked.events.answer,
        ),
        Route("GET", "/v1/status", Rule.READ, "readiness, store, flush, errors", lambda *_: shown(reports.status())),
        Route(
            "POST",
            "/v1/import/host-local",
            Rule.ADMIN,
            "take over what the plugin host-local holds",
            asked.takeover.host_local,
        ),
        Route(
            "POST",
            "/v1/drain",
            Rule.ADMIN,
            "give back all that no pod holds, and assign nothing; says how far it is",
            lambda *_: shown(reports.drain()),
        ),
        Route("GET", GC, Rule.READ, "allocations that look leaked", lambda *_: _told(reports.leaks())),
        Route("POST", GC, Rule.ADMIN, "release them at once", lambda *_: _told(reports.release_leaks())),
        Route(
            "GET", "/v1/check", Rule.READ, "what is wrong with memory and records", lambda *_: shown(reports.check())
        ),
        Route("POST", "/v1/undrain", Rule.ADMIN, "end a drain", lambda *_: shown(reports.undrain())),
        Route("GET", "/v1/config", Rule.READ, "the configuration in force", lambda *_: shown(reports.config())),
        *relayed(reports.read_store, reports.commit_store),
        *public(reports),
    )


def relayed(
    read: Callable[[bytes], Awaitable[bytes]], commit: Callable[[bytes, int], Awaitable[bytes]]
) -> tuple[Route, ...]:
    """The routes to the daemon's own store; see ``Reports``."""
    return (
        Route(
            "POST",
            "/v1/store/read",
            Rule.ADMIN,
            "records of the daemon's store, a page at a time (MessagePack)",
            lambda request, _: _records(read(request.body)),
        ),
        Route(
            "POST",
            "/v1/store/commit",
            Rule.ADMIN,
            "change records of the daemon's store, each only if it is still as it was (MessagePack)",
            lambda request, peer: _records(commit(request.body, peer.uid)),
        ),
    )


def public(reports: Reports) -> tuple[Route, ...]:
    """The routes that are also served over TCP: nothing but numbers, ids of a few containers, and yes or no.

    Why not is told only to who could read the rest of the socket too: a reason may name endpoints and pods.
    """

    def metrics(request: Request, _peer: Peer) -> Response:
        content_type, body = reports.metrics(request.headers.get("accept", ""))
        return Response(200, body, content_type)

    def ready(_request: Request, peer: Peer) -> Response:
        reason = reports.ready()
        told = reason if peer.uid >= 0 else ""
        return shown({"ready": not reason, "reason": told}, 503 if reason else 200)

    return (
        Route("GET", "/metrics", Rule.ANYONE, "metrics for Prometheus", metrics),
        Route("GET", "/healthz", Rule.ANYONE, "the daemon answers", lambda *_: shown({"healthy": True})),
        Route("GET", "/readyz", Rule.ANYONE, "an ADD can be served", ready),
    )


class Router:
    """Finds the route of a request and checks that its caller may call it. A Handler for ``api.server``."""

    def __init__(self, routes: tuple[Route, ...], access: Access) -> None:
        self._access = access
        self._routes = {(route.path, route.method): route for route in (*routes, self._index(routes))}
        self._methods: dict[str, list[str]] = {}
        for path, method in self._routes:
            self._methods.setdefault(path, []).append(method)

    def __call__(self, request: Request, peer: Peer) -> Response | Awaitable[Response]:
        """Answer a request."""
        route = self._routes.get((request.path, request.method))
        if route is None:
            return self._lost(request)
        if not self._access.allows(route.rule, peer):
            return _refusal(403, f"cannot serve {request.path} to uid {peer.uid}: {_WHO[route.rule]}")
        return route.answer(request, peer)

    def _lost(self, request: Request) -> Response:
        allowed = self._methods.get(request.path)
        if allowed is None:
            return _refusal(404, f"cannot serve {request.path[:80]}: there is no such path; GET / lists them")
        methods = ", ".join(sorted(allowed))
        response = _refusal(405, f"cannot serve {request.method[:20]} {request.path}: only {methods}")
        return msgspec.structs.replace(response, headers=(*response.headers, ("Allow", methods)))

    @staticmethod
    def _index(routes: tuple[Route, ...]) -> Route:
        listed = [
            {"method": route.method, "path": route.path, "access": route.rule.name.lower(), "what": route.what}
            for route in routes
        ]
        return Route("GET", "/", Rule.ANYONE, "this list", lambda *_: shown(listed))


_WHO = {
    Rule.ADMIN: "only root and the daemon's own user may; use sudo",
    Rule.READ: "only root, the daemon's own user and the members of socket_group may; join the group or use sudo",
    Rule.ANYONE: "",
}


async def _told(answer: Awaitable[object]) -> Response:
    return shown(await answer)


async def _records(answer: Awaitable[bytes]) -> Response:
    try:
        return Response(200, await answer, "application/msgpack")
    except RefusedError as error:
        return refused(error)


def _refusal(status: int, msg: str) -> Response:
    body = msgspec.json.encode({"code": int(Code.INVALID_ENVIRONMENT), "msg": msg})
    return Response(status, body, headers=(("Ipamd-Exit", "1"),))
