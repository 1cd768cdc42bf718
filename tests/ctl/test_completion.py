"""Completion of the names of records, from wherever the command line says that they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from ipamd.core import keys
from ipamd.ctl.main import cli
from tests.ctl.places import BehindSocket, Ctl, capture
from tests.etcd_process import free_port


def completed(*words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    *before, last = words
    found = BashComplete(cli, {}, "ipamctl", "_IPAMCTL_COMPLETE").get_completions(list(before), last)
    return [item.value for item in found]


LINES = {
    "get ippool ": ["manual", "nobody", "off", "rack-0", "rack-1", "tunnels"],
    "get ippools rack": ["rack-0", "rack-1"],
    "get ippool rack-0 rack": ["rack-1"],
    "delete pool ma": ["manual"],
    "patch ippool tu": ["tunnels"],
    "label node ": ["node-a", "node-b"],
    "get ipreservation ": ["resv"],
    "get blockaffinity ipam-block-affinity-10-10-1": ["ipam-block-affinity-10-10-1-144-28"],
    "ipam split 2 --name rack-1": ["rack-1"],
    "ipam split 2 --cidr 10.10.3": ["10.10.3.0/24"],
    "explain node node-b": ["node-b"],
    "ipam show --map --node ": ["node-a", "node-b"],
    "get nonsense ": [],
}


@pytest.mark.parametrize("line", LINES)
def test_names_of_records(ctl: Ctl, line: str) -> None:
    """Pools, nodes, reservations and the affinities of blocks, where a command takes their names."""
    ctl.load(capture("pools")["etcd"])
    assert completed(*ctl.place.flags, *line.split(" ")) == LINES[line]


def test_flags_may_stand_after_the_command(daemon: BehindSocket) -> None:
    """As for the command itself."""
    daemon.load({key: value.encode() for key, value in capture("pools")["etcd"].items()})
    assert completed("get", *daemon.flags, "ippool", "rack-0", "") == ["manual", "nobody", "off", "rack-1", "tunnels"]


def test_pods_of_the_daemon(daemon: BehindSocket) -> None:
    """Those that have an address of this node, each once; without a daemon there are none."""
    daemon.said["/v1/allocations"] = [{"namespace": "shop", "pod": pod} for pod in ("cart", "cart", "till", "")]
    assert completed(*daemon.flags, "explain", "pod", "shop/") == ["shop/cart", "shop/till"]
    assert completed("--db", "/none", "explain", "pod", "") == []


def test_nothing_is_said_where_nobody_answers(tmp_path: Path) -> None:
    """Neither a daemon that is not there nor a store disturbs who types."""
    damaged = tmp_path / "config.toml"
    damaged.write_text("nonsense = ")
    for flags in (
        ("--socket", str(tmp_path / "none")),
        ("--etcd-endpoints", f"http://127.0.0.1:{free_port()}", "--etcd-timeout", "0.2"),
        ("--db", str(tmp_path / "none.db")),
        ("--config", str(damaged)),
    ):
        assert completed(*flags, "get", "ippool", "") == []


def test_as_a_shell_asks(daemon: BehindSocket) -> None:
    """The program answers the script of bash with names, and with nothing else."""
    pool = {"metadata": {"name": "main"}, "spec": {"cidr": "10.0.0.0/16"}}
    daemon.put(keys.POOLS + "main", json.dumps(pool).encode())
    script = "from ipamd.ctl.main import main; main()"
    asked = {
        "_IPAMCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": f"ipamctl --socket {daemon.path} get ippool m",
        "COMP_CWORD": "5",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **asked}, check=False
    )
    assert (done.stdout, done.stderr) == ("plain,main\n", "")
