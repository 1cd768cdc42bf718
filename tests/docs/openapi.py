"""The OpenAPI document of the daemon's socket: made of its table of routes and of its types, by ``make pages``.

The routes, their summaries and access rules are those of ``api.routes``. What a route takes and answers is named in
``OPERATIONS``: by the daemon's own types where it has them, else by types of this module, which ``test_openapi.py``
holds against a running daemon.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ipamd import __version__
from ipamd.api import cni, explain, views
from ipamd.api.access import Access, Peer, Rule
from ipamd.api.events import Event
from ipamd.api.http import Request, Response
from ipamd.api.routes import Router, table
from ipamd.api.takeover import Import, Imported
from ipamd.api.tunnels import Wanted
from ipamd.config import Config
from ipamd.core.whereabouts import Whereabouts
from ipamd.store.base import Outcome
from ipamd.store.wire import CommitRequest, Page, ReadRequest

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "openapi.json"
JSON, MSGPACK, TEXT = "application/json", "application/msgpack", "text/plain"
OPENMETRICS = "application/openmetrics-text"


# --- what is answered by mappings ---------------------------------------------------------------------------------


class Holding(Struct):
    """An address that a workload of this node holds: of a pool, or of host-local ranges."""


class Explanation(Struct):
    """What was asked for: a pod, an address or this node."""


PodView = msgspec.defstruct(
    "PodView",
    [
        (field.name, list[Holding] if field.name == "holds" else field.type)
        for field in msgspec.structs.fields(explain.PodView)
    ],
    namespace={"__doc__": explain.PodView.__doc__},
)


def plain(kind: Any) -> Any:
    """A type as JSON shows its values: without the defaults, which JSON does not leave out."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        fields = [(field.name, plain(field.type)) for field in msgspec.structs.fields(kind)]
        names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
        return msgspec.defstruct(kind.__name__, fields, namespace={"__doc__": kind.__doc__}, rename=names)
    return kind


def path_schema(kind: type) -> dict[str, Any]:
    """What a path is in JSON."""
    if issubclass(kind, Path):
        return {"type": "string"}
    raise NotImplementedError(kind)


ONE_OF = {
    "Holding": (views.AllocationView, views.RangeAllocationView),
    "Explanation": (PodView, Whereabouts, explain.NodeView),
}
"""What stands for one of several types, of which msgspec makes no schema by itself."""


class Error(Struct):
    """A refusal: the CNI code, and what was refused, which rule did it, and what to do."""

    code: int
    msg: str


class CniError(Struct):
    """A refusal as the plugin prints it."""

    cniVersion: str  # noqa: N815 - CNI's field name
    code: int
    msg: str
    details: str = ""


class CniAddress(Struct):
    """An address with its mask. ``version`` is there up to version 0.4.0 only."""

    address: str
    gateway: str = ""
    version: str = ""


class CniResult(Struct):
    """The result of an ADD in the version of the configuration; before 0.3.0 it has ``ip4`` and ``ip6`` in place of ``ips``."""

    cniVersion: str  # noqa: N815 - CNI's field name
    ips: list[CniAddress] = []
    routes: list[dict[str, Any]] = []
    dns: dict[str, Any] = {}
    ip4: dict[str, Any] = {}
    ip6: dict[str, Any] = {}


class ListedRoute(Struct):
    """One route. ``access``: admin (root and the daemon's user), read (also ``socket_group``) or anyone."""

    method: str
    path: str
    access: str
    what: str


class EventPage(Struct):
    """Events in order. ``last``: what to give as ``after`` next; ``lost``: how many are not kept any more."""

    events: list[Event]
    last: int
    lost: int


class Leak(Struct):
    """An allocation whose container is gone, why that is believed, and when it is released."""

    handle: str
    addresses: list[str]
    why: str
    seconds_left: float


class Leaks(Struct):
    """What looks leaked; ``problem``: why nothing can be said, else ""."""

    released: bool
    problem: str
    leaks: list[Leak]


class Drain(Struct):
    """How far a drain is; what the node still has of what no pod holds."""

    draining: bool
    drained: bool
    reserve: int
    empty_blocks: int
    unflushed: int


class Check(Struct):
    """What is wrong: with the daemon's memory, and what an administrator should look at."""

    memory: list[str]
    findings: list[str]


class Healthy(Struct):
    """The daemon answers."""

    healthy: bool


class Ready(Struct):
    """Whether an ADD can be served. ``reason`` is "" for who asks over TCP."""

    ready: bool
    reason: str


class StoreStatus(Struct):
    """The store: whether it answers, how often each call was made, and which records cannot be understood, and why."""

    kind: str
    connected: bool
    synced: bool
    locked: bool
    calls: dict[str, int]
    last_read_error: str
    damaged_records: dict[str, str]


class FlushStatus(Struct):
    """What the store does not have yet, and what was sent since the start. ``flushed_until`` is CLOCK_BOOTTIME in ns."""

    unflushed: int
    unflushed_age_seconds: float
    transactions: int
    operations: int
    conflicts: int
    failures: int
    claims: int
    flushed_until: int
    last_error: str


class PoolStatus(Struct):
    """This node's share of a pool."""

    blocks: int
    in_use: int
    in_reserve: int
    target: int
    waiting: int


class StateFileStatus(Struct):
    """The state file; ``set_aside``: damaged ones that wait for an operator."""

    path: str
    bytes: int
    error: str
    durability: str
    set_aside: list[str]


class KubernetesStatus(Struct):
    """What is known of Kubernetes."""

    connected: bool
    error: str
    pods: int
    namespaces: int
    pod_cidrs: list[str]


class RuntimeStatus(Struct):
    """The container runtime's cache; ``attachments``: null where there is none."""

    results_dir: str
    attachments: int | None
    leaked: int


class CleanerStatus(Struct):
    """The walk that clears away what nobody owns: whether it is here, and what it removed."""

    here: bool
    handles: int
    addresses: int


class Status(Struct):
    """Readiness, store, flush and errors. Counts are since the start; ``requests`` by verb and code (0: success)."""

    version: str
    at: str
    uptime_seconds: float
    node: str
    node_labels: dict[str, str]
    reserve_handle: str
    ready: bool
    reason: str
    store: StoreStatus
    flush: FlushStatus
    requests: dict[str, dict[str, int]]
    errors: list[Event]
    pools: dict[str, PoolStatus]
    state_file: StateFileStatus
    kubernetes: KubernetesStatus | None
    runtime: RuntimeStatus
    cleaner: CleanerStatus
    draining: bool
    yields_to: str
    attachments: int
    blocks: int


# --- what each route takes and answers ----------------------------------------------------------------------------


class Operation(Struct):
    """What a route answers and takes: types, the query's and the head's parameters with what they are for."""

    reply: Any
    body: Any = None
    query: Mapping[str, str] = {}
    head: Mapping[str, str] = {}
    media: tuple[str, ...] = (JSON,)
    failures: Mapping[int, tuple[str, Any]] = {}


_CNI_HEAD = {
    "Cni-Command": "ADD, DEL, CHECK, GC or STATUS",
    "Cni-Containerid": "the container",
    "Cni-Netns": "path of its network namespace",
    "Cni-Ifname": "the interface",
    "Cni-Path": "where plugins are",
    "Cni-Args": "KEY=VALUE pairs, separated by semicolons; the pod's namespace, name and uid as Kubernetes' runtimes say them",
    "Ipamd-Plugin": "the name that the plugin was called by",
    "Ipamd-Started": "when the plugin was started (CLOCK_BOOTTIME, ns)",
}
_EXPLAIN = {
    "pod": "NAMESPACE/NAME: what it holds, and what its next ADD would be answered",
    "config": "with pod: a CNI configuration as JSON that its ADD comes with",
    "address": "an IP address: where it is, and who has it",
    "node": "this node (its name, or nothing): what it may use, and what it has",
}
OPERATIONS = {
    "GET /": Operation(list[ListedRoute]),
    "POST /v1/cni": Operation(
        CniResult,
        plain(cni.NetworkConfig),
        head=_CNI_HEAD,
        failures=dict.fromkeys((400, 409, 500, 503), ("refused", CniError)),
    ),
    "GET /v1/pools": Operation(list[views.PoolView]),
    "GET /v1/blocks": Operation(list[views.BlockView]),
    "GET /v1/allocations": Operation(list[Holding]),
    "GET /v1/reserve": Operation(list[views.ReserveView]),
    "GET /v1/tunnel-addresses": Operation(list[views.TunnelView]),
    "POST /v1/tunnel-addresses": Operation(views.TunnelView, Wanted),
    "DELETE /v1/tunnel-addresses": Operation(None, Wanted),
    "GET /v1/explain": Operation(Explanation, query=_EXPLAIN),
    "GET /v1/events": Operation(
        EventPage, query={"after": "only events after this number", "wait": "seconds to wait for one, 30 at most"}
    ),
    "GET /v1/status": Operation(Status),
    "POST /v1/import/host-local": Operation(Imported, Import),
    "POST /v1/drain": Operation(Drain),
    "POST /v1/undrain": Operation(Drain),
    "GET /v1/gc": Operation(Leaks),
    "POST /v1/gc": Operation(Leaks),
    "GET /v1/check": Operation(Check),
    "GET /v1/config": Operation(plain(Config)),
    "POST /v1/store/read": Operation(Page, ReadRequest, media=(MSGPACK,)),
    "POST /v1/store/commit": Operation(Outcome, CommitRequest, media=(MSGPACK,)),
    "GET /metrics": Operation(
        str, media=(TEXT, OPENMETRICS), head={"Accept": "`application/openmetrics-text` for that format"}
    ),
    "GET /healthz": Operation(Healthy),
    "GET /readyz": Operation(Ready, failures={503: ("no ADD can be served", Ready)}),
}


class _Parts:
    """In place of the daemon's parts: the table only names what answers."""

    def __getattr__(self, _name: str) -> Any:
        return self


def routes() -> list[ListedRoute]:
    """All routes of the socket, as ``GET /`` lists them, and itself."""
    parts: Any = _Parts()
    router = Router(table(parts, parts, parts), Access(0, None))
    answer = router(Request("GET", "/", "", {}, b"", keep_alive=False), Peer(0, 0, 0, ()))
    assert isinstance(answer, Response)
    return [
        ListedRoute("GET", "/", Rule.ANYONE.name.lower(), "this list"),
        *msgspec.json.decode(answer.body, type=list[ListedRoute]),
    ]


# --- the document -------------------------------------------------------------------------------------------------

_ACCESS = {
    "admin": "Only root and the daemon's own user may.",
    "read": "Root, the daemon's own user and the members of `socket_group` may.",
    "anyone": "Everybody who can connect may; also served on `metrics_address`, except for `/`.",
}


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    listed = {f"{route.method} {route.path}": route for route in routes()}
    assert listed.keys() == OPERATIONS.keys(), listed.keys() ^ OPERATIONS.keys()
    answered = [
        each
        for operation in OPERATIONS.values()
        for each in (operation.reply, *(kind for _, kind in operation.failures.values()))
    ]
    taken = [operation.body for operation in OPERATIONS.values() if operation.body is not None]
    parts = [kind for several in ONE_OF.values() for kind in several]
    kinds = [kind for kind in [*answered, Error, *taken, *parts] if kind is not None]
    schemas, components = msgspec.json.schema_components(
        kinds, schema_hook=path_schema, ref_template="#/components/schemas/{name}"
    )
    known = dict(zip(map(repr, kinds), schemas, strict=True))
    for name in ("NetworkConfig", "Ipam"):  # nothing of a network configuration must be there
        del components[name]["required"]
    for name, several in ONE_OF.items():
        components[name] = {
            "description": components[name]["description"],
            "anyOf": [known[repr(kind)] for kind in several],
        }
    _complete(components, [known[repr(kind)] for kind in answered if kind not in (None, CniResult, CniError)])
    for schema in components.values():
        schema.pop("title", None)
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"]).replace("``", "`").strip()
    paths: dict[str, Any] = {}
    for name, route in listed.items():
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, OPERATIONS[name], known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ipamd",
            "version": __version__,
            "description": "What the daemon answers on its Unix socket. A request that cannot be served is answered with an error object.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {
                "url": "http://ipamd",
                "description": "the Unix socket, by default /run/ipamd/ipamd.sock; any host name will do",
            }
        ],
        "paths": paths,
        "components": {"schemas": components},
    }


def _complete(components: dict[str, Any], roots: list[Any]) -> None:
    """A reply has all its fields, whatever their defaults are: mark those of all types that replies are made of."""
    seen, text = set[str](), json.dumps(roots)
    while found := [name for name in components if name not in seen and f'"#/components/schemas/{name}"' in text]:
        seen.update(found)
        text += json.dumps([components[name] for name in found])
    for name in seen:
        if "properties" in components[name]:
            components[name]["required"] = list(components[name]["properties"])
            for field in components[name]["properties"].values():
                if isinstance(field, dict):
                    field.pop("default", None)


def _operation(route: ListedRoute, operation: Operation, known: Mapping[str, Any]) -> dict[str, Any]:
    def content(kind: Any, media: Sequence[str]) -> dict[str, Any]:
        return {"content": {each: {"schema": known[repr(kind)]} for each in media}}

    made: dict[str, Any] = {
        "operationId": "-".join([route.method.lower(), *route.path.removeprefix("/v1").strip("/").split("/")]).rstrip(
            "-"
        ),
        "summary": route.what,
        "description": _ACCESS[route.access],
    }
    parameters = [("query", operation.query), ("header", operation.head)]
    if any(named for _where, named in parameters):
        made["parameters"] = [
            {"name": name, "in": where, "description": what, "schema": {"type": "string"}}
            for where, named in parameters
            for name, what in named.items()
        ]
    if operation.body is not None:
        made["requestBody"] = {"required": True, **content(operation.body, operation.media)}
    done = (
        {"description": "done"}
        if operation.reply is None
        else {"description": "done", **content(operation.reply, operation.media)}
    )
    if operation.reply is CniResult:
        done = {"description": "done; only an ADD is answered with something", **content(CniResult, [JSON])}
    made["responses"] = {"204" if operation.reply is None else "200": done}
    for status, (what, kind) in operation.failures.items():
        made["responses"][str(status)] = {"description": what, **content(kind, [JSON])}
    made["responses"]["default"] = {"description": "refused", **content(Error, [JSON])}
    return made


def text() -> str:
    """The document as it is kept."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
