"""Calico's documentation on pools, acted out at the plugin's edge: its names and numbers, on etcd with real daemons.

"Assigning IP addresses based on topology": four nodes in two racks, a pool for each rack. "IPPool": ``extra-ippool``
for the nodes with ``type == "test"``, a second pool when the first is full, a pool that is disabled.
"""

import time
from ipaddress import ip_address, ip_network

import pytest

from tests.calico_objects import delete_pool, node_record, pool_record, put_node, put_pool
from tests.calico_state import State, agreed, differences
from tests.daemon_process import Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start
from tests.real.test_golden_records import FIXTURES

pytestmark = pytest.mark.real

NODES = ("kube-node-0", "kube-node-1", "kube-node-2", "kube-node-3")
RACKS = {"rack-0": "192.168.0.0/24", "rack-1": "192.168.1.0/24"}


def refusal(daemon: Daemon, container: str, config: dict[str, object] | None = None) -> tuple[int, str]:
    """The code and the words with which an ADD of this container's pod is refused."""
    answer = daemon.plugin("ADD", container, config)
    assert answer.code == 1, answer.text
    return answer.json["code"], answer.json["msg"]


def lies_in(address: str, cidr: str) -> bool:
    """Whether a CIDR holds an address."""
    return ip_address(address) in ip_network(cidr)


def blocks_in(etcd: EtcdProcess, cidr: str, node: str) -> set[str]:
    """The blocks of a CIDR that belong to a node."""
    return {
        block
        for block, record in State.of(etcd).blocks.items()
        if record["affinity"] == f"host:{node}" and ip_network(block).subnet_of(ip_network(cidr))  # type: ignore[arg-type]
    }


def test_the_records_that_these_tests_write_are_calicos_own() -> None:
    """Pools and nodes have the bytes that calicoctl wrote when it was watched."""
    captured = FIXTURES["pools"]["etcd"]
    resources = "/calico/resources/v3/projectcalico.org/"
    rack = pool_record("rack-0", "10.10.0.0/24", blockSize=28, nodeSelector='rack == "0"')
    assert rack == captured[f"{resources}ippools/rack-0"].encode()
    assert node_record({"rack": "0"}, "node-a") == captured[f"{resources}nodes/node-a"].encode()


def two_racks(etcd: EtcdProcess) -> None:
    """Label the nodes and create a pool for each rack."""
    for number, node in enumerate(NODES):
        put_node(etcd, node, rack=str(number // 2))
    for number, (name, cidr) in enumerate(RACKS.items()):
        put_pool(etcd, name, cidr, ipipMode="Always", natOutgoing=True, nodeSelector=f'rack == "{number}"')


def test_pods_get_addresses_of_the_rack_that_their_node_is_in(etcd: EtcdProcess, start: Start) -> None:
    """The default pool is deleted, nodes are labelled, each rack gets a pool: five pods, each from its rack's."""
    put_pool(etcd, "default-ipv4-ippool", "192.168.0.0/16")
    for node in NODES:
        put_node(etcd, node)
    daemons = {node: start(node) for node in NODES}
    put_pool(etcd, "default-ipv4-ippool", "192.168.0.0/16", disabled=True)
    wait_for(lambda: not State.of(etcd).blocks)
    delete_pool(etcd, "default-ipv4-ippool")
    code, words = refusal(daemons["kube-node-0"], "too-early")
    assert (code, words) == (
        100,
        ("cannot assign an IPv4 address to default/pod-too-early: there is no IPv4 pool; create one"),
    )
    two_racks(etcd)
    placed = [  # pods as the documentation's scheduler placed them
        ("nginx-5c7588df-prx4z", "kube-node-0", "rack-0"),
        ("nginx-5c7588df-s7qw6", "kube-node-1", "rack-0"),
        ("nginx-5c7588df-w7r7g", "kube-node-2", "rack-1"),
        ("nginx-5c7588df-62lnf", "kube-node-3", "rack-1"),
        ("nginx-5c7588df-pnsvv", "kube-node-2", "rack-1"),
    ]
    got = {}
    for pod, node, rack in placed:
        (got[pod],) = daemons[node].add(pod)
        assert lies_in(got[pod], RACKS[rack])
    assert len(set(got.values())) == 5
    state = agreed(etcd, *daemons.values())
    for pod, node, _rack in placed:
        assert state.pods(node)[got[pod]] == f"k8s-pod-network.{pod}"
    for number, node in enumerate(NODES):
        assert blocks_in(etcd, "192.168.0.0/16", node) == blocks_in(etcd, f"192.168.{number // 2}.0/24", node) != set()


def test_a_node_that_no_pool_selects_gets_the_error_until_it_is_labelled(etcd: EtcdProcess, start: Start) -> None:
    """The error names both pools, the node and the remedy; a label given afterwards counts for the next ADD."""
    two_racks(etcd)
    put_node(etcd, "kube-node-4", rack="2")
    daemon = start("kube-node-4", ready=False)
    wait_for(lambda: daemon.get("/readyz", quiet=True).get("reason") == "no pool serves this node")
    assert refusal(daemon, "nginx") == (
        100,
        (
            "cannot assign an IPv4 address to default/pod-nginx: "
            'pool rack-0 excludes node kube-node-4 by its nodeSelector (rack == "0"); '
            'pool rack-1 excludes node kube-node-4 by its nodeSelector (rack == "1"); label the node'
        ),
    )
    assert daemon.plugin("STATUS", "", network("1.1.0")).json["code"] == 50
    put_node(etcd, "kube-node-4", rack="1")
    (address,) = daemon.add("nginx")
    assert lies_in(address, RACKS["rack-1"])
    daemon.wait_ready()


def test_a_node_that_changes_racks_keeps_its_pods_and_nothing_else(etcd: EtcdProcess, start: Start) -> None:
    """Running pods are not renumbered, new ones get the new rack's addresses, all else of the old rack goes back."""
    two_racks(etcd)
    daemon = start("kube-node-0")
    (old,) = daemon.add("old")
    put_node(etcd, "kube-node-0", rack="1")
    wait_for(lambda: not any(lies_in(a, RACKS["rack-0"]) for v in daemon.get("/v1/reserve") for a in v["addresses"]))
    (new,) = daemon.add("new")
    assert (lies_in(old, RACKS["rack-0"]), lies_in(new, RACKS["rack-1"])) == (True, True)
    state = agreed(etcd, daemon)
    assert [a for a, _handle, _node in state.allocations() if lies_in(a, RACKS["rack-0"])] == [old]
    daemon.delete("old")
    wait_for(lambda: not blocks_in(etcd, RACKS["rack-0"], "kube-node-0"))
    assert blocks_in(etcd, RACKS["rack-1"], "kube-node-0")


def test_only_nodes_of_type_test_take_from_the_extra_pool(etcd: EtcdProcess, start: Start) -> None:
    """``nodeSelector: type=="test"``: with the default pool disabled node1 has addresses, node2 an error that says why.

    Who names the pool in the CNI configuration gets an address of it on any node.
    """
    put_pool(etcd, "default-ipv4-ippool", "10.244.0.0/18", vxlanMode="Always", natOutgoing=True)
    put_pool(etcd, "extra-ippool", "192.168.0.0/20", vxlanMode="Always", natOutgoing=True, nodeSelector='type=="test"')
    put_node(etcd, "node1", type="test")
    put_node(etcd, "node2")
    node1, node2 = start("node1"), start("node2")
    for daemon in (node1, node2):
        assert lies_in(daemon.add("first")[0], "10.244.0.0/18")
    put_pool(etcd, "default-ipv4-ippool", "10.244.0.0/18", vxlanMode="Always", natOutgoing=True, disabled=True)
    wait_for(lambda: all(d.get("/v1/pools")[0]["excluded"] == "is disabled" for d in (node1, node2)))
    assert lies_in(node1.add("second")[0], "192.168.0.0/20")
    assert refusal(node2, "second") == (
        100,
        (
            "cannot assign an IPv4 address to default/pod-second: pool default-ipv4-ippool is disabled; "
            'pool extra-ippool excludes node node2 by its nodeSelector (type=="test"); enable a pool or label the node'
        ),
    )
    for number, name in enumerate(("extra-ippool", "192.168.0.0/20")):
        named = network(ipv4_pools=[name])
        assert lies_in(node2.add(f"named-{number}", named)[0], "192.168.0.0/20")
    assert refusal(node2, "third", network(ipv4_pools=["default-ipv4-ippool"])) == (
        100,
        (
            "cannot assign an IPv4 address to default/pod-third: pool default-ipv4-ippool, which ipam.ipv4_pools of the "
            "CNI configuration names, is disabled; name an enabled pool of this IP version, by name or CIDR"
        ),
    )
    assert not agreed(etcd, node1, node2).problems()


def test_the_second_pool_serves_when_the_first_is_full(etcd: EtcdProcess, start: Start) -> None:
    """All addresses of default-ipv4-ippool first, then extra-ippool, without a failed ADD in between."""
    put_pool(etcd, "default-ipv4-ippool", "10.244.0.0/28", blockSize=28)
    put_pool(etcd, "extra-ippool", "192.168.0.0/20")
    daemon = start("node1")
    got = [daemon.add(f"c{number}")[0] for number in range(20)]
    assert [lies_in(address, "10.244.0.0/28") for address in got] == [True] * 16 + [False] * 4
    assert all(lies_in(address, "192.168.0.0/20") for address in got[16:])
    assert len(set(got)) == 20
    named = network(ipv4_pools=["default-ipv4-ippool"])
    code, words = refusal(daemon, "no-more", named)
    assert code == 101
    assert words.startswith(
        "cannot assign an IPv4 address to default/pod-no-more: pool default-ipv4-ippool (10.244.0.0/28): "
    )
    wait_for(lambda: not differences(State.of(etcd), [daemon]))


def test_a_disabled_pool_gives_no_more_and_takes_none_away(etcd: EtcdProcess, start: Start) -> None:
    """Running pods keep their address, the reserve goes back, a new pod gets one of the pool that was just made."""
    put_pool(etcd, "default-ipv4-ippool", "192.168.0.0/16")
    daemon = start("node1")
    (old,) = daemon.add("old")
    put_pool(etcd, "temporary-pool", "10.0.0.0/16")
    put_pool(etcd, "default-ipv4-ippool", "192.168.0.0/16", disabled=True)
    wait_for(lambda: daemon.get("/v1/pools")[0]["disabled"])
    assert lies_in(daemon.add("new")[0], "10.0.0.0/16")
    state = agreed(etcd, daemon)
    assert [a for a, _handle, _node in state.allocations() if lies_in(a, "192.168.0.0/16")] == [old]
    put_pool(etcd, "default-ipv4-ippool", "192.168.0.0/16")
    wait_for(lambda: not daemon.get("/v1/pools")[0]["disabled"])
    assert lies_in(daemon.add("again")[0], "192.168.0.0/16")


def test_a_pool_made_a_millisecond_ago_is_found(etcd: EtcdProcess, start: Start) -> None:
    """Twenty times: no pool, a pool, at once an ADD, on two nodes in turn: it is never refused."""
    put_pool(etcd, "six", "fd00:10:244::/64", blockSize=122)
    daemons = [start("node1"), start("node2")]
    for number in range(20):
        daemon, container = daemons[number % 2], f"c{number}"
        assert daemon.post("ADD", container)[0] == 409
        put_pool(etcd, "new", "10.0.0.0/24")
        assert daemon.post("ADD", container)[0] == 200
        daemon.delete(container)
        delete_pool(etcd, "new")
        wait_for(lambda: all([view["name"] for view in each.get("/v1/pools")] == ["six"] for each in daemons))


def test_a_refusal_while_etcd_hangs_comes_soon_and_says_so(etcd: EtcdProcess, start: Start) -> None:
    """The ADD does not wait for etcd's timeouts, and its error rests on what was known last."""
    put_pool(etcd, "six", "fd00:10:244::/64", blockSize=122)
    daemon = start("node1")
    etcd.pause()
    try:
        began = time.monotonic()
        says = refusal(daemon, "web")
        assert time.monotonic() - began < 4
    finally:
        etcd.resume()
    assert says == (
        100,
        (
            "cannot assign an IPv4 address to default/pod-web: there is no IPv4 pool; create one; this is what was known "
            "last, the store could not be asked (it did not answer within 1 s)"
        ),
    )
    assert refusal(daemon, "web")[1].endswith("create one")


def test_a_pool_whose_selector_cannot_be_read_serves_who_names_it(etcd: EtcdProcess, start: Start) -> None:
    """The error and the log point at the character; the rest of the pool is as good as ever."""
    put_pool(etcd, "typo", "10.0.0.0/24", nodeSelector="rack = 1")
    put_pool(etcd, "six", "fd00:10:244::/64", blockSize=122)
    daemon = start("node1")
    assert refusal(daemon, "web") == (
        100,
        (
            "cannot assign an IPv4 address to default/pod-web: pool typo serves nobody: its nodeSelector (rack = 1) cannot be "
            'read: expected ==, !=, in, not in, contains, starts with or ends with at character 6, not "= 1"; '
            "correct the selector"
        ),
    )  # fmt: skip
    assert daemon.get("/v1/pools")[1]["excluded"].startswith(
        "serves nobody: its nodeSelector (rack = 1) cannot be read"
    )
    assert lies_in(daemon.add("web", network(ipv4_pools=["typo"]))[0], "10.0.0.0/24")
    wait_for(lambda: "pool typo: its nodeSelector (rack = 1) cannot be read" in daemon.log.read_text())


def test_without_a_node_record_the_configured_labels_count(etcd: EtcdProcess, start: Start) -> None:
    """``--node-labels rack=1`` until Calico writes a Node; from then on its labels."""
    two_racks(etcd)
    daemon = start("node9", "--node-labels", "rack=1")
    assert daemon.get("/v1/status")["node_labels"] == {"rack": "1"}
    assert lies_in(daemon.add("first")[0], RACKS["rack-1"])
    put_node(etcd, "node9", rack="0")
    wait_for(lambda: daemon.get("/v1/pools")[0]["excluded"] == "")
    assert lies_in(daemon.add("second")[0], RACKS["rack-0"])
    assert daemon.get("/v1/status")["node_labels"] == {"rack": "0"}


def test_a_node_with_pools_for_who_names_them_only_is_ready(etcd: EtcdProcess, start: Start) -> None:
    """Nothing is claimed before somebody asks; who names no pool hears which there are."""
    put_pool(etcd, "by-name", "10.0.0.0/24", assignmentMode="Manual")
    daemon = start("node1")
    assert not State.of(etcd).blocks
    named = network("1.1.0", ipv4_pools=["by-name"])
    assert daemon.plugin("STATUS", "", named).code == 0
    assert lies_in(daemon.add("web", named)[0], "10.0.0.0/24")
    assert refusal(daemon, "other") == (
        100,
        (
            "cannot assign an IPv4 address to default/pod-other: pool by-name is Manual (only for requests that name "
            "it); name a pool"
        ),
    )


def test_labels_are_known_after_a_restart_without_etcd(etcd: EtcdProcess, start: Start) -> None:
    """The state file has them: the restarted daemon goes on serving the right rack while etcd is away."""
    two_racks(etcd)
    daemon = start("kube-node-2")
    agreed(etcd, daemon)
    etcd.kill()
    daemon.kill()
    daemon.start(ready=False)
    wait_for(lambda: daemon.get("/readyz", quiet=True) != {})
    assert lies_in(daemon.add("web")[0], RACKS["rack-1"])
