"""DELs that cannot be delivered: kept in a file for the daemon, so that no pod hangs in Terminating."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.cni.conftest import read_request

CONFIGURATION = b'{"cniVersion": "1.0.0", "name": "k8s-pod-network", "ipam": {"type": "calico-ipam"}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nIpamd-Exit: 0\r\n\r\n"
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def spool(tmp_path):
    """Return the directory that the daemon made for kept DELs."""
    made = tmp_path / "del.d"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def delete(run, spool):
    """Return a function that runs a DEL of a daemon that may be away, with short waits."""
    waits = {
        "CNI_COMMAND": "DEL",
        "IPAMD_SPOOL_DIR": str(spool),
        "IPAMD_CONNECT_TIMEOUT": "30",
        "IPAMD_TIMEOUT": "2000",
    }
    return lambda configuration=CONFIGURATION, **changes: run(configuration, **{**waits, **changes})


def test_a_del_without_a_daemon_is_kept_and_succeeds(delete, spool, serve):
    """The file holds the request, byte for byte as the daemon would have got it, but for its start."""
    assert delete() == (0, b"")
    (file,) = spool.iterdir()
    boot, started, _process = file.name.split(".")
    assert (boot, len(started)) == (BOOT, 20)
    assert file.stat().st_mode & 0o777 == 0o600
    daemon = serve(OK)
    assert delete() == (0, b"")
    (sent,) = daemon.requests
    kept = file.read_bytes()
    started_now = next(line for line in sent.split(b"\r\n") if line.startswith(b"Ipamd-Started"))
    assert kept == sent.replace(started_now, b"Ipamd-Started: %d" % int(started))
    assert list(spool.iterdir()) == [file]


def hangs(connection):
    """Take the request and answer nothing for as long as the plugin waits."""
    read_request(connection)
    connection.recv(1)


@pytest.mark.parametrize(
    "behaviour",
    [hangs, lambda connection: None, lambda connection: (read_request(connection), connection.sendall(OK[:20]))],
)
def test_a_del_that_is_not_answered_is_kept(delete, spool, serve, behaviour):
    """Whether the daemon carried it out is not known; twice does no harm, never would."""
    serve(behaviour)
    assert delete() == (0, b"")
    assert len(list(spool.iterdir())) == 1


BUSY = b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 24\r\nIpamd-Exit: 1\r\n\r\n{"code":11,"msg":"full"}'


@pytest.mark.parametrize("busy", [BUSY, BUSY.replace(b"Service Unavailable", b"")])
def test_a_del_that_the_daemon_has_no_room_for_is_kept(delete, spool, serve, busy):
    """503 is no refusal of the DEL: too many connections are open, or the daemon is stopping."""
    serve(busy)
    assert delete() == (0, b"")
    (file,) = spool.iterdir()
    assert file.read_bytes().partition(b"\r\n\r\n")[2] == CONFIGURATION


def test_a_del_that_finds_no_room_anywhere_fails_in_the_daemons_words(delete, tmp_path, serve):
    """It cannot be kept either: the runtime is told what the daemon said, and tries again."""
    serve(BUSY)
    assert delete(IPAMD_SPOOL_DIR=str(tmp_path / "nowhere")) == (1, b'{"code":11,"msg":"full"}')


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
def test_of_a_daemon_without_room_only_a_del_is_kept(delete, spool, serve, command):
    """Every other verb is answered as the daemon did."""
    serve(BUSY)
    assert delete(CNI_COMMAND=command) == (1, b'{"code":11,"msg":"full"}')
    assert list(spool.iterdir()) == []


def test_a_long_configuration_is_kept_whole(delete, spool):
    """What is kept has the length that its head tells."""
    configuration = json.dumps({"cniVersion": "1.0.0", "prevResult": "x" * 300_000}).encode()
    assert delete(configuration) == (0, b"")
    (file,) = spool.iterdir()
    assert file.read_bytes().partition(b"\r\n\r\n")[2] == configuration


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
def test_only_a_del_is_kept(delete, spool, command):
    """Every other verb is refused with code 11."""
    code, stdout = delete(CNI_COMMAND=command)
    assert (code, json.loads(stdout)["code"]) == (1, 11)
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("answer", [b"hello", b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\nIpamd-Exit: 1\r\n\r\n{}"])
def test_a_del_that_was_answered_is_not_kept(delete, spool, serve, answer):
    """A refusal stays a refusal, and what is not ipamd is told."""
    serve(answer)
    assert delete()[0] == 1
    assert list(spool.iterdir()) == []


def test_without_a_spool_the_del_fails_with_both_reasons(delete, tmp_path, where):
    """The runtime tries again; the operator reads why it was not kept either."""
    code, stdout = delete(IPAMD_SPOOL_DIR=str(tmp_path / "nowhere"))
    assert code == 1
    assert json.loads(stdout) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": f"cannot reach ipamd at {where}: No such file or directory; is the daemon running? "
        "Its state and log on this node say more",
        "details": "the DEL could not be kept: ipamd's spool (IPAMD_SPOOL_DIR) cannot be opened",
    }


def test_a_full_spool_takes_no_more(delete, spool):
    """Ten thousand files are more than any node has pods: beyond that something is wrong."""
    for number in range(10_000):
        (spool / str(number)).touch()
    code, stdout = delete()
    assert (code, json.loads(stdout)["details"]) == (1, "the DEL could not be kept: ipamd's spool is full")


def test_a_spool_that_cannot_be_written_is_told(delete):
    """A directory that takes no files, as one on a file system that became read-only."""
    code, stdout = delete(IPAMD_SPOOL_DIR="/proc/self/fdinfo")
    assert (code, json.loads(stdout)["details"]) == (1, "the DEL could not be kept: ipamd's spool cannot be written")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a directory of another user")
def test_the_file_is_the_daemons(delete, spool):
    """The plugin runs as root, the daemon perhaps not: the file gets the owner of the directory."""
    os.chown(spool, 12345, 54321)
    assert delete() == (0, b"")
    (file,) = spool.iterdir()
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 54321)


def test_a_del_waits_a_second_at_most(start, spool, where):
    """It can be kept, so there is no reason to hold up the runtime as long as an ADD does."""
    process = start(CNI_COMMAND="DEL", IPAMD_SPOOL_DIR=str(spool), IPAMD_CONNECT_TIMEOUT="86400000")
    assert process.communicate(CONFIGURATION, timeout=20)[0] == b""
    assert process.returncode == 0
    assert len(list(spool.iterdir())) == 1


def test_a_daemon_that_comes_back_in_time_gets_it(start, spool, serve, where):
    """As long as the DEL still tries to connect nothing is kept."""
    where_daemon = socket.socket(socket.AF_UNIX)
    where_daemon.bind(str(where))
    process = start(CNI_COMMAND="DEL", IPAMD_SPOOL_DIR=str(spool))
    where_daemon.close()
    where.unlink()
    daemon = serve(OK)
    assert process.communicate(CONFIGURATION, timeout=20)[0] == b""
    assert len(daemon.requests) == 1
    assert list(spool.iterdir()) == []
