"""More clients than a daemon may have: what they take is bounded, and the ADDs of others are answered."""

import grp
import os
import resource
import signal
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.daemon_process import POOLS, Daemon, addresses_of, wait_for

pytestmark = pytest.mark.real

CONNECTIONS = 10_000
HALVES = (b"", b"POST /v1/cni HTTP/1.1\r\nHost: ip", b"GET /healthz HTTP/1.1\r\nHost: ipamd\r\n\r\n")
"""What such a client has sent: nothing, half a request, or one and then no more."""
TEN_SECONDS = struct.pack("ll", 10, 0)
ROUNDS = 300
MANY_TIMES = 20
"""What p99 may be of what it was: twice is what it is made for, on a machine that does nothing else."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many as the clients need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 500:
        pytest.skip(f"a process may have no more than {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def p99_of_adds(daemon: Daemon, prefix: str) -> float:
    """Milliseconds of an ADD on a connection of its own; each must be answered, and is undone."""
    taken = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        status, body = daemon.post("ADD", f"{prefix}{number}")
        taken.append(1000 * (time.perf_counter() - began))
        assert status == 200, body
        assert addresses_of(body)
        assert daemon.post("DEL", f"{prefix}{number}")[0] == 200
    return statistics.quantiles(taken, n=100)[98]


@pytest.mark.parametrize(("limit", "kept"), [("-Sn 1024", 1000), ("-n 256", 100)])
def test_ten_thousand_clients_that_say_nothing_keep_no_pod_waiting(
    tmp_path: Path, descriptors: None, limit: str, kept: int
) -> None:
    """Beside 10,000 connections that are idle or have sent half a request, each ADD is answered, and as quickly.

    Also where the daemon may have fewer files open than its configuration wants.
    """
    limited = ("/bin/bash", "-c", f'ulimit {limit}; exec "$@"', "limited")
    with Daemon(tmp_path / "d", "node-a", *POOLS, wrapper=limited) as daemon, ExitStack() as stack:
        alone = p99_of_adds(daemon, "alone")
        for number in range(CONNECTIONS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TEN_SECONDS)
            client.connect(str(daemon.socket))
            client.send(HALVES[number % len(HALVES)])
        daemon.wait_ready()  # the last of them are still to be accepted
        crowded = p99_of_adds(daemon, "crowded")
        open_now = daemon.metric("ipamd_connections")
        sys.stdout.write(
            f"p99 of an ADD {alone:.2f} ms alone, {crowded:.2f} ms beside {CONNECTIONS} connections"
            f" ({open_now:.0f} of them kept): {crowded / alone:.1f} times\n"
        )
        assert open_now > kept
        assert crowded < MANY_TIMES * alone


def test_half_sent_requests_take_little_memory(tmp_path: Path) -> None:
    """Of 500 MiB that 500 clients send of requests that never end little more than 64 MiB are kept, and pods are served."""
    half = b"POST /v1/cni HTTP/1.1\r\nHost: ipamd\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1_000_000
    with Daemon(tmp_path / "d", "node-a", *POOLS) as daemon, ExitStack() as stack:
        before = peak_memory(daemon)
        for _ in range(500):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TEN_SECONDS)
            client.connect(str(daemon.socket))
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(half)
        status, body = daemon.post("ADD", "a")
        assert status == 200, body
        assert peak_memory(daemon) - before < 128


def peak_memory(daemon: Daemon) -> int:
    """The most memory that a daemon has had, in MiB."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def poll_events(directory: Path, gid: int, connections: int) -> int:
    """Fork a member of a group that waits for events on so many connections, once they are made; its process id."""
    made, tell = os.pipe()
    if process := os.fork():
        os.close(tell)
        with os.fdopen(made) as pipe:
            assert pipe.read() == "made"
        return process
    try:
        os.chdir(directory)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(65534)
        clients = []
        for _ in range(connections):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect("ipamd.sock")
            with suppress(BrokenPipeError, ConnectionResetError):  # turned away before it could ask
                clients[-1].send(b"GET /v1/events?after=%d&wait=30 HTTP/1.1\r\nHost: ipamd\r\n\r\n" % (1 << 61))
        os.write(tell, b"made")
        os.close(tell)
        signal.pause()
    finally:
        os._exit(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to fork another user")
def test_readers_that_wait_for_events_keep_no_pod_waiting(tmp_path: Path) -> None:
    """A member of socket_group asks for events on more connections than there may be: each ADD and DEL is answered."""
    flags = (*POOLS, "--api-max-connections", "8", "--socket-group", "nogroup")
    with Daemon(tmp_path / "d", "node-a", *flags) as daemon:
        daemon.directory.chmod(0o711)
        reader = poll_events(daemon.directory, grp.getgrnam("nogroup").gr_gid, 100)
        try:
            wait_for(lambda: daemon.metric("ipamd_connections_refused_total") > 0)
            for number in range(30):
                status, body = daemon.post("ADD", f"c{number}")
                assert status == 200, body
                assert daemon.post("DEL", f"c{number}")[0] == 200
        finally:
            os.kill(reader, signal.SIGKILL)
            os.waitpid(reader, 0)
