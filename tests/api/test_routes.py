"""The table of the API: every path with its method, its access rule and the exact form of what it answers."""

import json
from collections.abc import Awaitable

import pytest
import trio

from ipamd.api.access import Access, Peer, Rule
from ipamd.api.events import Events
from ipamd.api.http import Request, Response
from ipamd.api.routes import Asked, Reports, Router, public, table
from ipamd.api.takeover import Takeover
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Committed
from tests.api.plugin_call import ROOT, Path, call

OWN, GROUP = 990, 991
DAEMON = Peer(2, OWN, OWN)
READER = Peer(3, 1000, 1000, (4, GROUP))
READER_BY_GROUP = Peer(4, 1000, GROUP)
STRANGER = Peer(5, 1000, 1000, (4,))
OVER_TCP = Peer(0, -1, -1)


class Api:
    """All routes over a node with one pod, and a readiness that the test sets."""

    def __init__(self) -> None:
        self.path = Path()
        self.path.supply("10.0.0.0/29", {0: "ipamd-reserve-n1", 1: "ipamd-reserve-n1", 4: "k8s-pod-network.old"})
        self.path.ask(call())
        self.reason = ""
        reports = Reports(
            status=lambda: {"status": "s"},
            config=lambda: {"config": "c"},
            metrics=lambda accept: (f"text/plain; for={accept}", b"m 1\n"),
            ready=lambda: self.reason,
            now=lambda: 0,
            drain=lambda: {"draining": True},
            undrain=lambda: {"draining": False},
            leaks=self.leaks,
            release_leaks=self.release_leaks,
            check=lambda: {"memory": [], "findings": []},
            read_store=self.read,
            commit_store=self.commit,
        )
        path = self.path
        takeover = Takeover(path.ledger, path.now, path.append, trio.lowlevel.checkpoint)
        asked = Asked(path.handlers, path.tunnels, path.explain, Events(lambda: 0), takeover)
        self.router = Router(
            table(asked, self.path.ledger, reports),
            Access(OWN, GROUP),
        )
        self.tcp = Router(public(reports), Access(OWN, GROUP))

    async def leaks(self) -> dict[str, object]:
        """What looks leaked: says that it is not released."""
        return {"released": False}

    async def release_leaks(self) -> dict[str, object]:
        """What looks leaked: says that it is released."""
        return {"released": True}

    async def read(self, body: bytes) -> bytes:
        """The store: echoes, or refuses what says so."""
        if body == b"refuse":
            raise RefusedError(Code.TRY_AGAIN_LATER, "cannot read the store: it is away")
        return b"read " + body

    async def commit(self, body: bytes, uid: int) -> bytes:
        """The store: echoes."""
        return f"commit by {uid} ".encode() + body

    def get(self, path: str, peer: Peer = ROOT, method: str = "GET", **head: str) -> Response:
        """Answer a request without a body."""
        response = self.router(Request(method, path, "", head, b"", keep_alive=True), peer)
        if isinstance(response, Response):
            return response
        return trio.run(_awaited, response)

    def json(self, path: str) -> object:
        """The value that a path shows."""
        response = self.get(path)
        assert (response.status, response.content_type) == (200, "application/json")
        assert response.body.endswith(b"\n")
        return json.loads(response.body)


async def _awaited(answer: Awaitable[Response]) -> Response:
    return await answer


@pytest.fixture
def api() -> Api:
    """See Api."""
    return Api()


TUNNELS = "/v1/tunnel-addresses"

ROUTES = {
    "/": ("GET", Rule.ANYONE),
    "/v1/cni": ("POST", Rule.ADMIN),
    "/v1/pools": ("GET", Rule.READ),
    "/v1/blocks": ("GET", Rule.READ),
    "/v1/allocations": ("GET", Rule.READ),
    "/v1/reserve": ("GET", Rule.READ),
    TUNNELS: ("GET", Rule.READ),
    "/v1/explain": ("GET", Rule.READ),
    "/v1/events": ("GET", Rule.READ),
    "/v1/status": ("GET", Rule.READ),
    "/v1/config": ("GET", Rule.READ),
    "/v1/import/host-local": ("POST", Rule.ADMIN),
    "/v1/gc": ("GET", Rule.READ),
    "/v1/check": ("GET", Rule.READ),
    "/v1/drain": ("POST", Rule.ADMIN),
    "/v1/undrain": ("POST", Rule.ADMIN),
    "/v1/store/read": ("POST", Rule.ADMIN),
    "/v1/store/commit": ("POST", Rule.ADMIN),
    "/metrics": ("GET", Rule.ANYONE),
    "/healthz": ("GET", Rule.ANYONE),
    "/readyz": ("GET", Rule.ANYONE),
}


def test_the_index_lists_every_route(api: Api) -> None:
    """GET / names each path but itself, with its method, who may call it, and what it is for."""
    listed = api.json("/")
    assert isinstance(listed, list)
    routes = {(path, method, rule) for path, (method, rule) in ROUTES.items() if path != "/"}
    routes |= {(TUNNELS, method, Rule.ADMIN) for method in ("POST", "DELETE")} | {("/v1/gc", "POST", Rule.ADMIN)}
    assert {(each["path"], each["method"], Rule[each["access"].upper()]) for each in listed} == routes
    assert all(set(each) == {"method", "path", "access", "what"} and each["what"] for each in listed)


ALLOWED = {
    Rule.ADMIN: [ROOT, DAEMON],
    Rule.READ: [ROOT, DAEMON, READER, READER_BY_GROUP],
    Rule.ANYONE: [ROOT, DAEMON, READER, READER_BY_GROUP, STRANGER, OVER_TCP],
}


@pytest.mark.parametrize("peer", ALLOWED[Rule.ANYONE], ids=["root", "daemon", "reader", "by-group", "stranger", "tcp"])
@pytest.mark.parametrize("path", ROUTES)
def test_who_may_call_what(api: Api, path: str, peer: Peer) -> None:
    """CNI calls are root's and the daemon's, views the group's as well, health and metrics anybody's."""
    method, rule = ROUTES[path]
    response = api.get(path, peer, method)
    assert (response.status == 403) == (peer not in ALLOWED[rule])
    if response.status == 403:
        answer = json.loads(response.body)
        assert answer["msg"].startswith(f"cannot serve {path} to uid {peer.uid}: only root")
        assert ("Ipamd-Exit", "1") in response.headers


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_tunnel_addresses_are_the_administrators(api: Api, method: str) -> None:
    """To give or release one is for root and the daemon's own user; the group may look."""
    for peer in (READER, STRANGER, OVER_TCP):
        assert api.get(TUNNELS, peer, method).status == 403
    assert api.get(TUNNELS, DAEMON, "DELETE").status == 400


def test_who_may_look_at_leaks_and_who_may_release_them(api: Api) -> None:
    """The group may look, only root and the daemon's own user release."""
    assert json.loads(api.get("/v1/gc", READER).body) == {"released": False}
    assert api.get("/v1/gc", READER, "POST").status == 403
    assert json.loads(api.get("/v1/gc", DAEMON, "POST").body) == {"released": True}


def test_without_a_group_only_root_and_the_daemon_read() -> None:
    """No socket_group: nobody else may read, whatever groups they are in."""
    access = Access(OWN, None)
    assert not any(access.allows(Rule.READ, peer) for peer in (READER, READER_BY_GROUP, STRANGER, OVER_TCP))
    assert all(access.allows(Rule.READ, peer) for peer in (ROOT, DAEMON))


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/", "/v1/cni/", "/V1/CNI", "/v1/pools/x", "//", "/%2e"])
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    """What is not in the table is not there, and the answer says where the table is."""
    response = api.get(path)
    assert response.status == 404
    assert json.loads(response.body)["msg"] == f"cannot serve {path}: there is no such path; GET / lists them"


@pytest.mark.parametrize("path", [path for path in ROUTES if path not in (TUNNELS, "/v1/gc")])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "get"])
def test_another_method_is_405(api: Api, path: str, method: str) -> None:
    """A path answers its own method only, and says which that is."""
    allowed, _rule = ROUTES[path]
    response = api.get(path, method=method)
    if method == allowed:
        assert response.status != 405
        return
    assert (response.status, ("Allow", allowed) in response.headers) == (405, True)
    assert json.loads(response.body)["msg"] == f"cannot serve {method} {path}: only {allowed}"


def test_a_405_is_told_before_who_may_call(api: Api) -> None:
    """Which methods a path has is no secret: GET / says it to anybody."""
    assert api.get("/v1/cni", STRANGER).status == 405


def test_over_tcp_there_are_only_numbers_and_health(api: Api) -> None:
    """The second listener has no CNI and no views, not even for root."""
    for path in ROUTES:
        response = api.tcp(Request("GET", path, "", {}, b"", keep_alive=True), OVER_TCP)
        assert isinstance(response, Response)
        assert (response.status == 200) == (path in ("/", "/metrics", "/healthz", "/readyz"))


def test_pools(api: Api) -> None:
    """A pool with its share on this node, and why it does not serve, if it does not."""
    assert api.json("/v1/pools") == [
        {
            "name": "four",
            "cidr": "10.0.0.0/16",
            "block_size": 29,
            "disabled": False,
            "node_selector": "all()",
            "namespace_selector": "all()",
            "excluded": "",
            "blocks": 1,
            "addresses_in_use": 2,
            "addresses_in_reserve": 1,
        },
        {
            "name": "six",
            "cidr": "fd00::/64",
            "block_size": 125,
            "disabled": False,
            "node_selector": "all()",
            "namespace_selector": "all()",
            "excluded": "",
            "blocks": 0,
            "addresses_in_use": 0,
            "addresses_in_reserve": 0,
        },
    ]


def test_blocks(api: Api) -> None:
    """A block by what its addresses are; they add up to its size, when nothing is contested."""
    assert api.json("/v1/blocks") == [
        {
            "cidr": "10.0.0.0/29",
            "pool": "four",
            "affine": True,
            "affinity": "host:n1",
            "revision": 3,
            "size": 8,
            "in_use": 2,
            "in_reserve": 1,
            "unreserved": 5,
            "lent": 0,
            "cooling": 0,
            "unflushed": 1,
            "contested": 0,
        }
    ]


def test_allocations(api: Api) -> None:
    """Each address in use: whose it is, since when, and whether the store says so too."""
    listed = api.json("/v1/allocations")
    assert isinstance(listed, list)
    since = listed[0].pop("since")
    assert since.endswith("Z")
    assert listed == [
        {
            "address": "10.0.0.0",
            "pool": "four",
            "block": "10.0.0.0/29",
            "ordinal": 0,
            "handle": "k8s-pod-network.c1",
            "network": "k8s-pod-network",
            "container": "c1",
            "interface": "eth0",
            "namespace": "default",
            "pod": "web",
            "flushed": False,
            "borrowed_from": "",
        },
        {
            "address": "10.0.0.4",
            "pool": "four",
            "block": "10.0.0.0/29",
            "ordinal": 4,
            "handle": "k8s-pod-network.old",
            "network": "k8s-pod-network",
            "container": "old",
            "interface": "",
            "namespace": "",
            "pod": "",
            "since": "",
            "flushed": True,
            "borrowed_from": "",
        },
    ]


def test_the_reserve(api: Api) -> None:
    """The addresses that can be handed out, the next one first, and how many are missing."""
    listed = api.json("/v1/reserve")
    assert isinstance(listed, list)
    assert listed[0] == {
        "pool": "four",
        "target": 4,
        "available": 1,
        "missing": 3,
        "waiting": 0,
        "closed": "",
        "refusal": "",
        "tight": False,
        "pressed": False,
        "addresses": ["10.0.0.1"],
    }


def test_a_contested_address_is_shown_as_not_flushed(api: Api) -> None:
    """An address that the store gives to another is in use here, contested, and not flushed."""
    from ipamd.core import keys
    from ipamd.core.address import parse_cidr
    from tests.core.blocks import image

    value = image("10.0.0.0/29", {0: "k8s-pod-network.far"}, node="n2")
    api.path.ledger.apply(Committed(keys.block_key(parse_cidr("10.0.0.0/29")), 99, value))
    assert api.json("/v1/blocks")[0]["contested"] == 1  # type: ignore[index] # a list of objects
    assert api.json("/v1/allocations")[0]["flushed"] is False  # type: ignore[index] # a list of objects


def test_what_the_daemon_reports(api: Api) -> None:
    """Status and configuration are the daemon's own words; metrics have Prometheus' content type, of the format it accepts."""
    assert (api.json("/v1/status"), api.json("/v1/config")) == ({"status": "s"}, {"config": "c"})
    metrics = api.get("/metrics", OVER_TCP)
    assert (metrics.status, metrics.content_type, metrics.body) == (200, "text/plain; for=", b"m 1\n")
    assert api.get("/metrics", OVER_TCP, accept="*/*").content_type == "text/plain; for=*/*"


def test_health_and_readiness(api: Api) -> None:
    """A daemon that answers is healthy; it is ready, or says so with 503, and why only on the socket."""
    assert api.json("/healthz") == {"healthy": True}
    assert api.json("/readyz") == {"ready": True, "reason": ""}
    api.reason = "the datastore is locked"
    for peer, told in ((ROOT, "the datastore is locked"), (OVER_TCP, "")):
        response = api.get("/readyz", peer)
        assert (response.status, json.loads(response.body)) == (503, {"ready": False, "reason": told})


def test_no_view_changes_anything(api: Api) -> None:
    """Reading every view leaves the ledger as it was."""
    from tests.core.snapshot import differences, snapshot

    before = snapshot(api.path.ledger)
    for path, (method, _rule) in ROUTES.items():
        if method == "GET":
            api.get(path)
    assert differences(snapshot(api.path.ledger), before) == []


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/store/read", b"x", (200, b"read x")),
        ("/v1/store/commit", b"x", (200, b"commit by 990 x")),
        ("/v1/store/read", b"refuse", (503, b'{"code":11,"msg":"cannot read the store: it is away"}')),
    ],
)
async def test_the_store_is_passed_on_to_administrators(api: Api, path: str, body: bytes, answer: object) -> None:
    """What the store answers is the answer, who changes records is told to it, and a refusal has words."""
    asked = api.router(Request("POST", path, "", {}, body, keep_alive=True), DAEMON)
    assert not isinstance(asked, Response)
    response = await asked
    assert (response.status, response.body) == answer
    if response.status == 200:
        assert response.content_type == "application/msgpack"
