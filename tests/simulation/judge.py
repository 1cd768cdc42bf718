"""What must be true, and who sees to it: the one account of which address which living pod has.

It knows nothing of ledgers: only what runtimes were told, what strangers wrote, and, at the end, the records.
"""

from collections.abc import Callable, Iterable

from ipamd.core import keys
from ipamd.core.address import format_address, parse_cidr
from ipamd.core.check import check
from ipamd.core.records import affinity_state
from tests.core.cluster import Cluster
from tests.memory_store import MemoryStore
from tests.simulation.machine import Machine


class Judge:
    """Addresses of living pods by text, each with the pod's name; ``findings`` are what must not be, by kind."""

    def __init__(self, trace: Callable[[str], None]) -> None:
        self._trace = trace
        self.living: dict[str, str] = {}
        self.findings: list[tuple[str, str]] = []
        self.unwritten: set[str] = set()
        """Containers that are dead, and whose DEL a disk that takes nothing may have lost."""

    def find(self, kind: str, text: str) -> None:
        """Something is wrong: a ``double``, a ``lost`` or a ``leaked`` address, or something ``unsound``."""
        self.findings.append((kind, text))
        self._trace(f"!!! {kind}: {text}")

    def born(self, pod: str, addresses: Iterable[str]) -> None:
        """A pod was given these addresses, and its runtime knows."""
        addresses = list(addresses)
        had = [address for address, owner in self.living.items() if owner == pod]
        if had and sorted(had) != sorted(addresses):
            self.find("lost", f"{pod} had {had} and was now answered {addresses}")
        for address in addresses:
            other = self.living.setdefault(address, pod)
            if other != pod:
                self.find("double", f"{address} is given to {pod} while {other} lives with it")

    def dead(self, pod: str) -> None:
        """A pod is gone, or its runtime has given it up: its addresses may be used again."""
        for address in [address for address, owner in self.living.items() if owner == pod]:
            del self.living[address]

    # --- at any time ------------------------------------------------------------------------------------------

    def look_at(self, machine: Machine, *, in_the_end: bool = False) -> None:
        """A ledger must be sound whenever nothing is being decided.

        A node that lost a DEL keeps the address, which by the store may be another's: it hands it to nobody, and tells.
        And a store that was set back says of dead pods that they live, until the node has written what it knows.
        """
        daemon = machine.daemon
        if daemon is not None:
            for problem in check(daemon.ledger):
                lost = any(f"container='{container}'" in problem for container in self.unwritten)
                other = problem.partition(" and, says the store, by handle ")[2].rpartition(".")[2]
                dead = bool(other) and other not in self.living.values() and not in_the_end
                if not (other and (lost or dead)):
                    self.find("unsound", f"{machine.name}: {problem}")

    # --- in the end -------------------------------------------------------------------------------------------

    def at_rest(self, server: MemoryStore, machines: Iterable[Machine], handles: dict[str, str]) -> None:
        """The store holds exactly what lives, the reserves, and tunnels; ``handles`` are those of all pods, by pod."""
        machines = list(machines)
        cluster = Cluster()
        cluster.records, cluster.revision = server.records, server.revision
        allocations = cluster.allocations()
        texts = {_text(cluster, place.block, place.ordinal): handle for place, (handle, _n, _k) in allocations.items()}
        expected = {address: handles[pod] for address, pod in self.living.items()}
        reserves = {machine.daemon.ledger.reserve_handle for machine in machines if machine.daemon is not None}
        for address, handle in expected.items():
            if texts.get(address) != handle:
                self.find("lost", f"{address} is {self.living[address]}'s and in the store {texts.get(address)}'s")
        for address, handle in texts.items():
            if handle and address not in expected and handle not in reserves:  # without a handle it cools
                self.find("leaked", f"{address} is allocated to {handle}, which no living pod has")
        self._records(server, cluster)
        for machine in machines:
            self.look_at(machine, in_the_end=True)
            self._compare(machine, cluster)

    def _records(self, server: MemoryStore, cluster: Cluster) -> None:
        said, counted = cluster.handles(), cluster.counted()
        for handle in sorted(said.keys() | counted.keys()):
            if said.get(handle, {}) != counted.get(handle, {}):
                self.find("leaked", f"handle {handle} counts {said.get(handle)}, the blocks {counted.get(handle)}")
        affinities = {
            (key.split("/")[5], str(keys.cidr_of(key))): affinity_state(record.value)
            for key, record in server.records.items()
            if keys.kind_of(key) is keys.Kind.AFFINITY
        }
        owned = {
            (block.affinity.removeprefix("host:"), cidr): "confirmed"
            for cidr, block in cluster.blocks().items()
            if block.affinity
        }
        if affinities != owned:
            self.find("leaked", f"affinities say {affinities}, blocks {owned}")

    def _compare(self, machine: Machine, cluster: Cluster) -> None:
        daemon = machine.daemon
        if daemon is None:
            self.find("lost", f"{machine.name}: its daemon is not up: {machine.refusal}")
            return
        ledger = daemon.ledger
        allocated = {p for p, (handle, _n, _k) in cluster.allocations().items() if handle == ledger.reserve_handle}
        known = {block.place(ordinal) for block in ledger.blocks.values() for ordinal in block.line()}
        if allocated != known:
            self.find("leaked", f"{machine.name} has {known ^ allocated} in reserve here or there only")
        if any(block.dirty for block in ledger.blocks.values()):
            self.find("unsound", f"{machine.name} is not at rest")


def _text(cluster: Cluster, block: str, ordinal: int) -> str:
    cidr = parse_cidr(block)
    return format_address(cidr.family, cidr.base + ordinal)
