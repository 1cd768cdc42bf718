"""A small Kubernetes API server of the tests' own: get, list and watch of pods, namespaces and nodes, and its moods.

It keeps every change with its revision, serves watches from there with chunked JSON lines and bookmarks, forgets
changes (410 Gone), and on demand answers errors, hangs, or drops its connections. ``serve`` speaks HTTP/1.1 on any
Trio stream: in memory for tests under a virtual clock, TCP for a real daemon (``ApiServerThread``).
"""

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import trio

Json = dict[str, Any]


def pod(
    name: str,
    uid: str,
    annotations: Mapping[str, str] | None = None,
    *,
    namespace: str = "default",
    node: str = "node-a",
) -> Json:
    """A pod, with more in it than anybody here reads."""
    metadata = {"name": name, "namespace": namespace, "uid": uid, "labels": {"app": name}}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {**metadata, **({"annotations": dict(annotations)} if annotations is not None else {})},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "pause"}]},
        "status": {"phase": "Pending"},
    }


def namespace(name: str, annotations: Mapping[str, str] | None = None, **labels: str) -> Json:
    """A namespace."""
    metadata = {"name": name, "uid": f"uid-of-{name}", "labels": {"kubernetes.io/metadata.name": name, **labels}}
    return {"kind": "Namespace", "apiVersion": "v1", "metadata": {**metadata, "annotations": dict(annotations or {})}}


def node(name: str, *cidrs: str) -> Json:
    """A node with its pod CIDRs."""
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "uid": f"uid-of-{name}"},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
    }


class Call(NamedTuple):
    """A request that arrived: its path, its query, and its bearer token."""

    path: str
    query: dict[str, str]
    token: str

    @property
    def kind(self) -> str:
        """``list pods``, ``watch pods``, ``get pods``, and so on for namespaces and nodes."""
        verb, plural, _key = _resource(self)
        return f"{verb} {plural}"


class Fault(NamedTuple):
    """What the next calls of a kind are answered with."""

    status: int
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class _Change(NamedTuple):
    revision: int
    plural: str
    type: str
    object: Json


def _resource(call: Call) -> tuple[str, str, tuple[str, str]]:
    """Verb, plural, and (namespace, name) of the object that a path names; namespaces and nodes have no namespace."""
    parts = [unquote(part) for part in call.path.removeprefix("/api/v1/").split("/")]
    if len(parts) == 4 and parts[0] == "namespaces" and parts[2] == "pods":
        return "get", "pods", (parts[1], parts[3])
    if len(parts) == 2 and parts[0] in ("namespaces", "nodes"):
        return "get", parts[0], ("", parts[1])
    assert len(parts) == 1, f"a path that nothing here should ask for: {call.path}"
    return "watch" if call.query.get("watch") == "true" else "list", parts[0], ("", "")


class ApiServer:
    """The cluster's state, and how the server behaves. All methods must be called in the server's own thread."""

    def __init__(self, *objects: Json, token: str = "") -> None:
        self.token = token
        """What a client must show; "" for anything."""
        self.calls: list[Call] = []
        self.faults: dict[str, list[Fault]] = {}
        """Answers to the next calls of a kind (``Call.kind``), before any right ones."""
        self.always: dict[str, Fault] = {}
        """The answer to all calls of a kind."""
        self.hanging = False
        """Whether calls are taken and not answered."""
        self.mute = False
        """Whether watches get no bookmarks by themselves; else each does after a minute of silence."""
        self.watches = 0
        """How many watches are open."""
        self._revision = 100
        self._compacted = 100
        self._objects: dict[str, dict[tuple[str, str], Json]] = {"pods": {}, "namespaces": {}, "nodes": {}}
        self._changes: list[_Change] = []
        self._bell = trio.Event()
        self._injected: list[tuple[str, Json]] = []
        self._connections: set[trio.CancelScope] = set()
        for each in objects:
            self.put(each)

    # --- the cluster ------------------------------------------------------------------------------------------

    def put(self, each: Json) -> None:
        """Make or change an object."""
        plural, key = each["kind"].lower() + "s", _key(each)
        self._change("MODIFIED" if key in self._objects[plural] else "ADDED", plural, each)
        self._objects[plural][key] = each

    def delete(self, plural: str, name: str, of: str = "") -> None:
        """Delete an object."""
        self._change("DELETED", plural, self._objects[plural].pop((of, name)))

    def _change(self, kind: str, plural: str, each: Json) -> None:
        self._revision += 1
        each["metadata"]["resourceVersion"] = str(self._revision)
        self._changes.append(_Change(self._revision, plural, kind, json.loads(json.dumps(each))))
        self._ring()

    # --- moods ------------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Forget all changes so far: who resumes a watch from before gets 410."""
        self._compacted = self._revision
        self._changes.clear()

    def bookmark(self) -> None:
        """Send every watch a bookmark of now."""
        for plural in ("pods", "namespaces"):
            self._inject(plural, self._bookmark(plural))

    def _bookmark(self, plural: str) -> Json:
        kind = {"pods": "Pod", "namespaces": "Namespace"}[plural]
        metadata = {"resourceVersion": str(self._revision), "creationTimestamp": None}
        return {"type": "BOOKMARK", "object": {"kind": kind, "metadata": metadata}}

    def pass_by(self) -> None:
        """Something happens in the cluster that concerns nobody here."""
        self._revision += 1

    def fail_watches(self, plural: str, code: int, message: str = "") -> None:
        """Send an ERROR event and end the watches of a kind."""
        status = {"kind": "Status", "status": "Failure", "code": code, "message": message}
        self._inject(plural, {"type": "ERROR", "object": status})

    def say(self, plural: str, event: Json) -> None:
        """Send the watches of a kind what no server would."""
        self._inject(plural, event)

    def drop(self) -> None:
        """Cut all connections."""
        for connection in self._connections:
            connection.cancel()

    def _inject(self, plural: str, event: Json) -> None:
        self._injected.append((plural, event))
        self._ring()

    def _ring(self) -> None:
        self._bell.set()
        self._bell = trio.Event()

    def count(self, kind: str) -> int:
        """How many calls of a kind there were."""
        return sum(call.kind == kind for call in self.calls)

    # --- HTTP -------------------------------------------------------------------------------------------------

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection."""
        try:
            with trio.CancelScope() as scope:
                self._connections.add(scope)
                async with stream:
                    buffer = b""
                    while True:
                        while b"\r\n\r\n" not in buffer:
                            data = await stream.receive_some(65536)
                            if not data:
                                return
                            buffer += data
                        head, _, buffer = buffer.partition(b"\r\n\r\n")
                        await self._answer(stream, _call(head.decode()))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away
        finally:
            self._connections.discard(scope)

    async def _answer(self, stream: trio.abc.Stream, call: Call) -> None:
        self.calls.append(call)
        if self.hanging:
            await trio.sleep_forever()
        kind = call.kind
        waiting = self.faults.get(kind)
        fault = waiting.pop(0) if waiting else self.always.get(kind)
        if fault is None and self.token and call.token != self.token:
            fault = Fault(401, "Unauthorized")
        if fault is not None:
            await _send(stream, fault.status, _status(fault.status, fault.message), fault.headers)
            return
        verb, plural, key = _resource(call)
        if verb == "get":
            await self._get(stream, plural, key)
        elif verb == "list":
            await self._list(stream, plural, call.query)
        else:
            await self._watch(stream, plural, call.query)

    async def _get(self, stream: trio.abc.Stream, plural: str, key: tuple[str, str]) -> None:
        found = self._objects[plural].get(key)
        if found is None:
            await _send(stream, 404, _status(404, f'{plural} "{key[1]}" not found'))
        else:
            await _send(stream, 200, found)

    async def _list(self, stream: trio.abc.Stream, plural: str, query: Mapping[str, str]) -> None:
        assert query["resourceVersion"] == "0", "of etcd, every node's start would read every pod"
        items = [each for each in self._objects[plural].values() if _selected(each, query)]
        listing = {
            "kind": "List",
            "metadata": {"resourceVersion": str(self._revision)},
            "items": items or None,  # as Go does
        }
        await _send(stream, 200, listing)

    async def _watch(self, stream: trio.abc.Stream, plural: str, query: Mapping[str, str]) -> None:
        assert query["allowWatchBookmarks"] == "true"
        assert 0 < int(query["timeoutSeconds"]) < 3600
        seen, told = int(query["resourceVersion"]), len(self._injected)
        if seen < self._compacted:
            await _send(stream, 410, _status(410, f"too old resource version: {seen} ({self._compacted})"))
            return
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.watches += 1
        try:
            with trio.move_on_after(int(query["timeoutSeconds"])):
                while True:
                    bell = self._bell
                    changes, seen = [c for c in self._changes if c.revision > seen], self._revision
                    for change in changes:
                        if change.plural == plural and _selected(change.object, query):
                            await _send_line(stream, {"type": change.type, "object": change.object})
                    injected, told = self._injected[told:], len(self._injected)
                    for of, event in injected:
                        if of == plural:
                            await _send_line(stream, event)
                            if event.get("type") == "ERROR":
                                await stream.send_all(b"0\r\n\r\n")
                                return
                    with trio.move_on_after(inf if self.mute else 60):
                        await bell.wait()
                        continue
                    await _send_line(stream, self._bookmark(plural))
            await stream.send_all(b"0\r\n\r\n")
        finally:
            self.watches -= 1


def _key(each: Json) -> tuple[str, str]:
    return each["metadata"].get("namespace", ""), each["metadata"]["name"]


def _selected(each: Json, query: Mapping[str, str]) -> bool:
    selector = query.get("fieldSelector", "")
    if not selector:
        return True
    field, _, value = selector.partition("=")
    assert field == "spec.nodeName"
    return bool(each["spec"]["nodeName"] == value)


def _call(head: str) -> Call:
    request, *lines = head.split("\r\n")
    method, target, _version = request.split(" ")
    assert method == "GET", "nothing here may write"
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    url = urlsplit(target)
    token = headers.get("authorization", "").removeprefix("Bearer ")
    return Call(url.path, dict(parse_qsl(url.query, keep_blank_values=True)), token)


def _status(code: int, message: str) -> Json:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}


async def _send(stream: trio.abc.Stream, status: int, body: Json, headers: tuple[tuple[str, str], ...] = ()) -> None:
    data = json.dumps(body, ensure_ascii=False).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode() + data)


async def _send_line(stream: trio.abc.Stream, event: Json) -> None:
    """One event, cut in two chunks, as a network cuts them."""
    line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
    for part in (line[:20], line[20:]):
        await stream.send_all(b"%x\r\n%s\r\n" % (len(part), part))


_Result = TypeVar("_Result")


class ApiServerThread:
    """An ApiServer on a TCP port of 127.0.0.1, with TLS if a context is given, for daemons in other processes."""

    def __init__(self, server: Callable[[], ApiServer], tls: ssl.SSLContext | None = None) -> None:
        self._make, self._tls = server, tls
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._listening: trio.CancelScope | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def do(self, action: Callable[[ApiServer], _Result]) -> _Result:
        """Run ``action`` in the server's thread."""
        return trio.from_thread.run_sync(action, self.server, trio_token=self._token)

    def stop(self) -> None:
        """Stop listening, and cut all connections: the server is away."""
        self.do(self._stop)

    def start(self) -> None:
        """Listen again, on the same port."""
        trio.from_thread.run(self._listen, trio_token=self._token)

    def _stop(self, server: ApiServer) -> None:
        assert self._listening is not None
        self._listening.cancel()
        server.drop()

    async def _listen(self) -> None:
        self._port = await self._nursery.start(self._serve)

    async def _serve(self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        async with listener:
            with trio.CancelScope() as self._listening:
                task_status.started(listener.socket.getsockname()[1])
                while True:
                    self._nursery.start_soon(self._connection, await listener.accept())

    async def _connection(self, stream: trio.abc.Stream) -> None:
        if self._tls is not None:
            stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        await self.server.serve(stream)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.server = self._make()
        async with trio.open_nursery() as self._nursery:
            await self._listen()
            self._started.set()
            await trio.sleep_forever()

    @contextmanager
    def running(self) -> Iterator["ApiServerThread"]:
        """Serve until the end of the block."""
        self._thread.start()
        assert self._started.wait(10), "the API server does not start"
        try:
            yield self
        finally:
            trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
            self._thread.join(10)
