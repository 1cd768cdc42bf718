"""One RPC awaited from Trio, and etcd's refusals in words.

gRPC completes a call in a thread of its own, which wakes the waiting task through the loop's token: no worker thread
waits, and cancelling the task cancels the call.
"""

from typing import TypeVar

import trio

from ipamd.store.base import StoreRefusedError, StoreUnavailableError
from ipamd.store.etcd import rpc

T = TypeVar("T")

UNAVAILABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "INTERNAL", "UNKNOWN"})
_NO_SPACE = "database space exceeded"
_STALE_TOKEN = ("invalid auth token", "auth store is old", "user name is empty")
_ADVICE = (
    (_NO_SPACE, "compact and defragment etcd or raise its quota, then disarm the alarm"),
    ("permission denied", "grant the etcd user read and write access to the keys in question"),
    ("invalid user ID or password", "check username and password_file"),
    ("invalid auth token", "check username and password_file"),
    ("user name is empty", "etcd has authentication enabled: configure username and password_file"),
    ("too many operations", "send fewer changes at once or raise etcd's --max-txn-ops"),
    ("larger than max", "send fewer changes at once or raise etcd's --max-request-bytes"),
    ("too large", "send fewer changes at once or raise etcd's --max-request-bytes"),
)


class NoSpaceError(StoreRefusedError):
    """etcd's quota is used up: it takes no transaction, not even one that only reads."""


class RpcFailedError(Exception):
    """An RPC ended with something else than OK: the gRPC status by name, and its details."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details or code.lower().replace("_", " ")

    @property
    def unavailable(self) -> bool:
        """Whether etcd may be healthy and simply not reached; what it did is not known."""
        return self.code in UNAVAILABLE or "too many requests" in self.details

    @property
    def stale_token(self) -> bool:
        """Whether etcd did nothing because it does not know the token."""
        return self.code == "UNAUTHENTICATED" or any(text in self.details for text in _STALE_TOKEN)

    def in_words(self, verb: str, where: str) -> StoreRefusedError | StoreUnavailableError:
        """The store's error for it."""
        if self.unavailable:
            return StoreUnavailableError(f"cannot {verb} etcd at {where}: {self.details}")
        advice = next((advice for text, advice in _ADVICE if text in self.details), "see etcd's log")
        kind = NoSpaceError if _NO_SPACE in self.details else StoreRefusedError
        return kind(f"cannot {verb} etcd at {where}: {self.details}; {advice}")


async def invoke(method: rpc.Method[T], request: rpc.Request, *, seconds: float, metadata: rpc.Metadata = ()) -> T:
    """Make one RPC; a cancelled task cancels it. Raises RpcFailedError."""
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def over(_: object) -> None:
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:
            return  # nobody waits any more

    try:
        call = method.future(request, timeout=max(seconds, 0.001), metadata=metadata)
    except ValueError as error:  # the channel was closed meanwhile
        raise RpcFailedError("CANCELLED", str(error)) from None
    try:
        call.add_done_callback(over)
        await done.wait()
    finally:
        call.cancel()
    if call.code().name != "OK":
        raise RpcFailedError(call.code().name, call.details() or "")
    return call.result()
