"""etcd's request messages, each by a function that names the fields in use.

They load the stubs' package, so they are called once a link exists; ``prefix_end`` is pure.
"""

from typing import Any

from ipamd.store.etcd.rpc import Request, load


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that begin with ``prefix``; a zero byte, etcd's "to the end", if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"


def get(key: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0, keys_only: bool = False) -> Request:
    """A RangeRequest: ``key`` alone, or the keys below ``end``; limit 0: all; revision 0: the current one."""
    pb = load()
    return Request(
        pb.RangeRequest(key=key, range_end=end, limit=limit, revision=revision, keys_only=keys_only),
    )


class Txn:
    """A TxnRequest, filled in place: to make its parts first and copy them into it takes four times as long.

    Without comparisons the operations of success are what happens.
    """

    def __init__(self, message: Any = None) -> None:
        self._message = load().TxnRequest() if message is None else message
        self._compare, self._success = self._message.compare, self._message.success
        self._failure = self._message.failure
        self._target = load().Compare.MOD  # the result to compare for is EQUAL, the first of them

    @property
    def request(self) -> Request:
        """The message."""
        return Request(self._message)

    def expect(self, key: bytes, revision: int) -> None:
        """Compare: the key's last change was at ``revision``; 0: it does not exist."""
        comparison = self._compare.add()
        comparison.key, comparison.target, comparison.mod_revision = key, self._target, revision

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """On success put a record, bound to a lease (0: none)."""
        put = self._success.add().request_put
        put.key, put.value = key, value
        if lease:
            put.lease = lease

    def delete(self, key: bytes) -> None:
        """On success delete a record."""
        self._success.add().request_delete_range.key = key

    def get(self, request: Request) -> None:
        """On success read a range."""
        self._success.add().request_range.CopyFrom(request)

    def get_instead(self, request: Request) -> None:
        """On failure read a range."""
        self._failure.add().request_range.CopyFrom(request)

    def get_key_instead(self, key: bytes) -> None:
        """On failure read a key."""
        self._failure.add().request_range.key = key

    def instead(self) -> "Txn":
        """On failure try another transaction (etcd 3.3 and later)."""
        return Txn(self._failure.add().request_txn)


def watch_create(key: bytes, end: bytes, start_revision: int) -> Request:
    """Ask the stream for changes from ``start_revision`` on, and for word of its progress when idle."""
    pb = load()
    create = pb.WatchCreateRequest(key=key, range_end=end, start_revision=start_revision, progress_notify=True)
    return Request(pb.WatchRequest(create_request=create))


def watch_cancel(watch_id: int) -> Request:
    """Tell the stream that a watch is no longer wanted."""
    pb = load()
    return Request(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))


def grant(seconds: int) -> Request:
    """Ask for a lease."""
    return Request(load().LeaseGrantRequest(TTL=seconds))


def renew(lease: int) -> Request:
    """Ask for a lease's time to begin anew."""
    return Request(load().LeaseKeepAliveRequest(ID=lease))


def revoke(lease: int) -> Request:
    """End a lease."""
    return Request(load().LeaseRevokeRequest(ID=lease))


def authenticate(name: str, password: str) -> Request:
    """Ask for a token."""
    return Request(load().AuthenticateRequest(name=name, password=password))


def status() -> Request:
    """Ask a member how it is."""
    return Request(load().StatusRequest())
