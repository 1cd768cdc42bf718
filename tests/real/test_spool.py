"""DELs of a daemon that is away, with the real plugin: they succeed, and are carried out when it is back."""

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon_process import POOLS, Daemon, wait_for
from tests.etcd_process import EtcdProcess

pytestmark = pytest.mark.real


def containers(daemon: Daemon) -> set[str]:
    """The containers that hold an address, says the daemon."""
    return {entry["container"] for entry in daemon.get("/v1/allocations")}


def test_dels_while_the_daemon_is_away(tmp_path: Path) -> None:
    """Pods deleted meanwhile go at once and their addresses with the daemon's return; the others keep theirs."""
    with (
        EtcdProcess(tmp_path / "etcd") as etcd,
        Daemon(tmp_path / "d", "node-a", "--etcd-endpoints", etcd.endpoint, *POOLS) as daemon,
    ):
        kept = daemon.add("kept")
        for container in ("a", "b"):
            daemon.add(container)
        daemon.kill()
        for container in ("a", "b", "never"):
            daemon.delete(container)
        spool = tmp_path / "d" / "state" / "del.d"
        assert len(list(spool.iterdir())) == 3
        daemon.start()
        assert containers(daemon) == {"kept"}
        assert list(spool.iterdir()) == []
        assert daemon.add("kept") == kept
        handles = "/calico/ipam/v2/handle/k8s-pod-network."
        wait_for(lambda: set(etcd.get_prefix(handles)) == {f"{handles}kept"})


def test_dels_while_the_daemon_hangs(tmp_path: Path) -> None:
    """A daemon that stands still keeps no pod in Terminating; an ADD that comes after it is a new life."""
    with Daemon(tmp_path / "d", "node-a", *POOLS) as daemon:
        daemon.add("a")
        daemon.add("b")
        daemon.signal(signal.SIGSTOP)
        answers = [daemon.plugin("DEL", container, timeout_ms=1000) for container in ("a", "b")]
        daemon.signal(signal.SIGCONT)
        assert [answer.code for answer in answers] == [0, 0]
        daemon.add("a")
        wait_for(lambda: containers(daemon) == {"a"})
        wait_for(lambda: not list((tmp_path / "d" / "state" / "del.d").iterdir()))
        assert containers(daemon) == {"a"}


def test_dels_that_find_no_room(tmp_path: Path) -> None:
    """As many clients as there may be wait for an answer: the DEL succeeds, and frees the address within a second."""
    with Daemon(tmp_path / "d", "node-a", *POOLS, "--api-max-connections", "8") as daemon, ExitStack() as stack:
        daemon.add("a")
        for _ in range(8):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(daemon.socket))
            client.send(b"GET /v1/events?after=%d&wait=30 HTTP/1.1\r\nHost: ipamd\r\n\r\n" % (1 << 61))
        assert daemon.post("CHECK", "a")[0] == 503
        assert daemon.plugin("DEL", "a").code == 0
        spool = tmp_path / "d" / "state" / "del.d"
        wait_for(lambda: not list(spool.iterdir()))
        stack.close()
        wait_for(lambda: daemon.post("CHECK", "a")[0] == 400)
        assert containers(daemon) == set()
