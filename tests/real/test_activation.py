"""Socket activation and the sockets' rules, on a real daemon."""

import json
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.activated_daemon import Activated
from tests.daemon_process import POOLS, Daemon, addresses_of, wait_for

pytestmark = pytest.mark.real


def test_a_daemon_serves_on_the_socket_that_systemd_hands_it_and_requests_queue_while_it_restarts(
    tmp_path: Path,
) -> None:
    """With LISTEN_FDS the daemon binds nothing; an ADD sent between its death and its restart is answered after it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "ipamd.sock"))
        listener.listen(128)
        with Activated(tmp_path, listener) as daemon:
            assert not (tmp_path / "unused.sock").exists()
            first = addresses_of(daemon.post("ADD", "a")[1])
            daemon.kill()
            answers: list[tuple[int, bytes]] = []
            asking = threading.Thread(target=lambda: answers.append(daemon.post("ADD", "a")))
            asking.start()
            daemon.start()
            asking.join(10)
            assert [addresses_of(body) for _status, body in answers] == [first]


def test_metrics_over_tcp_are_read_only_and_nothing_else_is_served_there(tmp_path: Path) -> None:
    """The TCP address gives /metrics in both formats, /healthz and /readyz; CNI and the node's data are on the Unix socket alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Daemon(tmp_path / "d", "node-a", *POOLS, "--metrics-address", f"127.0.0.1:{port}") as daemon:
        daemon.add("a")
        base = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{base}/metrics") as response:
            text = response.read().decode()
        assert 'ipamd_requests_total{code="0",verb="ADD"} 1.0' in text
        accepts = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
        with urllib.request.urlopen(urllib.request.Request(f"{base}/metrics", headers=accepts)) as response:
            families = {each.name for each in text_string_to_metric_families(response.read().decode())}
        assert {"ipamd_requests", "ipamd_request_duration_seconds", "ipamd_build"} <= families
        for path, data in (("/v1/allocations", None), ("/v1/cni", b"{}")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(base + path, data=data))
            refused.value.close()
            assert refused.value.code == 404


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root to become another user")
def test_only_root_and_the_daemons_user_may_ask(tmp_path: Path) -> None:
    """Another user cannot even connect (0660); one that gets hold of a connection is refused by its credentials."""
    tmp_path.chmod(0o755)
    with Daemon(tmp_path / "d", "node-a", *POOLS) as daemon:
        for parent in (tmp_path / "d", tmp_path, *tmp_path.parents):
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
        url = "http://ipamd/v1/allocations"
        command = ["curl", "-sS", "-w", "%{http_code}", "--unix-socket", str(daemon.socket), url]
        nobody = {"user": 65534, "group": 65534, "extra_groups": [], "capture_output": True}
        shut = subprocess.run(command, check=False, **nobody)
        assert shut.returncode == 7, "curl: could not connect"
        daemon.socket.chmod(0o666)  # an operator's mistake: the credentials still count
        refused = subprocess.run(command, check=False, **nobody)
        assert refused.stdout.endswith(b"403")
        assert json.loads(refused.stdout[:-3])["msg"].startswith("cannot serve /v1/allocations to uid 65534")


def test_a_second_daemon_of_the_same_node_refuses_to_start(tmp_path: Path) -> None:
    """Two daemons that speak for one node in one store would share a reserve: the second says so and ends with 1."""
    db = ("--embedded-path", str(tmp_path / "ipamd.db"))
    with Daemon(tmp_path / "a", "node-a", *POOLS, *db):
        second = Daemon(tmp_path / "b", "node-a", *POOLS, *db)
        second.directory.mkdir()
        second.start(ready=False)
        assert second._process is not None
        assert second._process.wait(10) == 1
        assert "cannot serve node node-a: another ipamd on this host does" in second.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_the_daemon_with_everything_flushed(tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 0, and nothing left that the store does not have."""
    with Daemon(tmp_path / "d", "node-a", *POOLS, "--flush-linger", "5") as daemon:
        daemon.add("a")
        assert daemon.kill(number) == 0
        assert "event=stopped unflushed=0" in daemon.log.read_text()
        daemon.start()
        wait_for(lambda: [entry["flushed"] for entry in daemon.get("/v1/allocations")] == [True])


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    """Who starts the daemon with SIGHUP ignored means it."""
    with Daemon(tmp_path / "d", "node-a", *POOLS, wrapper=("/usr/bin/nohup",)) as daemon:
        daemon.signal(signal.SIGHUP)
        daemon.add("a")
        assert daemon.kill(signal.SIGTERM) == 0
        assert "signal=SIGTERM" in daemon.log.read_text()
