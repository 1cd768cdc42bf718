"""What a hasty hand removes from under a running daemon, it makes anew."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.daemon_process import POOLS, Daemon, wait_for

pytestmark = pytest.mark.real


def test_a_removed_socket_is_bound_anew(tmp_path: Path) -> None:
    """Plugins find the daemon again, at the same path; it stops as ever."""
    with Daemon(tmp_path / "d", "node-a", *POOLS) as daemon:
        for container in ("a", "b"):
            daemon.socket.unlink()
            wait_for(daemon.socket.is_socket)
            daemon.add(container)
        assert "bound it anew" in daemon.log.read_text()
        assert daemon.stop() == 0


def test_a_socket_that_another_daemon_took_is_left_to_it(tmp_path: Path) -> None:
    """Two daemons do not fight for one path: the first says who answers there, once."""
    with Daemon(tmp_path / "d", "node-a", *POOLS) as first:
        first.signal(signal.SIGSTOP)
        first.socket.unlink()
        with Daemon(tmp_path / "e", "node-b", *POOLS, "--socket", str(first.socket), ready=False):
            wait_for(first.socket.is_socket)
            first.signal(signal.SIGCONT)
            wait_for(lambda: "cannot be bound anew" in first.log.read_text())
            assert "a daemon answers there" in first.log.read_text()


def test_a_removed_state_directory_costs_no_pod_its_address(tmp_path: Path) -> None:
    """The directory is made again with all that was acknowledged, and DELs can be kept there again."""
    with Daemon(tmp_path / "d", "node-a", *POOLS, "--embedded-path", str(tmp_path / "db")) as daemon:
        address = daemon.add("a")
        state = daemon.directory / "state"
        shutil.rmtree(state)
        wait_for(lambda: (state / "state").exists() and (state / "del.d").exists())
        daemon.kill()
        daemon.start()
        assert daemon.add("a") == address
