"""The way from one node to the store, with all that can happen to a call and to a watch.

``Client`` is a ``Store``. A commit travels by itself: it arrives whether or not its sender still waits, or lives, when
it does. ``Link.mend`` ends all faults.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TypeVar

import trio

from ipamd.store.base import (
    ChangeSet,
    CompactedError,
    Event,
    KeyRange,
    Lease,
    Outcome,
    Snapshot,
    StoreRefusedError,
    StoreUnavailableError,
    nobody_to_tell,
)
from tests.memory_store import MemoryStore, MemoryWatch

T = TypeVar("T")

TIMEOUT = 2.0
"""Seconds that a call may take, as ``etcd.timeout``."""

LATEST = 8.0
"""Seconds after which a transaction that was given up has arrived, or never will."""


class Server(MemoryStore):
    """The store, which can be set back to a backup. ``life``: how often it was."""

    def __init__(self) -> None:
        super().__init__()
        self.life = 0
        self.back_up()

    def back_up(self) -> None:
        """Make a backup, with the leases."""
        self._backup = dict(self.records), dict(self._bound), dict(self.leases), self.revision

    def restore(self) -> None:
        """Go on from the last backup: what came after it never was, and what is on its way does not arrive."""
        self.life += 1
        records, bound, leases, self.revision = self._backup
        self.records, self._bound = dict(records), dict(bound)
        self.leases = {lease: (ttl, trio.current_time() + ttl) for lease, (ttl, _until) in leases.items()}
        self.history = [event for event in self.history if event.revision <= self.revision]
        self.compacted = min(self.compacted, self.revision)
        self._announce()


class Link:
    """One node's way to the store. Probabilities: of a fault for each call, and of a batch of the watch to linger."""

    def __init__(self, random: Random, later: Callable[[float, Callable[[], None]], None]) -> None:
        self.random, self.later = random, later
        self.cut = False
        self.deaf = False
        """Whether only the way to the store works: what is sent arrives, and nothing comes back."""
        self.lost_request = self.lost_reply = self.late = self.refused = 0.0
        self.slow = 0.0
        """Up to how many seconds a batch of events lingers."""
        self.latency = 0.01
        self.unanswered = 0
        """Commits whose sender still waits: the store may have carried them out, and the sender not know it yet."""

    def mend(self) -> None:
        """No more faults."""
        self.cut = self.deaf = False
        self.lost_request = self.lost_reply = self.late = self.refused = 0.0
        self.slow = 0.0

    @property
    def silent(self) -> bool:
        """Whether nothing comes from the store."""
        return self.cut or self.deaf

    def delay(self) -> float:
        """How long a message is under way: mostly little, sometimes much."""
        return self.random.expovariate(1 / self.latency) if self.latency else 0.0


class Client:
    """See ``Store``; and the module."""

    name = "simulated"

    def __init__(self, server: Server, link: Link) -> None:
        self._server, self._link = server, link
        self.calls = {"read": 0, "commit": 0, "list": 0, "watch": 0, "lease": 0}
        self.distrust: Callable[[], None] = nobody_to_tell
        self.connected = True
        self._life = server.life

    async def read(self, keys: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
        """See ``Store.read``."""
        return await self._ask("read", lambda: self._server.snapshot(keys, prefixes))

    async def list_keys(self, window: KeyRange) -> tuple[int, tuple[str, ...]]:
        """See ``Store.list_keys``."""
        return await self._ask("list", lambda: (self._server.revision, self._server.window(window)))

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """See ``Store.commit``."""
        self._link.unanswered += 1
        try:
            return await self._ask("commit", lambda: self._server.apply(alternatives, window))
        finally:
            self._link.unanswered -= 1

    async def grant(self, ttl: float) -> Lease:
        """See ``Store.grant``."""
        return await self._ask("lease", lambda: self._server.lease(ttl))

    async def renew(self, lease: int) -> float:
        """See ``Store.renew``."""
        return await self._ask("lease", lambda: self._server.prolong(lease))

    async def revoke(self, lease: int) -> None:
        """See ``Store.revoke``."""
        await self._ask("lease", lambda: self._server.end(lease))

    async def _ask(self, kind: str, work: Callable[[], T]) -> T:
        self.calls[kind] += 1
        link, random = self._link, self._link.random
        chance = random.random()
        if chance < link.refused:
            await trio.sleep(link.delay())
            raise StoreRefusedError("simulated: mvcc: database space exceeded")
        replies: list[T] = []
        refusals: list[StoreRefusedError] = []
        arrived = trio.Event()
        life = self._server.life

        def arrive() -> None:
            if self._server.life != life:
                return
            try:
                replies.append(work())
            except StoreRefusedError as error:
                refusals.append(error)
            arrived.set()

        with trio.move_on_after(TIMEOUT):
            if link.cut or random.random() < link.lost_request:
                await trio.sleep_forever()
            if kind != "commit":
                await trio.sleep(link.delay())
                arrive()
            elif random.random() < link.late:
                link.later(random.uniform(0.0, LATEST), arrive)
            else:
                link.later(link.delay(), arrive)
            await arrived.wait()
            if random.random() < link.lost_reply:
                await trio.sleep_forever()
            await trio.sleep(link.delay())
            if link.silent:
                await trio.sleep_forever()
            self.connected = True
            if self._life != life:
                self._life = life
                self.distrust()
                raise StoreUnavailableError("simulated: another cluster answers")
            if refusals:
                raise refusals[0]
            return replies[0]
        self.connected = False
        raise StoreUnavailableError("simulated: no answer in time")

    @asynccontextmanager
    async def watch(self) -> AsyncIterator["Watching"]:
        """See ``Store.watch``."""
        self.calls["watch"] += 1
        yield Watching(self._server, self._link)

    async def aclose(self) -> None:
        """There is nothing to let go of."""


class Watching(MemoryWatch):
    """A watch whose events come late, in the order of their revisions, and not at all while the link is cut."""

    def __init__(self, server: Server, link: Link) -> None:
        super().__init__(server)
        self._server, self._link = server, link
        self._life = server.life

    def __aiter__(self) -> "Watching":  # type: ignore[override] # no generator: its end would be the collector's affair
        return self

    async def __anext__(self) -> Sequence[Event]:
        while True:
            changed = self._store._changed
            if self._server.life != self._life and not self._link.silent:
                raise CompactedError("simulated: another cluster answers")
            if not self._link.silent and (events := self._pending()):
                await trio.sleep(self._link.delay() + self._link.random.random() * self._link.slow)
                while self._link.silent:  # they are on their way already: nothing is lost with a stream that recovers
                    await trio.sleep(0.5)
                return events
            with trio.move_on_after(0.5 if self._link.silent else self._store.next_expiry()):
                await changed.wait()
