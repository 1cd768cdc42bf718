"""A real daemon whose node another host serves; and its own record after ``kill -9``, and after an orderly stop."""

import json
from typing import Any

import pytest

from tests.daemon_process import POOLS, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

KEY = "/calico/ipamd/nodes/node-a"
OTHER = {"host": "beta", "machine": "7c", "boot": "another", "instance": "bbbbbbbb"}
WHO = "host beta (machine id 7c, state file bbbbbbbb) serves"


def test_a_node_that_another_host_serves(etcd: EtcdProcess, start: Start) -> None:
    """It starts, says so, refuses ADD and takes DEL; when the other is gone it serves, without a restart."""
    etcd.put(KEY, json.dumps(OTHER).encode())
    daemon = start("node-a", *POOLS, ready=False)
    reason = f"{WHO} this node, too, and was there first"
    wait_for(lambda: daemon.get("/readyz", quiet=True) == {"ready": False, "reason": reason}, 15)
    refused = daemon.plugin("ADD", "a").json
    assert refused["code"] == 11
    assert f"{WHO} node node-a, too, and was there first; give one of the two hosts another node name" in refused["msg"]
    assert daemon.get("/v1/status")["yields_to"] == WHO.removeprefix("host ").removesuffix(" serves")
    daemon.delete("a")
    assert "yielding: another host serves this node and was there first" in daemon.log.read_text()
    etcd.delete(KEY)
    daemon.wait_ready()
    daemon.add("a")
    assert json.loads(etcd.get_prefix(KEY)[KEY])["instance"] != OTHER["instance"]


def written(etcd: EtcdProcess) -> object:
    """The revision at which the record was last written; None if there is none."""
    found: Any = etcd.gateway("kv/range", key=KEY.encode()).get("kvs", [None])
    return found[0] and found[0]["mod_revision"]


def test_a_daemon_finds_its_own_record_again(etcd: EtcdProcess, start: Start) -> None:
    """After ``kill -9`` it takes it over at once; a stop in order leaves none."""
    daemon = start("node-a", *POOLS)
    wait_for(lambda: written(etcd))
    before, revision = etcd.get_prefix(KEY), written(etcd)
    daemon.kill()
    assert written(etcd) == revision
    daemon.start()
    wait_for(lambda: written(etcd) != revision)
    daemon.add("a")
    assert etcd.get_prefix(KEY) == before
    assert "yielding" not in daemon.log.read_text()
    daemon.stop()
    assert etcd.get_prefix(KEY) == {}
