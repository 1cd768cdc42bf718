"""Clusters that all begin at once, on one store under a virtual clock: of ipamd's nodes, and of Calico's algorithm.

``claiming``: each node starts and gets its first pod an address, in a pool that ends 90 % full of blocks; what is not the
starting nodes' is others'. ``crowding``: there are half as many blocks as nodes, and pods come until 97.7 % of all
addresses are theirs.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from ipaddress import ip_network

import trio
from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Attachment
from ipamd.core.records import BlockRecord, affinity_record, attribute, new_block
from tests.calico.node import Calico
from tests.calico.pools import CalicoError
from tests.nodes import EPOCH, Node, add_request, now, pool_record
from tests.scale.store import IndexedStore, Meter

SLOWEST = 0.002
"""Seconds that a call of the store takes at most; half of it at least."""

AGAIN = 1.0
"""Seconds until the kubelet tries again what was refused (the real one waits longer)."""

RANGE = "10.0.0.0"
IPAM_RECORDS = (keys.Kind.BLOCK, keys.Kind.AFFINITY, keys.Kind.HANDLE)


class Scenario(Struct, frozen=True):
    """How many nodes begin with how many pods each, in a pool of so many blocks of a prefix length.

    ``others``: how many of the blocks are other nodes', and full, from the beginning.
    """

    name: str
    nodes: int
    pods: int
    blocks: int
    block_size: int
    others: int = 0

    @property
    def pool(self) -> tuple[str, bytes]:
        """The pool's record."""
        length = self.block_size - self.blocks.bit_length() + 1
        return pool_record("p", f"{RANGE}/{length}", blockSize=self.block_size)

    @property
    def addresses(self) -> int:
        """How many the pool has."""
        return self.blocks << (32 - self.block_size)


def claiming(nodes: int) -> Scenario:
    """All claim a block at once; in the end 90 % of the pool's blocks are taken."""
    blocks = 1
    while blocks * 9 < nodes * 10:
        blocks *= 2
    return Scenario("claiming", nodes, 1, blocks, 26, blocks * 9 // 10 - nodes)


def crowding(nodes: int) -> Scenario:
    """Two nodes for each block of 16, and eight pods a node: 97.7 % of the addresses if there are 1,000 nodes."""
    blocks = 1
    while blocks * 2 < nodes:
        blocks *= 2
    return Scenario("crowding", nodes, blocks * 16 * 125 // 128 // nodes, blocks, 28)


class Tally(Struct):
    """What one node asked of the store, and when its pods had their addresses (s since it began)."""

    meter: Meter
    served: list[float]
    refused: int = 0
    events: int = 0
    claims: int = 0


class Run(Struct):
    """What happened in one scenario: a tally for each node, and the store in the end.

    ``bytes_before`` are those of the records of IPAM that were there before.
    """

    scenario: Scenario
    algorithm: str
    tallies: list[Tally]
    store: IndexedStore
    bytes_before: int

    @property
    def pods(self) -> int:
        """How many pods have an address."""
        return sum(len(tally.served) for tally in self.tallies)

    @property
    def seconds(self) -> list[float]:
        """When the pods had their addresses, in order."""
        return sorted(second for tally in self.tallies for second in tally.served)

    @property
    def bytes_a_pod(self) -> float:
        """Bytes of keys and values that the store has more than before."""
        return (_bytes(self.store) - self.bytes_before) / self.pods

    def total(self, what: Callable[[Tally], int]) -> int:
        """The sum over all nodes."""
        return sum(map(what, self.tallies))

    def most(self, what: Callable[[Tally], int]) -> int:
        """The greatest of all nodes."""
        return max(map(what, self.tallies))

    @property
    def owners(self) -> Counter[str]:
        """How many addresses each handle has in the store's blocks; what others had from the beginning is not told."""
        found = Counter[str]()
        for key, record in self.store.records.items():
            if keys.kind_of(key) is keys.Kind.BLOCK:
                image = BlockRecord(record.value)
                found.update(str(owner.handle) for owner in map(image.owner, range(len(image.allocations))) if owner)
        found.pop("others", None)
        return found


async def run_ipamd(scenario: Scenario) -> Run:
    """Run the daemons: the real ledger, writer and sync of each, until every pod has an address and the store knows."""
    store, before = _store(scenario)
    tallies = [Tally(Meter(store), []) for _ in range(scenario.nodes)]
    nodes = [Node(f"node-{number}", tally.meter) for number, tally in enumerate(tallies)]
    unready = scenario.nodes
    over = trio.Event()

    async def live(node: Node, tally: Tally) -> None:
        nonlocal unready
        async with node.running():
            for pod in range(scenario.pods):
                await _served(tally, lambda pod=pod: node.add(add_request(f"{node.ledger.node}-{pod}")), RefusedError)
            await node.flushed()
            unready -= 1
            if not unready:
                over.set()
            await over.wait()  # a node that is needed no more still gives addresses to others
            tally.events, tally.claims = node.sync.events, node.writer.progress.claims

    async with trio.open_nursery() as nursery:
        for node, tally in zip(nodes, tallies, strict=True):
            nursery.start_soon(live, node, tally)
    return Run(scenario, "ipamd", tallies, store, before)


async def run_calico(scenario: Scenario) -> Run:
    """Run Calico's algorithm: on each node one ADD after the other, as its host-wide lock has it."""
    store, before = _store(scenario)
    tallies = [Tally(Meter(store), []) for _ in range(scenario.nodes)]

    async def live(name: str, tally: Tally) -> None:
        programs = Calico(tally.meter, name, lambda: now().unix)
        for pod in range(scenario.pods):
            container = f"{name}-{pod}"
            handle = Attachment("k8s-pod-network", container, "eth0").handle
            labels = {"namespace": "default", "pod": f"pod-{container}"}
            await _served(tally, lambda handle=handle, labels=labels: programs.add(handle, labels), CalicoError)

    async with trio.open_nursery() as nursery:
        for number, tally in enumerate(tallies):
            nursery.start_soon(live, f"node-{number}", tally)
    for number, tally in enumerate(tallies):
        tally.claims = len(store.snapshot([], [keys.affinities_prefix(f"node-{number}")]).records)
    return Run(scenario, "calico", tallies, store, before)


async def _served(tally: Tally, add: Callable[[], Awaitable[object]], refused: type[Exception]) -> None:
    """Repeat an ADD as the kubelet does, until it has an address."""
    began = trio.current_time()
    while True:
        try:
            await add()
        except refused:
            tally.refused += 1
            await trio.sleep(AGAIN)
            continue
        tally.served.append(trio.current_time() - began)
        return


def _store(scenario: Scenario) -> tuple[IndexedStore, int]:
    store = IndexedStore(SLOWEST)
    store.put(*scenario.pool)
    for index, cidr in enumerate(_spread(scenario)):
        block = new_block(cidr, f"host:other-{index}", EPOCH)
        block.take(set(range(cidr.size)), attribute("others", {"node": f"other-{index}"}))
        store.put(keys.affinity_key(f"other-{index}", cidr), affinity_record("confirmed"))
        store.put(keys.block_key(cidr), block.encode())
    return store, _bytes(store)


def _spread(scenario: Scenario) -> Iterator[Cidr]:
    """The blocks that are others', evenly over the pool."""
    first, size = int(ip_network(RANGE)[0]), 1 << (32 - scenario.block_size)
    for index in range(scenario.others):
        yield Cidr(4, first + index * scenario.blocks // scenario.others * size, scenario.block_size)


def _bytes(store: IndexedStore) -> int:
    records: Sequence[tuple[str, int]] = [(key, len(record.value)) for key, record in store.records.items()]
    return sum(len(key) + size for key, size in records if keys.kind_of(key) in IPAM_RECORDS)
