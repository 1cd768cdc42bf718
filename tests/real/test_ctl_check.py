"""``ipamctl ipam check`` on a running daemon, while pods come and go."""

import json
import subprocess
import sys
from typing import Any

import pytest

from ipamd.core import keys
from tests.daemon_process import POOLS, wait_for
from tests.etcd_process import EtcdProcess
from tests.nodes import pool_record
from tests.real.conftest import Start

pytestmark = pytest.mark.real


def check(*flags: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a check, and its report."""
    command = (sys.executable, "-m", "ipamd.ctl", *flags, "ipam", "check", "-o", "json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={})
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_daemon_at_work_is_in_order(start: Start, etcd: EtcdProcess) -> None:
    """While its pods come and go nothing is found; a handle that a stranger left is, on the way through the daemon and without it."""
    daemon = start("node-a", *POOLS)
    for number in range(20):
        daemon.add(f"c{number}")
    for number in range(0, 20, 2):
        daemon.delete(f"c{number}")
    code, report = check("--socket", str(daemon.socket))
    assert (code, report["findings"], report["node"]) == (0, [], "node-a")
    etcd.put(keys.handle_key("net.gone"), b'{"block":{"192.168.0.0/26":1},"deleted":false}')
    for flags in (("--socket", str(daemon.socket)), ("--etcd-endpoints", etcd.endpoint)):
        code, report = check(*flags)
        assert code == 1
        assert [found["object"] for found in report["findings"]] == ["handle net.gone"]


def test_borrowed_addresses_and_tunnels_are_in_order(start: Start, etcd: EtcdProcess) -> None:
    """Two nodes in a pool of two blocks borrow from one another, one of them has a tunnel address: nothing is found."""
    etcd.put(*pool_record("small", "10.70.0.0/28", blockSize=29))
    daemons = [start("node-a"), start("node-b")]
    assert daemons[0].request("POST", "/v1/tunnel-addresses", b'{"type": "ipipTunnelAddress"}')[0] == 200
    for number in range(11):
        daemons[0].add(f"a{number}")
    daemons[1].add("b")
    for daemon in daemons:
        wait_for(lambda daemon=daemon: daemon.get("/v1/status")["flush"]["unflushed"] == 0)
        code, report = check("--socket", str(daemon.socket))
        assert (code, report["findings"]) == (0, [])
    assert report["counts"]["allocations"] >= 13


def test_a_living_pods_address_is_not_lost(start: Start) -> None:
    """Refused with the pod's name; if somebody insists, the daemon takes it back for its pod, and nobody else has had it."""
    daemon = start("node-a", *POOLS)
    (address,) = daemon.add("c1")
    wait_for(lambda: daemon.get("/v1/status")["flush"]["unflushed"] == 0)
    line = (sys.executable, "-m", "ipamd.ctl", "--socket", str(daemon.socket), "ipam", "release", "--yes", "--ip")
    done = subprocess.run((*line, address), capture_output=True, text=True, check=False, timeout=60, env={})
    told = f"ipamctl: cannot release {address}: pod default/pod-c1 of this node has it, for container c1; "
    assert (done.returncode, done.stderr) == (1, told + "delete the pod, or say --force\n")
    reserved = daemon.get("/v1/reserve")[0]["addresses"][0]
    done = subprocess.run((*line, reserved), capture_output=True, text=True, check=False, timeout=60, env={})
    assert done.returncode == 1
    assert "it is in reserve of node node-a, whose daemon may give it to a pod" in done.stderr
    subprocess.run((*line, address, "--force"), check=True, capture_output=True, timeout=60, env={})
    wait_for(lambda: "somebody freed addresses of living pods" in daemon.log.read_text())
    wait_for(lambda: daemon.get("/v1/status")["flush"]["unflushed"] == 0)
    assert daemon.add("c1") == [address]
    assert all(daemon.add(f"other{number}") != [address] for number in range(5))
    code, report = check("--socket", str(daemon.socket))
    assert (code, report["findings"]) == (0, [])


def test_a_pool_is_split_under_pods(start: Start) -> None:
    """Pods keep their addresses, blocks and reserve stay in use, new pods get theirs, and all is in order."""
    daemon = start("node-a", *POOLS)
    before = daemon.add("c1")
    command = (sys.executable, "-m", "ipamd.ctl", "--socket", str(daemon.socket), "ipam", "split", "4")
    subprocess.run((*command, "--name", "default-ipv4-ippool"), capture_output=True, check=True, timeout=60, env={})
    wait_for(lambda: len(daemon.get("/v1/pools")) == 5)
    blocks = daemon.get("/v1/blocks")
    assert {each["pool"] for each in blocks if each["in_use"]} <= {
        "default-ipv6-ippool",
        *(f"split-default-ipv4-ippool-{number}" for number in range(4)),
    }
    for number in range(30):
        daemon.add(f"after{number}")
    assert daemon.add("c1") == before
    daemon.delete("c1")
    code, report = check("--socket", str(daemon.socket))
    assert (code, report["findings"], report["counts"]["pools"]) == (0, [], 5)
