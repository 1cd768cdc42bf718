"""What answers at etcd's address has another past: a backup of the same cluster, or another cluster."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from ipamd.core import keys
from tests.calico_state import State, agreed, differences
from tests.daemon_process import POOLS, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real


def information(guid: str) -> tuple[str, bytes]:
    """ClusterInformation as Calico stores it."""
    value = {
        "kind": "ClusterInformation",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "default", "uid": "u", "creationTimestamp": "2026-11-20T23:47:40Z"},
        "spec": {"clusterGUID": guid, "datastoreReady": True},
    }
    return keys.CLUSTER_INFORMATION, json.dumps(value).encode()


def calicos(etcd: EtcdProcess) -> Mapping[str, bytes]:
    """All of Calico's records."""
    return etcd.get_prefix("/calico/")


@pytest.mark.parametrize("running", [True, False], ids=["running", "down"])
def test_pods_that_a_backup_does_not_know_are_written_again(
    etcd: EtcdProcess, start: Start, tmp_path: Path, running: bool
) -> None:
    """Etcd restored from before the pods, with the daemon running or down: it says so, and etcd is right again."""
    etcd.put(*information("a"))
    daemon = start("node-a", *POOLS, "--etcd-timeout", "1")
    daemon.add("before")
    agreed(etcd, daemon)
    etcd.save(tmp_path / "backup")
    after = {f"after{number}": daemon.add(f"after{number}") for number in range(40)}
    agreed(etcd, daemon)
    if not running:
        daemon.kill()
    etcd.restore(tmp_path / "backup")
    if not running:
        daemon.start()
    state = agreed(etcd, daemon, within=20)
    assert {a for (a,) in after.values()} <= set(state.pods("node-a"))
    assert {container: daemon.add(container) for container in after} == after
    assert "the store was set back, to a backup perhaps; writing again what living pods hold" in daemon.log.read_text()
    assert daemon.get("/v1/status")["state_file"]["set_aside"] == []


def test_an_address_that_another_node_took_after_the_restore_is_told_with_both_holders(
    etcd: EtcdProcess, start: Start, tmp_path: Path
) -> None:
    """Neither record is overwritten, the log and a metric say who has it twice, and the end of either ends it."""
    flags = (
        "--default-pools-ipv4-cidr",
        "10.0.0.0/26",
        "--reserve-min",
        "1",
        "--reserve-max",
        "1",
        "--etcd-timeout",
        "1",
    )
    first = start("node-a", *flags)
    agreed(etcd, first)
    etcd.save(tmp_path / "backup")
    pods = {first.add(f"mine{number}")[0]: f"pod-mine{number}" for number in range(10)}
    agreed(etcd, first)
    first.kill()
    etcd.restore(tmp_path / "backup")
    second = start("node-b", *flags)
    theirs = {second.add(f"theirs{number}")[0]: f"pod-theirs{number}" for number in range(30)}
    both = sorted(pods.keys() & theirs.keys())
    assert both
    wait_for(lambda: not differences(State.of(etcd), [second]))
    first.start(ready=False)
    wait_for(lambda: first.get("/readyz", quiet=True) and _contested(first) == len(both), 20)
    wait_for(lambda: all(f"{address} has two holders" in first.log.read_text() for address in both))
    for address in both:
        said = (
            f"address {address} has two holders: default/{pods[address]} on this node, and according to the store "
            f"default/{theirs[address]} on node node-b; delete one of the two pods"
        )
        assert said in first.log.read_text()
    assert State.of(etcd).pods("node-b").keys() == theirs.keys()
    assert {a for a in pods if a not in theirs} <= set(State.of(etcd).pods("node-a"))
    fresh = {first.add(f"fresh{number}")[0] for number in range(3)}
    assert not fresh & (theirs.keys() | pods.keys())
    for address in both:
        first.delete(pods[address].removeprefix("pod-"))
    wait_for(lambda: not _contested(first))
    assert State.of(etcd).pods("node-b").keys() == theirs.keys()


def _contested(daemon: Daemon) -> float:
    lines = daemon.request("GET", "/metrics")[1].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'state="contested"' in line)


@pytest.mark.parametrize("running", [True, False], ids=["running", "down"])
def test_nothing_of_the_old_state_reaches_another_cluster(etcd: EtcdProcess, start: Start, running: bool) -> None:
    """The endpoints lead to another cluster: the daemon ends with code 75, its state is kept, and begins anew there."""
    etcd.put(*information("old"))
    daemon = start("node-a", *POOLS, "--etcd-timeout", "1")
    for number in range(5):
        daemon.add(f"old{number}")
    agreed(etcd, daemon)
    etcd.pause()
    daemon.add("unflushed")
    if running:
        daemon.signal(signal.SIGSTOP)
    else:
        daemon.kill()
    etcd.resume()
    etcd.wipe()
    etcd.put(*information("new"))
    before = calicos(etcd)
    if running:
        daemon.signal(signal.SIGCONT)
    else:
        daemon.start(ready=False)
    wait_for(lambda: not daemon.lives, 20, lambda: daemon.log.read_text()[-2000:])
    assert daemon.kill() == 75
    assert calicos(etcd) == before
    kept = daemon.directory / "state" / "state.cluster-old"
    assert b"clusterGUID" in kept.read_bytes()
    log = daemon.log.read_text()
    assert "the store is cluster new" in log
    assert str(kept) in log
    daemon.start()
    assert daemon.get("/v1/allocations") == []
    assert daemon.metric("ipamd_state_files_set_aside") == 1
    assert daemon.add("fresh")
    agreed(etcd, daemon)
    assert set(State.of(etcd).pods().values()) == {"k8s-pod-network.fresh"}


def test_another_cluster_says_nothing_of_host_local_ranges(etcd: EtcdProcess, start: Start) -> None:
    """They are never in a store: what living pods have of them goes over, is answered again and given to nobody else."""
    ranges = network(kind="host-local", subnet="10.9.0.0/28")
    etcd.put(*information("old"))
    daemon = start("node-a", *POOLS, "--etcd-timeout", "1")
    agreed(etcd, daemon)
    held = {f"c{number}": daemon.add(f"c{number}", ranges, name="host-local") for number in range(6)}
    daemon.kill()
    etcd.wipe()
    etcd.put(*information("new"))
    daemon.start(ready=False)
    assert daemon.wait_end() == 75
    daemon.start()
    assert {container: daemon.add(container, ranges, name="host-local") for container in held} == held
    fresh = [daemon.add(f"fresh{number}", ranges, name="host-local") for number in range(7)]
    assert not [addresses for addresses in fresh if addresses in held.values()]
    assert daemon.plugin("ADD", "one-more", ranges, name="host-local").json["code"] == 106
    daemon.delete("c0", ranges, name="host-local")
    assert daemon.add("last", ranges, name="host-local") == held["c0"]
