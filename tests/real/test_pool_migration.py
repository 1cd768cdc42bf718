"""Calico's documentation on changing the block size of a pool and on leaving a pool, acted out on live pods.

In its own names and numbers, at the plugin's edge, with two daemons on etcd; what ``calicoctl`` does the model of it does.
"""

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address, ip_network

import pytest
import trio

from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.calico.cluster import Calicoctl
from tests.calico.schema import flaws
from tests.calico_state import State, agreed, differences
from tests.daemon_process import Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

OLD, TEMPORARY = "192.168.0.0/16", "10.0.0.0/16"
RECORDS = ("/calico/ipam/v2/assignment/", "/calico/ipam/v2/handle/", "/calico/ipam/v2/host/")


def calicoctl(etcd: EtcdProcess, act: Callable[[Calicoctl], Awaitable[None]]) -> None:
    """Run a command."""

    async def run() -> None:
        store = EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,)))
        try:
            await act(Calicoctl(store, lambda: int(trio.current_time() * 1e9)))
        finally:
            await store.aclose()

    trio.run(run)


def create(etcd: EtcdProcess, name: str, cidr: str, **spec: object) -> None:
    """``calicoctl create -f -``, with the manifests' tunnel and NAT."""
    fields: Mapping[str, object] = {"cidr": cidr, "ipipMode": "Always", "natOutgoing": True, **spec}
    resource = {
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name}, "spec": fields
    }  # fmt: skip
    calicoctl(etcd, lambda program: program.apply(resource))


def disable(etcd: EtcdProcess, name: str) -> None:
    """``calicoctl patch ippool <name> -p '{"spec": {"disabled": true}}'``."""
    calicoctl(etcd, lambda program: program.patch_pool(name, {"disabled": True}))


def delete(etcd: EtcdProcess, name: str) -> None:
    """``calicoctl delete ippool <name>``."""
    calicoctl(etcd, lambda program: program.delete_pool(name))


class Pods:
    """The pods of a deployment, three on each node; ``addresses`` by the name of each."""

    def __init__(self, daemons: list[Daemon]) -> None:
        self._daemons = daemons
        self._generation = 0
        self.addresses: dict[str, str] = {}
        self._homes: dict[str, Daemon] = {}

    def create(self) -> None:
        """Start them."""
        self._generation += 1
        for index in range(3 * len(self._daemons)):
            self.add(f"nginx-{self._generation}-{index}", self._daemons[index % len(self._daemons)])

    def add(self, name: str, daemon: Daemon) -> str:
        """Start one."""
        (self.addresses[name],) = daemon.add(name)
        self._homes[name] = daemon
        return self.addresses[name]

    def remove(self, name: str) -> None:
        """``kubectl delete po <name>``."""
        self._homes.pop(name).delete(name)
        del self.addresses[name]

    def recreate(self) -> None:
        """``kubectl delete po --all``, and wait for what comes in their place."""
        for name in list(self.addresses):
            self.remove(name)
        self.create()

    def all_in(self, cidr: str) -> bool:
        """Whether every pod has an address of the CIDR."""
        return all(ip_address(address) in ip_network(cidr) for address in self.addresses.values())

    def keep(self) -> None:
        """All run on with the addresses they had: an ADD sent again gives it again."""
        for name, address in self.addresses.items():
            assert self._homes[name].add(name) == [address]


def blocks(etcd: EtcdProcess, cidr: str) -> dict[str, object]:
    """The blocks in a CIDR with their affinities."""
    found = State.of(etcd).blocks
    return {
        block: record["affinity"] for block, record in found.items() if ip_network(block).subnet_of(ip_network(cidr))
    }  # type: ignore[arg-type]


def knows(daemons: list[Daemon], name: str, *, disabled: bool) -> None:
    """``calicoctl get ippool -o wide``, as each daemon sees it."""
    wait_for(
        lambda: all(
            {view["name"]: view["disabled"] for view in daemon.get("/v1/pools")}.get(name) is disabled
            for daemon in daemons
        )
    )


def settled(etcd: EtcdProcess, daemons: list[Daemon], pods: Pods) -> State:
    """Wait until etcd and daemons agree: the pods have what they were told, in records of Calico's form."""
    state = agreed(etcd, *daemons)
    assert set(state.pods()) == set(pods.addresses.values())
    ours = {key: value for key, value in state.records.items() if key.startswith(RECORDS)}
    assert {key: found for key, value in ours.items() if (found := flaws(key, value))} == {}
    return state


@pytest.mark.parametrize("new", ["192.0.0.0/16", OLD])
def test_the_block_size_is_changed_by_a_temporary_pool(new: str, etcd: EtcdProcess, start: Start) -> None:
    """The documentation's nine steps; the new pool has the manifest's CIDR, or keeps the old one as in the capture."""
    create(etcd, "default-ipv4-ippool", OLD)
    daemons = [start("node-a"), start("node-b")]
    pods = Pods(daemons)
    pods.create()
    assert pods.all_in(OLD)
    create(etcd, "temporary-pool", TEMPORARY)  # 1
    disable(etcd, "default-ipv4-ippool")  # 2
    knows(daemons, "default-ipv4-ippool", disabled=True)  # 3
    pods.keep()
    late = pods.add("late", daemons[0])
    assert ip_address(late) in ip_network(TEMPORARY), "newly created pods are not assigned addresses from this pool"
    wait_for(lambda: len(blocks(etcd, OLD)) == 2)  # what no pod uses has gone back already
    pods.recreate()  # 4
    assert pods.all_in(TEMPORARY)
    delete(etcd, "default-ipv4-ippool")  # 5
    wait_for(lambda: not blocks(etcd, OLD))
    pods.keep()
    create(etcd, "default-ipv4-ippool", new, blockSize=27)  # 6
    disable(etcd, "temporary-pool")  # 7
    knows(daemons, "default-ipv4-ippool", disabled=False)
    knows(daemons, "temporary-pool", disabled=True)
    pods.keep()
    pods.recreate()  # 8
    assert pods.all_in(new)
    delete(etcd, "temporary-pool")  # 9
    wait_for(lambda: not blocks(etcd, TEMPORARY))
    pods.keep()
    state = settled(etcd, daemons, pods)
    assert {ip_network(block).prefixlen for block in state.blocks} == {27}
    assert set(blocks(etcd, new).values()) == {"host:node-a", "host:node-b"}


def test_a_pod_that_outlives_its_pool(etcd: EtcdProcess, start: Start) -> None:
    """The captured midway point: the old pool is deleted while a pod has one of its addresses.

    Its block is no node's then and holds nothing but that address; new blocks of another size keep clear of it; with
    the pod it disappears.
    """
    create(etcd, "default-ipv4-ippool", OLD)
    daemons = [start("node-a"), start("node-b")]
    pods = Pods(daemons)
    pods.add("old1", daemons[0])
    old2 = pods.add("old2", daemons[1])
    create(etcd, "temporary-pool", TEMPORARY)
    disable(etcd, "default-ipv4-ippool")
    knows(daemons, "temporary-pool", disabled=False)
    knows(daemons, "default-ipv4-ippool", disabled=True)
    assert ip_address(pods.add("new1", daemons[0])) in ip_network(TEMPORARY)
    pods.remove("old1")
    delete(etcd, "default-ipv4-ippool")
    wait_for(lambda: list(blocks(etcd, OLD).values()) == [None])
    state = settled(etcd, daemons, pods)
    (block,) = blocks(etcd, OLD)
    record = state.blocks[block]
    assert "affinity_claim_time" not in record
    assert [each["handle_id"] for each in record["attributes"]] == ["k8s-pod-network.old2"]
    assert state.handles["k8s-pod-network.old2"] == {"block": {block: 1}, "deleted": False}
    create(etcd, "default-ipv4-ippool", OLD, blockSize=27)
    disable(etcd, "temporary-pool")
    knows(daemons, "default-ipv4-ippool", disabled=False)
    knows(daemons, "temporary-pool", disabled=True)
    for number in range(20):
        pods.add(f"new2-{number}", daemons[1])
    pods.keep()
    fresh = set(blocks(etcd, OLD)) - {block}
    assert not any(ip_network(other).overlaps(ip_network(block)) for other in fresh)
    pods.remove("old2")
    wait_for(lambda: block not in blocks(etcd, OLD))
    assert old2 not in settled(etcd, daemons, pods).pods()


def test_pods_are_moved_from_one_pool_to_another(etcd: EtcdProcess, start: Start) -> None:
    """The documentation's other procedure: create, disable the old, recreate the pods, verify, delete the old."""
    create(etcd, "default-ipv4-ippool", "192.168.0.0/24")
    daemons = [start("node-a"), start("node-b")]
    pods = Pods(daemons)
    pods.create()
    new = "192.168.128.0/17"
    create(etcd, "new-ippool", new)
    pods.keep()
    disable(etcd, "default-ipv4-ippool")
    knows(daemons, "default-ipv4-ippool", disabled=True)
    pods.keep()
    pods.recreate()
    assert ip_address(pods.add("verify", daemons[1])) in ip_network(new)
    assert pods.all_in(new)
    wait_for(lambda: not blocks(etcd, "192.168.0.0/24"))
    delete(etcd, "default-ipv4-ippool")
    pods.keep()
    state = settled(etcd, daemons, pods)
    assert set(state.blocks) == set(blocks(etcd, new))


def test_blocks_of_one_and_of_4096_addresses(etcd: EtcdProcess, start: Start) -> None:
    """Pools of /20, /32, /116 and /128 blocks on a real store: pods of both versions, and every address back again."""
    create(etcd, "a-large", "10.20.0.0/16", blockSize=20)
    create(etcd, "b-single", "10.21.0.0/24", blockSize=32)
    for name, cidr, size in (("c-large", "fd00::/64", 116), ("d-single", "fd01::/64", 128)):
        resource = {"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr, "blockSize": size}}
        calicoctl(etcd, lambda program, resource=resource: program.apply(resource))
    daemon = start("node-a")
    pools = [("a-large", "c-large"), ("b-single", "d-single")]
    given: dict[str, list[str]] = {}
    for four, six in pools:
        ipam = {"type": "calico-ipam", "assign_ipv6": "true", "ipv4_pools": [four], "ipv6_pools": [six]}
        config = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "ipam": ipam}
        for number in range(15):
            given[f"{four}-{number}"] = daemon.add(f"{four}-{number}", config)
    assert len({address for pair in given.values() for address in pair}) == 60
    wait_for(lambda: not differences(State.of(etcd), [daemon]))  # the limit of 20 blocks keeps the reserve low
    state = State.of(etcd)
    assert set(state.pods()) == {address for pair in given.values() for address in pair}
    assert {ip_network(block).prefixlen for block in state.blocks} == {20, 32, 116, 128}
    for name in given:
        daemon.delete(name)
    wait_for(lambda: not differences(State.of(etcd), [daemon]))
    state = State.of(etcd)
    assert state.pods() == {}
    assert state.pod_handles() == set()
