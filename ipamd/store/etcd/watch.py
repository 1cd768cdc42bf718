"""One gRPC stream for all keys and prefixes of a watch, kept up for as long as the watch lives.

``EtcdWatch`` belongs to the Trio thread: it knows which names are watched and from which revision each is to go on,
creates them all anew on each new stream, and queues events for the iterator. ``_Stream`` belongs to one attempt: a
worker thread blocks in gRPC's iterator and posts each message to the loop; a semaphore holds it back while the
iterator has not taken earlier ones, and gRPC's flow control holds etcd back in turn.

Events of one name come in order and exactly once, over all streams. etcd keeps no order between watches of one
stream, so between names the order holds within a batch. Names that overlap (a prefix and a key below it) report a
change once each.

Idle watches go forward with etcd's periodic progress notes (every 10 minutes by default), which etcd sends in step
with the events. Notes on demand are not used: etcd before 3.5.8 sends them ahead of events that they should follow,
and a watch resumed from such a note loses these.
"""

import queue
import threading
from collections import deque
from collections.abc import Sequence

import trio

from ipamd.store.base import CompactedError, Event, StoreRefusedError, StoreUnavailableError
from ipamd.store.etcd import messages, rpc
from ipamd.store.etcd.call import RpcFailedError
from ipamd.store.etcd.channel import Link
from ipamd.store.etcd.session import Session

FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 1.0
BACKLOG = 64
"""Messages that the worker thread may be ahead of the iterator."""
_DELETE = 1


class _Name:
    """A watched key or prefix: where it goes on, and its id on the current stream."""

    def __init__(self, name: str, revision: int, *, prefix: bool) -> None:
        self.name = name
        self.key = name.encode()
        self.end = messages.prefix_end(self.key) if prefix else b""
        self.next = revision + 1
        self.id: int | None = None
        self.removed = False
        self.refused = 0


class _Stream:
    """One attempt: the gRPC call, the requests it sends, the thread that reads it."""

    def __init__(self, link: Link, metadata: rpc.Metadata) -> None:
        self._link = link
        self._requests: queue.SimpleQueue[rpc.Request | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(BACKLOG)
        self.ended = False
        self.heard = False
        self.names: dict[int, _Name] = {}
        self.pending: deque[_Name] = deque()
        """Names asked for; etcd answers in the order asked."""
        self._call = link.stubs.watch(iter(self._requests.get, None), metadata=metadata)
        link.open_stream(self.end)

    def create(self, name: _Name) -> None:
        """Ask for a name's changes."""
        self.pending.append(name)
        self._requests.put(messages.watch_create(name.key, name.end, name.next))

    def cancel(self, watch_id: int) -> None:
        """Ask for no more of them."""
        self._requests.put(messages.watch_cancel(watch_id))

    def took(self) -> None:
        """A posted message was dealt with."""
        self._room.release()

    def read(self, watch: "EtcdWatch", token: trio.lowlevel.TrioToken) -> RpcFailedError:
        """Post the messages until the stream ends; returns why it did. Runs in a worker thread."""
        import grpc

        try:
            for reply in self._call:
                self._room.acquire()
                if self.ended:
                    break
                token.run_sync_soon(watch.received, self, reply)
        except grpc.RpcError:
            return RpcFailedError(self._call.code().name, self._call.details() or "")
        except trio.RunFinishedError:
            self.end()
        return RpcFailedError("UNAVAILABLE", "the watch stream ended")

    def end(self) -> None:
        """Stop both threads; harmless when done."""
        self.ended = True
        self._link.close_stream(self.end)
        self._call.cancel()
        self._requests.put(None)
        self._room.release()


class EtcdWatch:
    """The watch as the store protocol describes it. ``run`` must be running for it to move."""

    def __init__(self, session: Session, calls: dict[str, int]) -> None:
        self._session = session
        self._cluster = session.cluster
        self._calls = calls
        self._names: dict[str, _Name] = {}
        self._wanted = trio.Event()
        self._stream: _Stream | None = None
        self._inbox: deque[tuple[_Stream, Sequence[Event]]] = deque()
        self._failure: CompactedError | StoreRefusedError | None = None
        self._bell = trio.Event()
        self._threads = trio.CapacityLimiter(1)

    def add(self, name: str, revision: int, *, prefix: bool = False) -> None:
        """See ``base.Watch``."""
        if name in self._names:
            return
        added = self._names[name] = _Name(name, revision, prefix=prefix)
        self._wanted.set()
        if self._stream is not None and not self._stream.ended:
            self._stream.create(added)

    def remove(self, name: str) -> None:
        """See ``base.Watch``."""
        removed = self._names.pop(name, None)
        if removed is None:
            return
        removed.removed = True
        if self._stream is not None and removed.id is not None:
            self._stream.cancel(removed.id)

    def __aiter__(self) -> "EtcdWatch":
        return self

    async def __anext__(self) -> Sequence[Event]:
        """All events that have arrived, in order of revision.

        Raises CompactedError, or StoreRefusedError if etcd does not let this user in, or watch a name. Nothing is
        watched any more then: read again, add the names anew and iterate on.
        """
        while not self._inbox:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            self._bell = trio.Event()
            await self._bell.wait()
        batch: list[Event] = []
        while self._inbox:
            stream, events = self._inbox.popleft()
            batch.extend(events)
            stream.took()
        batch.sort(key=lambda event: event.revision)
        await trio.lowlevel.checkpoint()
        return batch

    async def run(self) -> None:
        """Keep a stream up while anything is watched; never returns."""
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            if not self._names:
                self._wanted = trio.Event()
                await self._wanted.wait()
            try:
                heard = await self._one_stream()
            except StoreUnavailableError:
                heard = False  # the session noted it; calls report it to whoever waits
            except StoreRefusedError as error:
                heard = False
                self._fail(error)
            backoff = FIRST_BACKOFF_SECONDS if heard else min(2 * backoff, LAST_BACKOFF_SECONDS)
            await trio.sleep(backoff)

    async def _one_stream(self) -> bool:
        """Open a stream and see it to its end; returns whether etcd said anything on it."""
        link, metadata, used = await self._session.stream_start()
        self._calls["watch"] += 1
        stream = self._stream = _Stream(link, metadata)
        try:
            for name in self._names.values():
                name.id = None
                stream.create(name)
            token = trio.lowlevel.current_trio_token()
            error = await trio.to_thread.run_sync(
                stream.read, self, token, abandon_on_cancel=True, limiter=self._threads
            )
            if not stream.ended:  # by us, for a reason that says nothing about the link
                self._session.failed(link, error, "watch")
        finally:
            self._stream = None
            stream.end()
        if used is not None and (error.stale_token or any(name.refused for name in self._names.values())):
            self._session.forget_token(used)
        return stream.heard

    def received(self, stream: _Stream, reply: rpc.WatchReply) -> None:
        """Take in a message of the stream; runs in the Trio thread."""
        if stream is not self._stream:
            return
        stream.heard = True
        self._session.connected = True
        if reply.created:
            self._created(stream, reply)
        elif reply.canceled:
            self._canceled(stream, reply)
        elif (name := stream.names.get(reply.watch_id)) is not None and not name.removed:
            if reply.events:
                # The header may be ahead of the events while etcd catches up: more of them follow.
                name.next = reply.events[-1].kv.mod_revision + 1
                self._inbox.append((stream, [_event(event) for event in reply.events]))
                self._bell.set()
                return
            name.next = max(name.next, reply.header.revision + 1)
        stream.took()

    def _created(self, stream: _Stream, reply: rpc.WatchReply) -> None:
        name = stream.pending.popleft()
        if self._is_behind(name, reply.header):
            text = f"revision {name.next} is not there yet, etcd is at {reply.header.revision} or another cluster"
            self._fail(CompactedError(f"cannot watch {name.name} from where it stopped: {text}; read it again"))
            return
        if not reply.canceled:
            name.id = reply.watch_id
            name.refused = 0
            stream.names[reply.watch_id] = name
            if name.removed:
                stream.cancel(reply.watch_id)
            return
        if name.removed:
            return
        name.refused += 1
        if self._session.settings.username and name.refused == 1:
            stream.end()  # perhaps only the token is too old: try again with a new one
            return
        reason = reply.cancel_reason or "etcd gave no reason"
        self._fail(StoreRefusedError(f"cannot watch {name.name} in etcd: {reason}; grant the user read access"))

    def _is_behind(self, name: _Name, header: rpc.Header) -> bool:
        """Whether what answers lacks history that was seen: restored from a backup, another cluster, or a slow member.

        It would keep silent until it has as many revisions, and then tell of other ones.
        """
        return self._cluster not in (0, header.cluster_id) or header.revision < name.next - 1

    def _canceled(self, stream: _Stream, reply: rpc.WatchReply) -> None:
        name = stream.names.pop(reply.watch_id, None)
        if name is None or name.removed:
            return
        if not reply.compact_revision:
            stream.end()  # etcd's own reasons: begin again
            return
        text = f"revision {name.next} is gone, etcd was compacted at {reply.compact_revision}"
        self._fail(CompactedError(f"cannot watch {name.name} from where it stopped: {text}; read it again"))

    def _fail(self, error: CompactedError | StoreRefusedError) -> None:
        """Let go of everything and tell the iterator."""
        for name in self._names.values():
            name.removed = True
        self._names.clear()
        if self._stream is not None:
            self._stream.end()
        self._failure = error
        self._bell.set()


def _event(event: rpc.WatchEvent) -> Event:
    value = None if event.type == _DELETE else event.kv.value
    return Event(key=event.kv.key.decode(), value=value, revision=event.kv.mod_revision)
