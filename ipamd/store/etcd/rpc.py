"""etcd's messages and stubs, from the ``etcd3`` package: the one place where untyped generated code is touched.

``etcd3`` 0.12 was generated for protobuf 3; its ``*_pb2`` modules build their descriptors by hand, which protobuf 4
and later refuse ("Descriptors cannot be created directly"). Each of them also holds its file descriptor in
serialised form. ``load`` reads that out of the source text, without running it, feeds it to the protobuf that is
installed (the C implementation), and registers the resulting modules under the names that ``etcd3.etcdrpc`` then
imports. The descriptors go into a pool of their own, since names as common as ``rpc.proto`` in the default pool
could collide with another library's.

Messages are handed out as opaque ``Request`` values and as Protocols that name the fields in use. Nothing here is
imported from grpc or protobuf before ``load`` runs.
"""

import ast
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NewType, Protocol, TypeVar

if TYPE_CHECKING:
    import grpc

Request = NewType("Request", object)
"""A request message, or a part of one."""
Metadata = Sequence[tuple[str, str]]
Reply_co = TypeVar("Reply_co", covariant=True)

LONGEST_SLEEP = 5.0
"""How long (s) a thread that gRPC blocks sleeps before it looks by itself; what it waits for wakes it at once."""

_FILES = ("kv", "auth", "rpc")  # in order of dependency
_MARK = "serialized_pb=_b("
_lock = threading.Lock()
_loaded: list[ModuleType] = []


class Header(Protocol):
    """Of every reply. A cluster that is restored from a backup has another id."""

    cluster_id: int
    revision: int


class KeyValue(Protocol):
    """A record."""

    key: bytes
    value: bytes
    mod_revision: int


class RangeReply(Protocol):
    """The records of a range, in key order; ``more``: the limit cut it."""

    header: Header
    kvs: Sequence[KeyValue]
    more: bool


class OpReply(Protocol):
    """The reply to one operation of a transaction."""

    response_range: RangeReply

    @property
    def response_txn(self) -> "TxnReply":
        """Of a nested transaction."""


class TxnReply(Protocol):
    """Which branch was taken, and the replies to its operations."""

    header: Header
    succeeded: bool
    responses: Sequence[OpReply]


class LeaseReply(Protocol):
    """A lease as granted or renewed: ``TTL`` in seconds, 0 if there is no such lease."""

    header: Header
    ID: int
    TTL: int


class RevokeReply(Protocol):
    """The lease is gone."""

    header: Header


class WatchEvent(Protocol):
    """``type`` 0: put, 1: delete."""

    type: int
    kv: KeyValue


class WatchReply(Protocol):
    """A message of the watch stream."""

    header: Header
    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    events: Sequence[WatchEvent]


class AuthReply(Protocol):
    """The token to send with later calls."""

    token: str


class Status(Protocol):
    """A ``grpc.StatusCode``, by name so that naming one does not import grpc."""

    name: str


class Call(Protocol[Reply_co]):
    """A unary call under way."""

    def add_done_callback(self, fn: Callable[[object], None]) -> None:
        """Call ``fn`` from gRPC's thread (or at once) when the call is over."""

    def cancel(self) -> object:
        """Give up; harmless if it is over."""

    def result(self) -> Reply_co:
        """The reply of a successful call that is over."""

    def code(self) -> Status:
        """How a call that is over ended."""

    def details(self) -> str | None:
        """The same in words."""


class Method(Protocol[Reply_co]):
    """A unary method of a stub."""

    def future(self, request: Request, *, timeout: float, metadata: Metadata) -> Call[Reply_co]:
        """Start a call; ``timeout`` in seconds."""


class StreamCall(Protocol):
    """The watch stream under way; iterating it blocks and raises ``grpc.RpcError`` at its end."""

    def __iter__(self) -> Iterator[WatchReply]: ...

    def cancel(self) -> object:
        """End it."""

    def code(self) -> Status:
        """How it ended; blocks until it did."""

    def details(self) -> str | None:
        """The same in words."""


class StreamMethod(Protocol):
    """The method that opens the watch stream."""

    def __call__(self, requests: Iterable[Request], *, metadata: Metadata) -> StreamCall:
        """Open it; ``requests`` is consumed by a thread of gRPC's."""


class Stubs:
    """The methods in use, on one channel."""

    def __init__(self, channel: "grpc.Channel") -> None:
        pb = load()
        kv = pb.KVStub(channel)
        self.range: Method[RangeReply] = kv.Range
        self.txn: Method[TxnReply] = kv.Txn
        lease = pb.LeaseStub(channel)
        self.grant: Method[LeaseReply] = lease.LeaseGrant
        self.revoke: Method[RevokeReply] = lease.LeaseRevoke
        # etcd's is a stream; with one message each way that is what a unary call looks like, and needs no thread.
        renew: Any = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        self.renew: Method[LeaseReply] = renew
        self.authenticate: Method[AuthReply] = pb.AuthStub(channel).Authenticate
        self.status: Method[object] = pb.MaintenanceStub(channel).Status
        self.watch: StreamMethod = pb.WatchStub(channel).Watch


def load() -> ModuleType:
    """The package ``etcd3.etcdrpc``, imported on whatever protobuf is installed; takes 0.2 s the first time."""
    with _lock:
        if not _loaded:
            if "etcd3.etcdrpc" not in sys.modules:
                _register_messages()
            _loaded.append(importlib.import_module("etcd3.etcdrpc"))
            _let_threads_sleep()
        return _loaded[0]


def _let_threads_sleep() -> None:
    """Have gRPC's blocking calls wait until there is something, and not look for it ten times a second.

    They do so for the handlers of signals, which wait for the main thread: ours blocks in none of them. An idle daemon
    would be woken fifteen times a second by the two threads of its watch, a good part of what it takes of a core.
    """
    with suppress(ImportError):  # gRPC's own affair; without it all works as well
        setattr(importlib.import_module("grpc._common"), "MAXIMUM_WAIT_TIMEOUT", LONGEST_SLEEP)  # noqa: B010 - a module


def _register_messages() -> None:
    from google.protobuf import descriptor_pool, message_factory

    spec = importlib.util.find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise ImportError("cannot import etcd3: it is not installed; install ipamd with its dependencies")
    folder = Path(spec.origin).parent / "etcdrpc"
    pool = descriptor_pool.DescriptorPool()
    for name in _FILES:
        pool.AddSerializedFile(_serialised(folder / f"{name}_pb2.py"))
    for name in _FILES:
        file = pool.FindFileByName(f"{name}.proto")
        module = ModuleType(f"etcd3.etcdrpc.{name}_pb2")
        for message, descriptor in file.message_types_by_name.items():
            setattr(module, message, message_factory.GetMessageClass(descriptor))
        sys.modules[module.__name__] = module


def _serialised(path: Path) -> bytes:
    """The file descriptor in the generated module's text: one line ``serialized_pb=_b('...')``, as Latin-1."""
    line = next(line for line in path.read_text("utf-8").splitlines() if _MARK in line)
    literal = line[line.index(_MARK) + len(_MARK) : line.rindex(")")]
    return str(ast.literal_eval(literal)).encode("latin-1")
