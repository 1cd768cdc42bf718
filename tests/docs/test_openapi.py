"""The OpenAPI document, against a running daemon: each of its routes is asked, and each reply is as it says."""

import base64
import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from tests.daemon_process import POOLS, Daemon, network
from tests.docs import openapi

DOCUMENT = json.loads(openapi.PAGE.read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]
RANGES = {
    "cniVersion": "1.1.0",
    "name": "lan",
    "type": "bridge",
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
}
WANTED = b'{"type": "vxlanTunnelAddress"}'
IMPORT = b'{"networks": [{"name": "old", "held": [{"address": "10.8.0.2", "container": "c1", "interface": "eth0"}]}]}'
READ = msgspec.msgpack.encode({"keys": [], "window": {"start": "/calico/", "end": "/calico0", "limit": 5}})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on the embedded store, with a pod of both IP versions, one of a range, and a refused request behind it."""
    with Daemon(tmp_path_factory.mktemp("daemon"), "node-a", "--store", "embedded", *POOLS) as running:
        running.add("web", network(assign_ipv6="true"))
        running.add("printer", RANGES, name="host-local")
        assert running.plugin("ADD", "lost", network(ipv4_pools=["no-such-pool"])).code != 0
        yield running


def strict(schema: Any) -> Any:
    """The schema without room for what it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {key: strict(value) for key, value in schema.items()}


def check(operation: str, status: int, value: object) -> None:
    """A reply is what the document says, with no field that it does not know."""
    method, _, path = operation.partition(" ")
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    response = responses.get(str(status)) or responses["default"]
    if value is None:
        assert "content" not in response or operation == "POST /v1/cni", "nothing, where something is promised"
        return
    content = next(iter(response["content"].values()))  # the schema is the same for all media types
    schema = {**strict(content["schema"]), "components": {"schemas": strict(SCHEMAS)}}
    validator()(schema).validate(value)


def validator() -> Any:
    """The validator of JSON Schema 2020-12: imported with all its formats, which takes seconds, where it is needed."""
    return import_module("jsonschema").Draft202012Validator


def ask(daemon: Daemon, operation: str, query: str = "", body: bytes = b"", **head: str) -> tuple[int, Any]:
    """A reply's status and value; what is binary in MessagePack as the base64 that JSON has."""
    method, _, path = operation.partition(" ")
    headers = {name.replace("_", "-"): value for name, value in head.items()}
    status, answer = daemon.request(method, path + query, body, headers)
    if not answer:
        return status, None
    if path == "/metrics" and status == 200:
        return status, answer.decode()
    if path.startswith("/v1/store/") and status == 200:
        return status, texts(msgspec.msgpack.decode(answer))
    return status, json.loads(answer)


def texts(value: object) -> object:
    """A value with bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: texts(each) for key, each in value.items()}
    return [texts(each) for each in value] if isinstance(value, list) else value


CNI = {"Cni_Containerid": "api", "Cni_Netns": "/n", "Cni_Ifname": "eth0", "Cni_Path": "/opt/cni/bin"}
CALLS: dict[str, list[tuple[str, bytes, dict[str, str]]]] = {
    "POST /v1/cni": [
        ("", json.dumps(network(version)).encode(), {"Cni_Command": verb, **CNI})
        for version in ("0.2.0", "0.4.0", "1.0.0", "1.1.0")
        for verb in ("ADD", "CHECK", "DEL", "STATUS", "NONE")
    ],
    "GET /v1/explain": [
        *[(f"?pod=default/pod-{name}", b"", {}) for name in ("web", "unknown")],
        (f"?pod=default/web&config={quote(json.dumps(network(ipv4_pools=['no-such-pool'])))}", b"", {}),
        *[(f"?address={address}", b"", {}) for address in ("192.168.123.64", "192.168.0.1", "8.8.8.8", "fd00:10:244::1", "10.9.0.2")],
        ("?node", b"", {}),
        ("", b"", {}),
    ],
    "GET /v1/events": [("", b"", {}), ("?after=0&wait=1", b"", {}), ("?after=x", b"", {})],
    "POST /v1/tunnel-addresses": [("", WANTED, {}), ("", b"{}", {})],
    "DELETE /v1/tunnel-addresses": [("", WANTED, {}), ("", b"{}", {})],
    "POST /v1/import/host-local": [("", IMPORT, {}), ("", b"{}", {})],
    "POST /v1/store/read": [("", READ, {}), ("", b"", {})],
    "POST /v1/store/commit": [
        ("", msgspec.msgpack.encode({"alternatives": [[{"key": "/calico/x", "value": b"{}", "expected": number}]]}), {})
        for number in (0, 7)
    ]
    + [("", b"", {})],
}  # fmt: skip
"""What each operation is asked with, well and badly; nothing, where it takes nothing."""


def test_the_document_is_up_to_date() -> None:
    """``make pages`` writes it."""
    assert openapi.PAGE.read_text() == openapi.text(), "it is out of date: run `make pages`"


def test_the_document_is_well_formed() -> None:
    """It is of OpenAPI 3.1, each schema is one of JSON Schema, and what a reference names is there."""
    assert DOCUMENT["openapi"] == "3.1.0"
    assert json.dumps(DOCUMENT).count('"$ref"') > 50
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for schema in SCHEMAS.values():
        validator().check_schema(schema)
    for reference in set(msgspec.json.decode(msgspec.json.encode(list(references(DOCUMENT))), type=list[str])):
        assert reference.removeprefix("#/components/schemas/") in SCHEMAS, reference


def references(value: object) -> Iterator[str]:
    """All that the document refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


@pytest.mark.real
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_route_answers_as_the_document_says(daemon: Daemon, operation: str) -> None:
    """Success and refusal, with every field that the document has and no other."""
    seen = set()
    for query, body, head in CALLS.get(operation, [("", b"", {})]):
        status, value = ask(daemon, operation, query, body, **head)
        check(operation, status, value)
        seen.add(status < 300)
    assert True in seen
    assert (False in seen) == (operation in CALLS)
    if operation == "POST /v1/drain":
        ask(daemon, "POST /v1/undrain")


@pytest.mark.real
def test_a_daemon_that_is_not_ready_says_so_as_the_document_says(daemon: Daemon) -> None:
    """A drain makes it so."""
    ask(daemon, "POST /v1/drain")
    status, value = ask(daemon, "GET /readyz")
    assert status == 503
    check("GET /readyz", status, value)
    ask(daemon, "POST /v1/undrain")


@pytest.mark.real
def test_the_document_has_every_route_of_the_daemon(daemon: Daemon) -> None:
    """With what each is for and who may call it; and no other."""
    status, listed = ask(daemon, "GET /")
    assert status == 200
    operations = [f"{route['method']} {route['path']}" for route in listed]
    assert sorted(["GET /", *operations]) == sorted(OPERATIONS)
    for route in listed:
        operation = DOCUMENT["paths"][route["path"]][route["method"].lower()]
        assert operation["summary"] == route["what"]
        assert operation["description"].startswith(
            {"admin": "Only root", "read": "Root, ", "anyone": "Everybody"}[route["access"]]
        )


@pytest.mark.real
def test_what_is_not_in_the_document_is_refused(daemon: Daemon) -> None:
    """Another path with 404, another method of a path with 405, both with an error object."""
    status, value = ask(daemon, "GET /v1/nothing")
    assert status == 404
    validator()({**strict(SCHEMAS["Error"])}).validate(value)
    for path, methods in DOCUMENT["paths"].items():
        for method in {"get", "put", "post", "delete"} - methods.keys():
            status, value = ask(daemon, f"{method.upper()} {path}")
            assert status == 405, (method, path)
            validator()(strict(SCHEMAS["Error"])).validate(value)


def test_a_reply_with_another_field_would_be_noticed() -> None:
    """The comparison bites: a field too many, one too few, one of another type."""
    good = {"healthy": True}
    check("GET /healthz", 200, good)
    for bad in ({**good, "more": 1}, {}, {"healthy": "yes"}):
        with pytest.raises(Exception, match=r"healthy|more"):
            check("GET /healthz", 200, bad)
