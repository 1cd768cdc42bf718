"""What a pod's start costs etcd: nothing before the reply, and little after it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.calico_state import agreed
from tests.daemon_process import POOLS, Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

BURST = 1000
MOST_TRANSACTIONS = 80
"""For a burst of 1,000 ADDs."""


def calls(daemon: Daemon) -> dict[str, int]:
    """How often the daemon called etcd, by kind, as it says itself."""
    made: dict[str, int] = daemon.get("/v1/status")["store"]["calls"]
    return made


def served(etcd: EtcdProcess) -> dict[str, float]:
    """How many calls etcd began to serve, by method, and how many writes it committed, as it says itself."""
    counted = {"Txn": 0.0, "Range": 0.0, "Put": 0.0, "DeleteRange": 0.0, "proposals": 0.0}
    for name, value in etcd.metrics().items():
        if name.startswith("grpc_server_started_total") and 'grpc_service="etcdserverpb.KV"' in name:
            counted[name.partition('grpc_method="')[2].partition('"')[0]] = value
        elif name == "etcd_server_proposals_committed_total":
            counted["proposals"] = value
    return counted


def test_no_call_to_etcd_is_made_between_an_add_and_its_reply(etcd: EtcdProcess, start: Start) -> None:
    """With a reserve, ADD, repeated ADD and DEL are answered without any call to etcd, of whatever kind."""
    # Changes are gathered for 2 s before they are sent, so what happens meanwhile happens on the way to a reply.
    daemon = start("node-a", *POOLS, "--flush-linger", "2", "--reserve-min", "40")
    agreed(etcd, daemon)
    before, etcds = calls(daemon), served(etcd)
    for number in range(30):
        assert daemon.post("ADD", f"c{number}")[0] == 200
        assert calls(daemon) == before
    assert daemon.post("ADD", "c0")[0] == 200
    assert daemon.post("DEL", "c1")[0] == 200
    assert daemon.post("DEL", "unknown")[0] == 200
    daemon.add("by-plugin")
    assert calls(daemon) == before
    now = served(etcd)
    assert [now[method] - etcds[method] for method in ("Txn", "Range", "Put", "DeleteRange")] == [0, 0, 0, 0]
    assert daemon.get("/v1/status")["flush"]["unflushed"] > 0, "nothing was written since: the count shows nothing"


def test_a_burst_of_a_thousand_adds_costs_etcd_few_transactions(etcd: EtcdProcess, start: Start) -> None:
    """1,000 ADDs of 50 clients cost at most 80 transactions, by the daemon's count and etcd's; all is flushed."""
    daemon = start("node-a", *POOLS)
    agreed(etcd, daemon)
    before, etcds, revision = calls(daemon), served(etcd), etcd.revision()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda number: daemon.post("ADD", f"c{number}"), range(BURST)))
    assert {status for status, _ in answers} == {200}
    wait_for(lambda: daemon.get("/v1/status")["flush"]["unflushed"] == 0, 20)
    spent = {kind: count - before[kind] for kind, count in calls(daemon).items()}
    now = served(etcd)
    assert spent["commit"] <= MOST_TRANSACTIONS
    assert now["Txn"] - etcds["Txn"] <= MOST_TRANSACTIONS
    assert etcd.revision() - revision <= MOST_TRANSACTIONS
    assert len(agreed(etcd, daemon).pods()) == BURST
