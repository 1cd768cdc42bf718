"""A node of the cluster for tests: the real ledger, writer and sync on a store, under the test's clock."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from ipamd.api.look import Look
from ipamd.api.waiting import CONFIRMED, Waiting
from ipamd.core import keys
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Assigned, Attachment, Committed, Fact
from ipamd.core.ledger import Ledger
from ipamd.core.request import Added, AddRequest, Shortage
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import Store, StoreUnavailableError
from ipamd.store.sync import Sync
from ipamd.store.writer import Writer, Writing

EPOCH = 1_795_218_460_000_000_000


def now() -> Now:
    """Both clocks, driven by Trio's."""
    elapsed = int(trio.current_time() * 1e9)
    return Now(EPOCH + elapsed, elapsed)


def pool_record(name: str, cidr: str, **spec: object) -> tuple[str, bytes]:
    """An IPPool as Calico stores it."""
    value = {
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "uid": f"uid-of-{name}", "creationTimestamp": "2026-11-20T23:47:40Z"},
        "spec": {"cidr": cidr, "vxlanMode": "Never", "ipipMode": "Never", "nodeSelector": "all()", **spec},
    }
    return keys.POOLS + name, json.dumps(value).encode()


def add_request(container: str, *families: int, interface: str = "eth0", started: int | None = None) -> AddRequest:
    """An ADD of one pod."""
    return AddRequest(
        Attachment("k8s-pod-network", container, interface),
        families or (4,),
        {"namespace": "default", "pod": f"pod-{container}"},
        now().boot if started is None else started,
    )


class Node:
    """The parts of a daemon that decide, write and read, with a list in place of the state file."""

    def __init__(
        self,
        name: str,
        store: Store,
        policy: ReservePolicy | None = None,
        facts: Sequence[Fact] = (),
        instance: str = "",
        durable: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self.ledger = Ledger(name, policy or ReservePolicy(), None, instance)
        self.ledger.replay(facts)
        self.journal: list[Fact] = list(facts)
        self.told: list[tuple[str, dict[str, str]]] = []
        """The log: events and their values."""

        def report(event: str, values: dict[str, str]) -> None:
            self.told.append((event, values))

        self.sync = Sync(self.ledger, store, self.record, now, report)
        self.writer = Writer(self.ledger, store, self.record, durable, now, Writing(), report)
        self.waiting = Waiting(
            self.ledger, now, self.journal.extend, 10.0, lambda: self.writer.wake(hurry=True), lambda: "the test"
        )
        self.writer.on_supply = self.waiting.serve
        self.waiting.confirm = Look(self._look).fresh

    async def _look(self) -> str:
        try:
            await self.sync.look_at_settings()
        except StoreUnavailableError as error:
            return str(error)
        return ""

    def record(self, facts: Sequence[Fact]) -> None:
        """As the daemon does: journal, ledger, those who wait, the watch."""
        self.journal.extend(facts)
        for fact in facts:
            self.ledger.apply(fact)
        self.waiting.serve()
        self.sync.follow(max((f.revision for f in facts if isinstance(f, Committed)), default=0))
        self.writer.wake()

    async def add(self, request: AddRequest) -> Assigned:
        """An ADD, waiting if need be."""
        decided: Added | Shortage | RefusedError
        try:
            decided = self.ledger.add(request, now())
        except RefusedError as error:
            if error.code not in CONFIRMED:
                raise
            decided = error
        if not isinstance(decided, Added):
            decided = await self.waiting.join(request, decided)
        else:
            self.journal.extend(decided.facts)
            self.writer.wake()
        return decided.assigned

    def delete(self, container: str, interface: str = "eth0") -> None:
        """A DEL."""
        attachment = Attachment("k8s-pod-network", container, interface)
        self.journal.extend(self.ledger.delete(attachment, f"default.pod-{container}", now().boot).facts)
        self.waiting.deleted(attachment)
        self.writer.wake()

    def addresses(self, assigned: Assigned) -> list[str]:
        """The texts of what an ADD got."""
        return [self.ledger.blocks[place.block].address(place.ordinal) for place in assigned.places]

    @property
    def reports(self) -> list[str]:
        """The events of the log."""
        return [event for event, _values in self.told]

    @property
    def dirty(self) -> bool:
        """Whether the store does not yet hold what this node wants."""
        return any(block.dirty for block in self.ledger.blocks.values())

    async def flushed(self) -> None:
        """Wait until the store has all that this node wants."""
        while self.dirty:
            with trio.move_on_after(0.05):  # what was never sent is settled without a transaction
                await self.writer.committed.wait()

    @asynccontextmanager
    async def running(self, *, look: bool = True) -> AsyncIterator["Node"]:
        """Run the node's tasks; on entry the first look at the store is done, unless ``look`` is false."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sync.run)
            if look:
                await self.sync.first.wait()
            nursery.start_soon(self.writer.run)
            yield self
            nursery.cancel_scope.cancel()
