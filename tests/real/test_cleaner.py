"""Real daemons on one etcd: exactly one clears away what nobody owns, and another goes on when it is killed."""

import json

import pytest

from tests.calico_state import IPAM, State, agreed
from tests.daemon_process import POOLS, Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

QUICK = ("--cleaner-interval", "0.1", "--cleaner-grace", "5")
NODES = "/calico/resources/v3/projectcalico.org/nodes/"


def leak(etcd: EtcdProcess, name: str) -> str:
    """Write a handle that no block knows; returns its key."""
    key = f"{IPAM}handle/k8s-pod-network.{name}"
    etcd.put(key, b'{"block":{"10.9.0.0/26":1},"deleted":false}')
    return key


def delete_node(etcd: EtcdProcess, node: str) -> None:
    """As calicoctl does: the affinities go, and the blocks that hold addresses are nobody's from then on.

    What its daemon said of itself is gone, too: as if it had died a while ago.
    """
    etcd.delete(f"/calico/ipamd/nodes/{node}")
    for key, value in etcd.get_prefix(f"{IPAM}assignment/").items():
        block = json.loads(value)
        if block["affinity"] == f"host:{node}":
            etcd.put(key, json.dumps({**block, "affinity": None}).encode())
    for key in etcd.get_prefix(f"{IPAM}host/{node}/"):
        etcd.delete(key)


def the_one(daemons: list[Daemon]) -> list[Daemon]:
    """Those that say that they are the one."""
    return [daemon for daemon in daemons if daemon.metric("ipamd_cleaner")]


def removed(daemon: Daemon) -> tuple[float, float]:
    """How many handles and addresses it says that it cleared away."""
    return daemon.metric("ipamd_leaked_handles_total"), daemon.metric("ipamd_cleaned_addresses_total")


def test_one_of_two_cleans_and_the_other_goes_on_when_it_is_killed(etcd: EtcdProcess, start: Start) -> None:
    """What leaked, and what a deleted node had in reserve, goes; what pods have stays, whoever of the two dies."""
    etcd.put(NODES + "node-a", b'{"kind":"Node","metadata":{"name":"node-a"},"spec":{}}')
    gone = start("node-gone", *POOLS)
    (kept,) = gone.add("of-the-gone")
    agreed(etcd, gone)
    gone.kill()
    delete_node(etcd, "node-gone")
    reserve = {a for a, handle, _n in State.of(etcd).allocations() if handle.startswith("ipamd-reserve-node-gone")}
    assert reserve
    key = leak(etcd, "first")
    daemons = [start("node-a", *QUICK), start("node-b", *QUICK)]
    held = {address for daemon in daemons for address in daemon.add(f"pod-of-{daemon.node}")}
    wait_for(lambda: key not in etcd.get_prefix(key), 60)
    wait_for(lambda: not any(h.startswith("ipamd-reserve-node-gone") for _a, h, _n in State.of(etcd).allocations()), 60)
    (first,) = the_one(daemons)
    (second,) = (daemon for daemon in daemons if daemon is not first)
    wait_for(lambda: (removed(first), removed(second)) == ((1, len(reserve)), (0, 0)))
    assert "released what a node that is gone had in reserve" in first.log.read_text()
    assert json.loads(etcd.get_prefix("/calico/ipamd/cleaner")["/calico/ipamd/cleaner"])["node"] == first.node
    key = leak(etcd, "second")
    first.kill()
    wait_for(lambda: key not in etcd.get_prefix(key), 60)
    assert the_one([second]) == [second]
    wait_for(lambda: removed(second) == (1, 0))
    assert set(State.of(etcd).pods()) == {kept, *held}


def test_a_daemon_that_stops_in_order_leaves_no_key(etcd: EtcdProcess, start: Start) -> None:
    """Nobody has to wait for its time to be over; and one that takes no part is never the one."""
    idle = start("node-b", *POOLS, "--cleaner-interval", "0")
    daemon = start("node-a", *QUICK)
    wait_for(lambda: the_one([daemon]) == [daemon])
    assert daemon.get("/v1/status")["cleaner"] == {"here": True, "handles": 0, "addresses": 0}
    daemon.stop()
    assert etcd.get_prefix("/calico/ipamd/cleaner") == {}
    assert the_one([idle]) == []
