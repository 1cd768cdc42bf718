"""A node and the store that it believes in, for tests of the transactions it makes: everything in step, no tasks."""

from collections.abc import Iterable
from typing import TypeVar

from ipamd.core import keys, supply
from ipamd.core.address import parse_cidr
from ipamd.core.clock import Now
from ipamd.core.facts import Assigned, Attachment, Committed, Fact, Place
from ipamd.core.ledger import Ledger
from ipamd.core.request import Added, AddRequest
from ipamd.core.reserve import ReservePolicy
from ipamd.store import batch
from ipamd.store.base import Change, Outcome
from ipamd.store.claim import claim
from ipamd.store.draft import Batch, Draft, Limits
from ipamd.store.known import Known, committed, observed
from tests.core.cluster import Cluster
from tests.nodes import pool_record

EPOCH = 1_795_218_460_000_000_000


D = TypeVar("D", Draft, Batch)


def written(draft: D) -> D:
    """A transaction, written to its end."""
    for _portion in draft.write():
        pass
    return draft


class Case:
    """One node ``n1`` and its cluster; time stands still unless ``boot`` is moved, or a DEL comes."""

    def __init__(self, policy: ReservePolicy | None = None) -> None:
        self.cluster = Cluster()
        self.ledger = Ledger("n1", policy or ReservePolicy())
        self.ledger.synced = True
        self.known = Known()
        self.boot = 1_000_000_000
        self.facts: list[Fact] = []

    @property
    def now(self) -> Now:
        """Both clocks."""
        return Now(EPOCH + self.boot, self.boot)

    def record(self, facts: Iterable[Fact]) -> None:
        """Make facts part of the ledger."""
        for fact in facts:
            self.facts.append(fact)
            self.ledger.apply(fact)

    def put(self, key: str, value: bytes) -> None:
        """Write a setting, and hear of it."""
        expected = self.cluster.records[key].revision if key in self.cluster.records else 0
        assert self.cluster.commit([Change(key, value, expected)]).chosen == 0
        self.record([Committed(key, self.cluster.revision, value)])

    def pool(self, name: str, cidr: str, **spec: object) -> None:
        """Make or change a pool."""
        self.put(*pool_record(name, cidr, **spec))

    def claim(self, pool: str, index: int = 0) -> str:
        """Claim a block of a pool; returns its CIDR."""
        value = self.ledger.settings.pools[pool]
        changes = claim(self.ledger, self.known, value, value.block(index), self.now)
        assert self.send(Batch(tuple(changes))).chosen == 0
        return str(value.block(index))

    def add(self, container: str, *families: int, interface: str = "eth0") -> Assigned:
        """An ADD that is served from the reserve."""
        who = Attachment("k8s-pod-network", container, interface)
        request = AddRequest(who, families or (4,), {"pod": container, "namespace": "default"}, self.boot)
        decided = self.ledger.add(request, self.now)
        assert isinstance(decided, Added)
        self.facts += decided.facts
        return decided.assigned

    def delete(self, container: str, interface: str = "eth0") -> None:
        """A DEL."""
        who = Attachment("k8s-pod-network", container, interface)
        self.facts += self.ledger.delete(who, f"default.{container}", self.boot).facts
        self.boot += 1  # an ADD of the same container that follows begins later

    def gather(self, limits: Limits | None = None) -> Draft | None:
        """The next transaction, if there is anything to do, written."""
        self.ledger.settle()
        draft = batch.gather(self.ledger, self.known, limits or Limits(), self.now)
        return None if draft is None else written(draft)

    def send(self, draft: Draft | Batch) -> Outcome:
        """Send a transaction, and take in the answer."""
        self.record(draft.before)
        outcome = self.cluster.commit(draft.changes)
        if outcome.chosen is None:
            self.known.learn((change.key for change in draft.changes), outcome.records)
            self.record(observed(draft.changes, outcome))
        else:
            self.known.wrote(draft.changes, outcome.revision)
            self.record(committed(draft.changes, outcome.revision))
        return outcome

    def flush(self, limits: Limits | None = None) -> int:
        """Send transactions until there is nothing to do; returns how many it took."""
        for count in range(200):
            draft = self.gather(limits)
            if draft is None:
                return count
            self.send(draft)
        raise AssertionError("the writer never comes to rest")

    def hear(self) -> None:
        """The watch tells of all of this node's blocks."""
        for block in list(self.ledger.blocks.values()):
            key = keys.block_key(block.net)
            record = self.cluster.records.get(key)
            self.record(
                [Committed(key, record.revision if record else self.cluster.revision, record.value if record else None)]
            )

    def idle(self) -> Batch | None:
        """The transaction that retires a block which has been idle for long enough, if there is one."""
        supply.idle_block(self.ledger, self.boot)
        self.boot += supply.IDLE_BLOCK
        block = supply.idle_block(self.ledger, self.boot)
        return None if block is None else batch.retire(self.ledger, self.known, block)

    def cluster_without(self, cidr: str) -> dict[Place, tuple[str, str, str]]:
        """The store's allocations but for one block, which cannot be read."""
        rest = Cluster()
        rest.records = {key: r for key, r in self.cluster.records.items() if key != keys.block_key(parse_cidr(cidr))}
        return rest.allocations()
