"""One gRPC channel to one endpoint, and the TLS files that it was made from.

A channel never holds several endpoints: with ``ipv4:a:p,b:p`` gRPC checks every member's certificate against one
and the same name, and cannot take host names; ``session`` moves from endpoint to endpoint instead.

Order: ``TlsFiles.read`` gives the material, ``Link`` opens a channel with it, calls ``enter`` and ``leave`` the
link, ``retire`` ends its streams at once and closes it when the last call has left.
"""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from ipamd.store.base import StoreRefusedError
from ipamd.store.etcd.rpc import Stubs
from ipamd.store.etcd.settings import Endpoint, EtcdSettings


class Material(Struct, frozen=True):
    """The contents of the TLS files; None where none is configured."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


class TlsFiles:
    """The configured TLS files: reads them, and says whether they changed since."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._paths = (settings.ca_file, settings.cert_file, settings.key_file)
        self._seen = self._signature()

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Inode, size and time of each file: also a replaced symbolic link (a mounted Secret) changes it."""
        return tuple(_stamp(path) for path in self._paths)

    def changed(self) -> bool:
        """Whether a file was replaced or rewritten since the last ``read``; a missing file is not a change yet."""
        if not any(self._paths):
            return False
        now = self._signature()
        return now != self._seen and all(stamp or not path for stamp, path in zip(now, self._paths, strict=True))

    def read(self) -> Material:
        """The files' contents. Raises StoreRefusedError if one cannot be read."""
        self._seen = self._signature()
        ca, cert, key = (_content(path) for path in self._paths)
        return Material(ca, cert, key)


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreRefusedError(f"cannot read {path}: {error.strerror}; give the path of a readable PEM file") from None


class Link:
    """A channel in use: counts what is under way on it, so that it can be replaced without breaking calls."""

    def __init__(self, settings: EtcdSettings, endpoint: Endpoint, material: Material) -> None:
        import grpc

        options = channel_options(settings)
        if endpoint.secure:
            credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
            self._channel = grpc.secure_channel(endpoint.target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(endpoint.target, options)
        self.endpoint = endpoint
        self.stubs = Stubs(self._channel)
        self._calls = 0
        self._streams: set[Callable[[], object]] = set()
        self._retired = False

    def enter(self) -> None:
        """A call begins."""
        self._calls += 1

    def leave(self) -> None:
        """A call is over."""
        self._calls -= 1
        if self._retired and not self._calls:
            self._channel.close()

    def open_stream(self, end: Callable[[], object]) -> None:
        """A stream began; ``end`` is called when the link retires."""
        self._streams.add(end)

    def close_stream(self, end: Callable[[], object]) -> None:
        """A stream is over."""
        self._streams.discard(end)

    def retire(self) -> None:
        """No new call comes: end the streams (they resume elsewhere), let the calls under way finish, then close."""
        self._retired = True
        for end in tuple(self._streams):
            end()
        if not self._calls:
            self._channel.close()

    def close(self) -> None:
        """End everything now."""
        self._retired = True
        self._channel.close()


def channel_options(settings: EtcdSettings) -> list[tuple[str, int]]:
    """What differs from gRPC's defaults, each with its reason."""
    return [
        # gRPC's own: up to 120 s between attempts; etcd that is back would go unnoticed.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Despite its name the time that one attempt, with its TLS handshake, may take at least.
        ("grpc.min_reconnect_backoff_ms", 1000),
        # A member that hangs, or a network that drops, answers no probe. Only while calls or streams are open:
        # etcd ends connections that are probed without.
        ("grpc.keepalive_time_ms", round(settings.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout * 1000)),
        # gRPC waits for the answer to a probe for as long as for any HTTP/2 ping, a minute unless it is told; measured
        # with 1.85, the keepalive's own timeout alone does not end the connection to a stopped process.
        ("grpc.http2.ping_timeout_ms", round(settings.keepalive_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        # A watch that catches up gets up to 1,000 revisions in one message, far above gRPC's 4 MiB.
        ("grpc.max_receive_message_length", -1),
        # A new link means new connections; the global pool would hand out the broken ones again.
        ("grpc.use_local_subchannel_pool", 1),
        # etcd is reached directly, whatever http_proxy says to the node's other programs.
        ("grpc.enable_http_proxy", 0),
    ]
