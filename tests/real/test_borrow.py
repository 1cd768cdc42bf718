"""Three nodes that share a small pool on a real etcd: what one has free is never kept from a pod of another."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.calico_objects import put_pool
from tests.calico_state import State, agreed, differences
from tests.daemon_process import Answer, Daemon, addresses_of, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start
from tests.real.test_golden_records import FIXTURES

pytestmark = pytest.mark.real

NODES = ("node-a", "node-b", "node-c")
ADDRESSES = 64
CONFIG = "/calico/ipam/v2/config"


def up(start: Start, node: str) -> Daemon:
    """Start a node's daemon and wait until it has looked at the store: one that gets no block is never ready."""
    daemon = start(node, ready=False)
    wait_for(lambda: daemon.get("/v1/status", quiet=True).get("store", {}).get("synced"))
    return daemon


def replay(step: dict[str, Any], daemons: dict[str, Daemon]) -> Answer:
    """Call the plugin as the captured step did, on the step's node."""
    env, config = step["env"], step["stdin"]
    return daemons[config["nodename"]].plugin(
        env["CNI_COMMAND"], env["CNI_CONTAINERID"], config, args=env["CNI_ARGS"], name="calico-ipam"
    )


def test_the_captured_history_ends_the_same(etcd: EtcdProcess, start: Start) -> None:
    """Calico's own run with two /30 blocks and three nodes, then strict affinity: each step ends as it did there."""
    put_pool(etcd, "small", "10.8.0.0/29", blockSize=30)
    daemons = {node: up(start, node) for node in NODES}
    history(etcd, "borrow", daemons)
    etcd.put(CONFIG, FIXTURES["strict"]["etcd"][CONFIG].encode())
    wait_for(lambda: all("strictAffinity" in view["refusal"] for view in daemons["node-c"].get("/v1/reserve")))
    history(etcd, "strict", daemons)


def history(etcd: EtcdProcess, name: str, daemons: dict[str, Daemon]) -> None:
    """The same ADDs succeed, with an address of the pool and the same mask, or fail; the same pods are there at the end."""
    fixture = FIXTURES[name]
    for step in (step for step in fixture["steps"] if "plugin" in step):
        answer = replay(step, daemons)
        assert answer.code == step["exit"], f"{step['env']['CNI_CONTAINERID']}: {answer.text}, not {step['stdout']}"
        if answer.code:
            assert answer.json["code"] == 101, answer.text
        elif step["stdout"]:
            (said,), (was,) = answer.json["ips"], json.loads(step["stdout"])["ips"]
            assert said["address"].partition("/")[2] == was["address"].partition("/")[2]
            assert ip_address(said["address"].partition("/")[0]) in ip_network("10.8.0.0/29")
    wait_for(lambda: not differences(State.of(etcd), daemons.values()))
    captured = State({key: value.encode() for key, value in fixture["etcd"].items()})
    assert sorted(State.of(etcd).pods().values()) == sorted(captured.pods().values())


def small_pool(etcd: EtcdProcess, size: int) -> None:
    """A pool of 64 addresses; the limit of blocks is above what it has."""
    put_pool(etcd, "small", "10.77.0.0/26", blockSize=size)
    etcd.put(CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":64}')


@pytest.mark.parametrize("size", [26, 28, 30, 32])
def test_a_pool_is_filled_to_its_last_address(etcd: EtcdProcess, start: Start, size: int) -> None:
    """Sixty-four pods on nodes chosen at random all get an address; then each node says that the pool is full."""
    small_pool(etcd, size)
    daemons = [up(start, node) for node in NODES]
    choose = random.Random(size)  # noqa: S311 - a repeatable mixture
    for number in range(ADDRESSES):
        daemon = choose.choice(daemons)
        status, body = daemon.post("ADD", f"c{number}")
        assert status == 200, f"{number} on {daemon.node}: {body!r}"
    for daemon in daemons:
        status, body = daemon.post("ADD", f"more-{daemon.node}")
        assert (status, json.loads(body)["code"]) == (409, 101), body
        assert "no other node's has an address" in json.loads(body)["msg"]
    state = agreed(etcd, *daemons)
    assert len(state.pods()) == ADDRESSES


class Slots:
    """As many ADDs at once as the pool has addresses, and who holds which: fails at an address given twice."""

    def __init__(self) -> None:
        self.free = threading.BoundedSemaphore(ADDRESSES)
        self.most = 0
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}

    def take(self, address: str, container: str) -> None:
        """A container was told that the address is its own."""
        with self._lock:
            other = self._held.setdefault(address, container)
            assert other == container, f"{address} was given to {container} and is {other}'s"
            self.most = max(self.most, len(self._held))

    def drop(self, address: str) -> None:
        """It is about to be released."""
        with self._lock:
            del self._held[address]


def worker(number: int, daemons: list[Daemon], slots: Slots) -> None:
    """Pods that come and go on random nodes; every ADD must be answered while there are no more than addresses."""
    choose = random.Random(number)  # noqa: S311 - a repeatable interleaving
    mine: list[tuple[Daemon, str, str]] = []
    left = 60
    while left or mine:
        if left and (not mine or choose.random() < 0.65) and slots.free.acquire(blocking=not mine):
            left -= 1
            daemon, container = choose.choice(daemons), f"w{number}-{left}"
            status, body = daemon.post("ADD", container)
            assert status == 200, f"{container} on {daemon.node}: {body!r}"
            (address,) = addresses_of(body)
            slots.take(address, container)
            mine.append((daemon, container, address))
        else:
            daemon, container, address = mine.pop(choose.randrange(len(mine)))
            slots.drop(address)
            assert daemon.post("DEL", container) == (200, b"")
            slots.free.release()


@pytest.mark.parametrize("size", [26, 30])
def test_pods_that_come_and_go_on_a_full_pool_each_get_an_address(etcd: EtcdProcess, start: Start, size: int) -> None:
    """Ten workers on three nodes, never more pods than addresses: no ADD is refused, no address given twice, no leak."""
    small_pool(etcd, size)
    daemons = [up(start, node) for node in NODES]
    slots = Slots()
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda number: worker(number, daemons, slots), range(10)))
    assert slots.most > ADDRESSES // 2
    state = agreed(etcd, *daemons)
    assert not state.pods()
    assert not state.pod_handles()
