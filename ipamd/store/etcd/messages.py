"""etcd's request messages, each by a function that names the fields in use.

They load the stubs' package, so they are called once a link exists; ``prefix_end`` is pure.
"""

from collections.abc import Sequence

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


def get_op(request: Request) -> Request:
    """A range as part of a transaction."""
    return Request(load().RequestOp(request_range=request))


def put_op(key: bytes, value: bytes, lease: int = 0) -> Request:
    """A put as part of a transaction, bound to a lease (0: none)."""
    pb = load()
    return Request(pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease)))


def delete_op(key: bytes) -> Request:
    """A delete as part of a transaction."""
    pb = load()
    return Request(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key)))


def txn_op(request: Request) -> Request:
    """A transaction as part of another (etcd 3.3 and later)."""
    return Request(load().RequestOp(request_txn=request))


def unchanged(key: bytes, revision: int) -> Request:
    """The comparison "the key's last change was at ``revision``"; 0: it does not exist."""
    pb = load()
    return Request(
        pb.Compare(key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision),
    )


def txn(compare: Sequence[Request] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()) -> Request:
    """A TxnRequest; without comparisons ``success`` is what happens."""
    return Request(load().TxnRequest(compare=compare, success=success, failure=failure))


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
