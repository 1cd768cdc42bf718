"""A running daemon says why: explanations, events and status, beside the plugin and a real etcd."""

import json
import threading
from urllib.parse import quote

import pytest

from ipamd.core import keys
from tests.daemon_process import Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.nodes import pool_record
from tests.real.conftest import Start

pytestmark = pytest.mark.real


def put_pool(etcd: EtcdProcess, name: str, cidr: str, **spec: object) -> None:
    """Make or change a pool as an operator does."""
    key, value = pool_record(name, cidr, **spec)
    etcd.put(key, value)


def refused(daemon: Daemon, container: str, **ipam: object) -> tuple[int, str]:
    """Code and text of an ADD by the plugin that is refused, and the same as explained for the pod."""
    config = network(**ipam)  # type: ignore[arg-type] # keys of ipam
    error = daemon.plugin("ADD", container, config).json
    told = daemon.get(f"/v1/explain?pod=default/pod-{container}&config={quote(json.dumps(config))}")
    refusal = told["refusal"] or told["decisions"][0]["refusal"]
    assert (refusal["code"], refusal["msg"]) == (error["code"], error["msg"])
    return error["code"], error["msg"]


def test_the_plugins_error_is_explained(etcd: EtcdProcess, start: Start) -> None:
    """Of a pool that is full, at the limit of blocks, disabled, and of addresses that somebody has."""
    put_pool(etcd, "small", "10.70.0.0/30", blockSize=30)
    one, two = start("node-a"), start("node-b", ready=False)
    wait_for(lambda: two.get("/v1/status", quiet=True).get("store", {}).get("synced"))
    taken = [one.add(f"a{number}")[0] for number in range(4)]
    code, msg = refused(two, "b")
    assert code == 101, msg
    told = one.get(f"/v1/explain?address={taken[2]}")
    assert (told["state"], told["holder"]["pod"], told["holder"]["container"]) == ("pod", "pod-a2", "a2")
    wait_for(lambda: one.get("/v1/status")["flush"]["unflushed"] == 0)
    told = two.get(f"/v1/explain?address={taken[2]}")
    assert (told["state"], told["what"]) == ("pod", "default/pod-a2 on node node-a has it")
    etcd.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":false}')
    put_pool(etcd, "more", "10.71.0.0/16")
    assert refused(two, "b", ipv4_pools=["more"])[0] == 102
    put_pool(etcd, "more", "10.71.0.0/16", disabled=True)
    assert refused(two, "b", ipv4_pools=["more"])[0] == 100
    asking = {**network(), "args": {"cni": {"ips": [taken[1]]}}}
    error = two.plugin("ADD", "c", asking).json
    told = two.get(f"/v1/explain?pod=default/pod-c&config={quote(json.dumps(asking))}")["decisions"][0]["refusal"]
    assert (error["code"], told) == (104, {"code": 104, "msg": error["msg"]})
    assert two.get("/v1/explain?node")["blocks"] == []


def test_events_and_status_of_a_running_daemon(etcd: EtcdProcess, start: Start) -> None:
    """Who follows sees the block come, the ADD, the refusal and the DEL; the status counts them and keeps the error."""
    put_pool(etcd, "p", "10.70.0.0/24")
    daemon = start("node-a")
    (address,) = daemon.add("a")
    error = daemon.plugin("ADD", "b", network(ipv4_pools=["nope"])).json
    seen = daemon.get("/v1/events")
    kinds = [event["kind"] for event in seen["events"]]
    assert next(event for event in seen["events"] if event["kind"] == "block")["values"]["share"] == "own"
    assert kinds[-2:] == ["add", "add"]
    assert seen["events"][-2]["addresses"] == [address]
    assert "serving" in [event["what"] for event in seen["events"]]
    daemon.delete("a")
    followed = daemon.get(f"/v1/events?after={seen['last']}&wait=5")
    assert [(event["kind"], event["pod"]) for event in followed["events"]] == [("del", "pod-a")]
    status = daemon.get("/v1/status")
    assert status["requests"] == {"ADD": {"0": 1, "100": 1}, "DEL": {"0": 1}}
    assert [(e["pod"], e["code"], e["what"]) for e in status["errors"]] == [("pod-b", 100, error["msg"])]
    assert status["uptime_seconds"] > 0
    assert status["pools"]["p"]["blocks"] == 1


def test_a_follower_does_not_keep_the_daemon_from_stopping(etcd: EtcdProcess, start: Start) -> None:
    """A question that waits for the next event is answered when the daemon stops, and before it ends."""
    put_pool(etcd, "p", "10.70.0.0/24")
    daemon = start("node-a")
    answers: list[object] = []
    last = daemon.get("/v1/events")["last"]
    follower = threading.Thread(target=lambda: answers.append(daemon.get(f"/v1/events?after={last + 10}&wait=30")))
    follower.start()
    wait_for(lambda: daemon.metric("ipamd_connections") >= 2)
    assert daemon.stop() == 0
    follower.join(10)
    assert len(answers) == 1
