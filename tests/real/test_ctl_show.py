"""``ipamctl ipam show`` beside running daemons: what it counts is what they say."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.calico_state import agreed
from tests.daemon_process import POOLS, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real


def show(etcd: EtcdProcess, *flags: str) -> list[dict[str, Any]]:
    """The items that ``ipam show`` tells of, straight from etcd."""
    command = (
        sys.executable,
        "-m",
        "ipamd.ctl",
        "--etcd-endpoints",
        etcd.endpoint,
        "ipam",
        "show",
        *flags,
        "-o",
        "json",
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={})
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return items


def shares(*daemons: Daemon) -> tuple[int, int]:
    """How many IPv4 addresses daemons have in use, and in reserve."""
    pools = [daemon.get("/v1/status")["pools"]["default-ipv4-ippool"] for daemon in daemons]
    return sum(pool["in_use"] for pool in pools), sum(pool["in_reserve"] for pool in pools)


def test_pods_and_reserve_are_counted_as_the_daemons_count_them(etcd: EtcdProcess, start: Start) -> None:
    """In the whole pool, and cell by cell in the map; a reserve is no pod's."""
    daemons = start("node-a", *POOLS), start("node-b")
    held = {daemons[number % 2].add(f"c{number}")[0] for number in range(9)}
    agreed(etcd, *daemons)
    pool, _ = show(etcd)
    assert (pool["in_use"], pool["in_reserve"]) == shares(*daemons)
    assert pool["in_use"] == len(held)
    assert pool["free"] == 65536 - len(held)
    mapped = [item for item in show(etcd, "--map", "--node", "node-b") if item["pool"] == "default-ipv4-ippool"]
    cells = [cell for item in mapped for cell in item["cells"]]
    assert (cells.count("pod"), cells.count("reserve")) == shares(daemons[1]) == (4, cells.count("reserve"))


def test_the_reserve_of_a_lost_state_file_is_quarantined(etcd: EtcdProcess, start: Start) -> None:
    """As soon as the daemon runs with a new one: until then nobody can tell."""
    daemon = start("node-a", *POOLS)
    daemon.add("c1", network())
    agreed(etcd, daemon)
    _, lost = shares(daemon)
    daemon.kill()
    (daemon.directory / "state" / "state").unlink()
    pool, _ = show(etcd)
    assert (pool["in_reserve"], pool["quarantined"], pool["in_use"]) == (lost, 0, 1)
    daemon.start()
    wait_for(lambda: show(etcd)[0]["quarantined"], 30)
    pool, _ = show(etcd)
    assert (pool["quarantined"], pool["in_use"]) == (lost, lost + 1)
    wait_for(lambda: show(etcd)[0]["in_reserve"] == shares(daemon)[1] > 0, 30)
