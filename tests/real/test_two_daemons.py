"""Two nodes that share one etcd: what one hands out the other never does, and nothing stays behind."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import msgspec
import pytest

from tests.calico_state import State, agreed
from tests.daemon_process import POOLS, Daemon, addresses_of, dual_stack, network
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

WORKERS = 20
ADDS = 1000


class Cluster:
    """What clients of all nodes hold at this moment: address to container. Fails at the first address held twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held: dict[str, str] = {}
        self.most = 0

    def take(self, container: str, addresses: list[str]) -> None:
        """The container was told that these addresses are its own."""
        with self._lock:
            for address in addresses:
                other = self.held.setdefault(address, container)
                assert other == container, f"{address} was given to {container} and is {other}'s"
            self.most = max(self.most, len(self.held))

    def drop(self, addresses: list[str]) -> None:
        """They are about to be released: from now on they may be another's."""
        with self._lock:
            for address in addresses:
                del self.held[address]


def worker(number: int, daemons: list[Daemon], cluster: Cluster) -> None:
    """ADDs and DELs of its own containers in an order of its own, on both nodes; at the end it holds nothing."""
    choose = random.Random(number)  # noqa: S311 - a repeatable interleaving
    mine: list[tuple[Daemon, str, list[str]]] = []
    left = ADDS // WORKERS
    while left or mine:
        if left and (not mine or choose.random() < 0.6):
            left -= 1
            daemon, container = choose.choice(daemons), f"c{number}-{left}"
            mine.append((daemon, container, add(daemon, container, left)))
            assert len(mine[-1][2]) == 1 + left % 2
            cluster.take(container, mine[-1][2])
        else:
            daemon, container, addresses = mine.pop(choose.randrange(len(mine)))
            cluster.drop(addresses)
            status, body = daemon.post("DEL", container)
            assert (status, body) == (200, b"")


CONFIGURATIONS = (network(), dual_stack())


def add(daemon: Daemon, container: str, number: int) -> list[str]:
    """An ADD, every other with both IP versions, one in 25 through the real plugin."""
    config = CONFIGURATIONS[number % 2]
    if number % 25 == 0:
        return daemon.add(container, config)
    status, body = daemon.post("ADD", container, msgspec.json.encode(config))
    assert status == 200, body
    return addresses_of(body)


def test_a_thousand_adds_and_dels_of_twenty_workers_on_two_nodes_never_give_an_address_twice(
    etcd: EtcdProcess, start: Start
) -> None:
    """Random ADDs and DELs on both nodes at once: every address has one holder, every block one node, nothing leaks."""
    daemons = [start("node-a", *POOLS), start("node-b", *POOLS)]
    cluster = Cluster()
    blocks: dict[str, str] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        running = [pool.submit(worker, number, daemons, cluster) for number in range(WORKERS)]
        while wait(running, timeout=0.05).not_done:
            remember_owners(blocks, State.of(etcd))
        for future in running:
            future.result()
    assert cluster.most > 150
    assert not cluster.held
    state = agreed(etcd, *daemons)
    remember_owners(blocks, state)
    assert not state.pods()
    assert not state.pod_handles()
    assert set(blocks.values()) == {"host:node-a", "host:node-b"}
    for daemon in daemons:
        assert daemon.get("/v1/allocations") == []
        assert daemon.get("/v1/status")["store"]["damaged_records"] == {}


def remember_owners(owners: dict[str, str], state: State) -> None:
    """Note whose each block is; nobody gives a block back in these tests, so it must never change."""
    for cidr, block in state.blocks.items():
        assert owners.setdefault(cidr, block["affinity"]) == block["affinity"]


def test_the_plugin_gets_addresses_of_its_own_node_on_both_nodes_at_once(etcd: EtcdProcess, start: Start) -> None:
    """Real plugins started at once on two nodes: different addresses, each in a block of the plugin's node."""
    daemons = [start("node-a", *POOLS), start("node-b", *POOLS)]
    asked = [(daemons[number % 2], f"p{number}") for number in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(lambda each: each[0].add(each[1], dual_stack()), asked))
    flat = [address for addresses in answers for address in addresses]
    assert len(set(flat)) == len(flat) == 2 * WORKERS
    state = agreed(etcd, *daemons)
    for (daemon, container), addresses in zip(asked, answers, strict=True):
        for address in addresses:
            assert state.pods(daemon.node)[address] == f"k8s-pod-network.{container}"
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda each: each[0].delete(each[1]), asked))
    state = agreed(etcd, *daemons)
    assert not state.pods()
    assert not state.pod_handles()
