"""What the service manager is told, and when: sd_notify(3), sd_watchdog_enabled(3)."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ipamd.config import Config, load
from ipamd.daemon import START_GRACE, Daemon, open_journal
from ipamd.supervisor import STATUS_PERIOD, Supervisor


class Listener:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address)

    def heard(self) -> list[str]:
        """The datagrams that have come since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """One at a path."""
    made = Listener(str(tmp_path / "notify"))
    with made.socket:
        yield made


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """What systemd sets."""
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), **more}


def test_lines_go_out_as_one_datagram(tmp_path: Path, listener: Listener) -> None:
    """State and status arrive together, a line each, whatever the status holds."""
    Supervisor(environment(tmp_path), 1).status("a\nREADY=0", "READY=1")
    assert listener.heard() == ["READY=1\nSTATUS=a READY=0"]


def test_a_socket_without_a_file_is_spoken_to() -> None:
    """A leading @ stands for the zero byte of an abstract socket's name."""
    name = f"ipamd-test-{os.getpid()}"
    listener = Listener(f"\0{name}")
    with listener.socket:
        Supervisor({"NOTIFY_SOCKET": f"@{name}"}, 1).tell("READY=1")
        assert listener.heard() == ["READY=1"]


def test_the_variables_are_not_left_for_children(tmp_path: Path) -> None:
    """A child that took them for its own would speak for the daemon."""
    environ = environment(tmp_path, WATCHDOG_USEC="1000000", WATCHDOG_PID="7", HOME="/")
    Supervisor(environ, 7)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ",
    [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": ""}],
)
def test_nobody_to_tell_is_no_trouble(environ: dict[str, str]) -> None:
    """Without a service manager, or with one that does not listen, the daemon runs on."""
    Supervisor(environ, 1).tell("READY=1")


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_only_our_own_watchdog_is_fed(tmp_path: Path, more: dict[str, str], seconds: float) -> None:
    """The variables may have been meant for another process."""
    assert Supervisor(environment(tmp_path, **more), 7).watchdog == seconds


async def test_the_watchdog_is_fed_in_time_and_a_status_is_told_once(
    tmp_path: Path, listener: Listener, autojump_clock: MockClock
) -> None:
    """At least twice in each interval; a status goes along when it has changed."""
    assert autojump_clock.rate == 0
    supervisor = Supervisor(environment(tmp_path, WATCHDOG_USEC="3000000"), 1)
    texts = ["one", "one", "two"]
    with trio.move_on_after(2.5):
        await supervisor.attend(lambda: texts.pop(0) if len(texts) > 1 else texts[0])
    assert listener.heard() == ["WATCHDOG=1\nSTATUS=one", "WATCHDOG=1", "WATCHDOG=1\nSTATUS=two"]


async def test_without_a_watchdog_only_a_changed_status_is_told(
    tmp_path: Path, listener: Listener, autojump_clock: MockClock
) -> None:
    """Nothing is sent for its own sake."""
    assert autojump_clock.rate == 0
    with trio.move_on_after(3.5 * STATUS_PERIOD):
        await Supervisor(environment(tmp_path), 1).attend(lambda: "one")
    assert listener.heard() == ["STATUS=one"]


def daemon_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> Daemon:
    """A daemon below a service manager; nothing of it runs yet."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    config: Config = load({"node": "n", "state_dir": str(tmp_path / "state"), **more}, {}, None).config
    journal, facts, _report = open_journal(config, "boot")
    return Daemon(config, journal, facts)


POOL = {"default_pools.ipv4_cidr": "10.0.0.0/24"}


async def test_ready_is_said_when_an_add_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    """Not before the reserve has an address, and then at once."""
    daemon = daemon_of(tmp_path, monkeypatch, **POOL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.work)
        await daemon._announce_start()
        assert daemon.report.unready() == ""
        (said,) = listener.heard()
        assert said.startswith("READY=1\nSTATUS=serving: 0 attachments, ")
        nursery.cancel_scope.cancel()
    daemon.journal.close()


async def test_a_node_whose_store_is_away_is_up_after_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, autojump_clock: MockClock
) -> None:
    """What waits for the daemon may be what the store waits for; the status tells what is missing."""
    assert autojump_clock.rate == 0
    daemon = daemon_of(tmp_path, monkeypatch, **POOL)
    await daemon._announce_start()
    assert trio.current_time() == pytest.approx(START_GRACE)
    (said,) = listener.heard()
    assert said.startswith("READY=1\nSTATUS=no ADD from pools can be served: no pool is known yet; ")
    daemon.journal.close()


async def test_where_no_pool_is_to_be_the_start_does_not_wait_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    """A node that serves host-local ranges alone is up as soon as the store was looked at."""
    daemon = daemon_of(tmp_path, monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.work)
        with trio.fail_after(10):
            await daemon._announce_start()
        nursery.cancel_scope.cancel()
    assert listener.heard()[0].startswith("READY=1\nSTATUS=no ADD from pools can be served: no pool serves this node")
    daemon.journal.close()
