"""``ipamctl ipam check`` on a running daemon, while pods come and go."""

import json
import subprocess
import sys
from typing import Any

import pytest

from ipamd.core import keys
from tests.daemon_process import POOLS
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real


def check(*flags: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a check, and its report."""
    command = (sys.executable, "-m", "ipamd.ctl", *flags, "ipam", "check", "-o", "json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={})
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
