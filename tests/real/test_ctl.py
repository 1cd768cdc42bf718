"""``ipamctl`` as a program of its own, with real daemons."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_process import POOLS, Daemon
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

TABLE = """\
NAME                  CIDR               SELECTOR   
default-ipv4-ippool   192.168.0.0/16     all()      
default-ipv6-ippool   fd00:10:244::/64   all()      

"""  # noqa: W291 - as Calico prints it


def ipamctl(*argv: str) -> tuple[int, str, str]:
    """Run the program; returns exit code, output and errors."""
    command = (sys.executable, "-m", "ipamd.ctl", *argv)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the embedded store, with a pool of each IP version."""
    with Daemon(tmp_path / "d", "node-a", *POOLS) as started:
        yield started


def test_a_daemon_is_asked(daemon: Daemon) -> None:
    """Its pools and its version are shown, and its file is left to it."""
    assert ipamctl("--socket", str(daemon.socket), "get", "ippool") == (0, TABLE, "")
    assert "(node node-a)" in ipamctl("--socket", str(daemon.socket), "version")[1]
    code, _out, told = ipamctl("--db", str(daemon.directory / "state" / "ipamd.db"), "get", "ippool")
    assert (code, "a running ipamd has it" in told) == (3, True)
    daemon.stop()
    assert ipamctl("--db", str(daemon.directory / "state" / "ipamd.db"), "get", "ippool") == (0, TABLE, "")
    assert ipamctl("--socket", str(daemon.socket), "get", "ippool")[0] == 3


def test_a_daemon_whose_etcd_is_away(start: Start, etcd: EtcdProcess) -> None:
    """The daemon says so itself; it goes on serving pods."""
    daemon = start("node-a", *POOLS, "--etcd-timeout", "1")
    assert ipamctl("--socket", str(daemon.socket), "get", "ippool") == (0, TABLE, "")
    assert ipamctl("--etcd-endpoints", etcd.endpoint, "get", "ippool") == (0, TABLE, "")
    etcd.pause()
    try:
        code, _out, told = ipamctl("--socket", str(daemon.socket), "get", "ippool")
        assert code == 3
        assert f" etcd at {etcd.endpoint}: " in told
        assert daemon.add("c1")
    finally:
        etcd.resume()
