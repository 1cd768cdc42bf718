"""``ipamctl explain`` gives for each error text of the address rules the same reason: what the plugin said, word for word."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code
from ipamd.core.records import attribute, new_block
from tests.daemon_process import Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.nodes import pool_record
from tests.real.conftest import Start

pytestmark = pytest.mark.real

FAR = {"namespace": "shop", "node": "far", "pod": "cart"}
RANGES = {"ranges": [[{"subnet": "10.1.0.0/30", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.2"}]]}

ELSEWHERE = {
    Code.INCOMPATIBLE_VERSION: "of the network configuration, not of an address",
    Code.CONTAINER_UNKNOWN: "of CHECK",
    Code.INVALID_ENVIRONMENT: "of the plugin's environment, which the command does not have",
    Code.IO_FAILURE: "of the state file",
    Code.UNDECODABLE: "of the network configuration",
    Code.NOT_AVAILABLE: "of STATUS",
    Code.DELETED: "of a DEL that came while the ADD was under way: there is no next ADD of that container",
    Code.POD_UNKNOWN: "`tests/api/test_explain.py`, with pods that Kubernetes does not have",
    Code.MISMATCH: "of CHECK",
}
"""Codes that no rule of addresses gives, or that another test explains."""


def asking(address: str, **config: object) -> dict[str, object]:
    """A configuration that asks for an address."""
    return {**network(), "args": {"cni": {"ips": [address]}}, **config}


def put(etcd: EtcdProcess, name: str, cidr: str, **spec: object) -> None:
    """Make a pool."""
    etcd.put(*pool_record(name, cidr, **spec))


def others_block(etcd: EtcdProcess, cidr: str, held: int) -> None:
    """A block of another node, the first so many of its addresses in use."""
    record = new_block(parse_cidr(cidr), keys.host_affinity("far"), 1000)
    for ordinal in range(held):
        record.take({ordinal}, attribute("k8s-pod-network.far", FAR))
    etcd.put(keys.block_key(parse_cidr(cidr)), record.encode())
    etcd.put(keys.affinity_key("far", parse_cidr(cidr)), b'{"state":"confirmed","deleted":false}')


class Refusals:
    """ADDs that are refused, each compared with what the command says of it."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self._daemon, self._file = daemon, folder / "net.conf"
        self.codes: list[int] = []

    def __call__(self, config: dict[str, object], code: Code) -> str:
        """The text of an ADD's error, which the command gives too, in words and as data."""
        pod = f"pod-p{len(self.codes)}"
        error = self._daemon.plugin("ADD", pod.removeprefix("pod-"), config).json
        assert error.get("code") == code, error
        self._file.write_text(json.dumps(config))
        told = self._told(pod)
        assert re.search(rf"refused with code {int(code)}:\n  {re.escape(error['msg'])}\n", told), (error, told)
        data = json.loads(self._told(pod, "-o", "json"))
        assert {"code": int(code), "msg": error["msg"]} in [data["refusal"], *(d["refusal"] for d in data["decisions"])]
        self.codes.append(code)
        return str(error["msg"])

    def _told(self, pod: str, *flags: str) -> str:
        command = (
            sys.executable,
            "-m",
            "ipamd.ctl",
            "--socket",
            str(self._daemon.socket),
            "explain",
            "pod",
            f"default/{pod}",
        )
        done = subprocess.run(
            (*command, "--cni-config", str(self._file), *flags),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={},
        )
        return done.stdout


def test_every_error_of_the_address_rules(start: Start, etcd: EtcdProcess, tmp_path: Path) -> None:
    """One daemon through a cluster's misfortunes: each code that a rule of addresses gives, in each of its texts."""
    daemon = start("node-a", ready=False)
    wait_for(lambda: daemon.get("/v1/status", quiet=True).get("store", {}).get("synced"))
    refused = Refusals(daemon, tmp_path)
    assert "there is no IPv4 pool" in refused(network(), Code.NO_POOL)

    put(etcd, "off", "10.60.0.0/24", disabled=True)
    put(etcd, "manual", "10.61.0.0/24", assignmentMode="Manual")
    put(etcd, "tunnels", "10.62.0.0/24", allowedUses=["Tunnel"])
    put(etcd, "rack", "10.63.0.0/24", nodeSelector='rack == "1"')
    put(etcd, "team", "10.64.0.0/24", namespaceSelector="has(team)", allowedUses=["Workload"])
    wait_for(lambda: len(daemon.get("/v1/pools")) == 5)
    everybody = refused(network(), Code.NO_POOL)
    assert all(f"pool {name} " in everybody for name in ("off", "manual", "tunnels", "rack", "team"))
    for name in ("off", "tunnels", "nope"):
        assert f"pool {name}, which ipam.ipv4_pools" in refused(network(ipv4_pools=[name]), Code.NO_POOL)
    for address in ("10.9.9.9", "10.60.0.1", "10.62.0.1"):
        assert address in refused(asking(address), Code.ADDRESS_NOT_ASSIGNABLE)

    put(etcd, "small", "10.72.0.0/29", blockSize=30)
    others_block(etcd, "10.72.0.0/30", 4)
    others_block(etcd, "10.72.0.4/30", 3)
    etcd.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    wait_for(lambda: daemon.get("/v1/explain?node")["strict_affinity"])
    assert "shop/cart" in refused(asking("10.72.0.1"), Code.ADDRESS_TAKEN)
    assert "strict" in refused(asking("10.72.0.7"), Code.ADDRESS_NOT_ASSIGNABLE).lower()
    refused(network(ipv4_pools=["small"]), Code.EXHAUSTED)
    put(etcd, "more", "10.73.0.0/24", blockSize=26, assignmentMode="Manual")
    etcd.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":false}')
    wait_for(lambda: not daemon.get("/v1/explain?node")["auto_allocate_blocks"])
    refused(network(ipv4_pools=["more"]), Code.BLOCK_LIMIT)

    lan = network("1.0.0", "host-local", **RANGES)
    daemon.add("first", lan)
    assert "no free address" in refused(lan, Code.RANGE_EXHAUSTED)
    assert "container first" in refused({**lan, "args": {"cni": {"ips": ["10.1.0.2"]}}}, Code.ADDRESS_TAKEN)
    wide = {**network("1.0.0", "host-local", ranges=[[{"subnet": "10.3.0.0/24"}]]), "name": "wide"}
    assert "10.2.0.2" in refused({**wide, "args": {"cni": {"ips": ["10.2.0.2"]}}}, Code.ADDRESS_NOT_ASSIGNABLE)

    assert "node other" in refused({**network(), "nodename": "other"}, Code.INVALID_CONFIGURATION)
    refused(network(assign_ipv4="false", assign_ipv6="false"), Code.INVALID_CONFIGURATION)

    etcd.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
    wait_for(lambda: daemon.get("/v1/status")["store"]["locked"])
    assert "the datastore is locked" in refused(network(), Code.TRY_AGAIN_LATER)

    assert {*refused.codes} | {*ELSEWHERE} == {*Code}
    assert not {*refused.codes} & {*ELSEWHERE}
