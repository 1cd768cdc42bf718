"""Drain of a real daemon on a real etcd, by the route and at its end."""

import pytest

from tests.calico_state import State
from tests.daemon_process import POOLS, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real


def test_a_drained_node_leaves_calicos_own_records(etcd: EtcdProcess, start: Start) -> None:
    """Asked until it says so; not ready meanwhile; then nothing in etcd bears ipamd's name but who serves, and the pod keeps its own."""
    daemon = start("node-a", *POOLS)
    (address,) = daemon.add("a")
    progress = daemon.request("POST", "/v1/drain")[1]
    assert b'"draining": true' in progress
    assert daemon.get("/readyz") == {"ready": False, "reason": "the node is being drained"}
    assert daemon.metric("ipamd_draining") == 1
    wait_for(lambda: b'"drained": true' in daemon.request("POST", "/v1/drain")[1])
    state = State.of(etcd)
    assert set(state.pods()) == {address}
    assert state.handles.keys() == {"k8s-pod-network.a"}
    # Who serves may be written after the drain, which took a tenth of a second.
    wait_for(lambda: [key for key in etcd.get_prefix("/") if "ipamd" in key] == ["/calico/ipamd/nodes/node-a"])
    assert daemon.plugin("ADD", "b").json["code"] == 11
    daemon.request("POST", "/v1/undrain")
    daemon.wait_ready()
    assert daemon.metric("ipamd_draining") == 0
    daemon.add("b")


def test_a_daemon_may_drain_at_its_end(etcd: EtcdProcess, start: Start) -> None:
    """With drain_on_exit a stop leaves what pods hold, and a start finds it again."""
    daemon = start("node-a", *POOLS, "--drain-on-exit", "true")
    addresses = daemon.add("a")
    assert daemon.stop() == 0
    assert set(State.of(etcd).pods()) == set(addresses)
    assert not any("ipamd" in key for key in etcd.get_prefix("/"))
    daemon.start()
    assert daemon.add("a") == addresses
    daemon.add("b")


def test_a_drain_lasts_over_a_restart(start: Start) -> None:
    """Whoever drained a node before its maintenance finds it drained afterwards, until he ends that."""
    daemon = start("node-a", *POOLS)
    (address,) = daemon.add("a")
    wait_for(lambda: b'"drained": true' in daemon.request("POST", "/v1/drain")[1])
    for stop in (daemon.kill, daemon.stop):
        stop()
        daemon.start(ready=False)
        wait_for(lambda: daemon.get("/readyz", quiet=True) == {"ready": False, "reason": "the node is being drained"})
        assert daemon.plugin("ADD", "b").json["code"] == 11
        assert daemon.add("a") == [address]
    assert "since before this start; POST /v1/undrain ends it" in daemon.log.read_text()
    daemon.request("POST", "/v1/undrain")
    daemon.wait_ready()
    daemon.kill()
    daemon.start()
    daemon.add("b")
