"""etcd hangs or dies while pods come and go: nobody waits for it, and nothing it missed is lost."""

import json
import time
from collections.abc import Callable

import pytest

from tests.calico_state import State, agreed, differences
from tests.daemon_process import POOLS, Daemon, addresses_of, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

PROMPT = 0.5
"""Seconds in which an answer from memory comes also on a busy machine: far less than any timeout of etcd's calls."""
CATCH_UP = 2.0
"""Seconds after etcd's return in which its records must be right."""
RESERVE = 40


def prompt(daemon: Daemon, command: str, container: str) -> list[str]:
    """A request that must be answered from memory; the addresses of an ADD."""
    began = time.monotonic()
    status, body = daemon.post(command, container)
    assert status == 200, body
    assert time.monotonic() - began < PROMPT
    return addresses_of(body) if command == "ADD" else []


def failed_calls(daemon: Daemon) -> float:
    """How many transactions etcd did not answer."""
    return daemon.metric("ipamd_flush_failures_total")


def available(daemon: Daemon) -> int:
    """How many IPv4 addresses can be handed out from memory."""
    return sum("." in address for view in daemon.get("/v1/reserve") for address in view["addresses"])


def hang(etcd: EtcdProcess) -> Callable[[], object]:
    """Stop it in its tracks; returns how it goes on."""
    etcd.pause()
    return etcd.resume


def die(etcd: EtcdProcess) -> Callable[[], object]:
    """Kill it; returns how it starts again with the same data."""
    etcd.kill()
    return etcd.start


@pytest.fixture
def served(etcd: EtcdProcess, start: Start) -> Daemon:
    """A daemon with a known reserve and a few pods that etcd knows; an ADD that cannot be served fails at once."""
    flags = (
        "--reserve-min",
        str(RESERVE),
        "--reserve-max",
        str(RESERVE),
        "--reserve-wait",
        "0.3",
        "--etcd-timeout",
        "1",
    )
    daemon = start("node-a", *POOLS, *flags)
    for number in range(10):
        assert daemon.post("ADD", f"old{number}")[0] == 200
    agreed(etcd, daemon)
    assert available(daemon) > RESERVE // 2
    return daemon


@pytest.mark.parametrize("outage", [hang, die])
def test_adds_up_to_the_reserve_and_dels_are_answered_while_etcd_is_away_and_reach_it_afterwards(
    etcd: EtcdProcess, served: Daemon, outage: Callable[[EtcdProcess], Callable[[], object]]
) -> None:
    """ADDs for as many as the reserve has and DELs are answered at once; 2 s after its return etcd agrees."""
    back = outage(etcd)
    ready = available(served)
    given = {prompt(served, "ADD", f"new{number}")[0] for number in range(ready)}
    assert len(given) == ready
    status, body = served.post("ADD", "one-too-many")
    assert (status, json.loads(body)["code"]) == (503, 11)
    for number in range(5):
        prompt(served, "DEL", f"old{number}")
        prompt(served, "DEL", f"new{number}")
    assert prompt(served, "ADD", "old9") == prompt(served, "ADD", "old9")
    # Until the pauses between the writer's attempts have grown to their longest.
    wait_for(lambda: failed_calls(served) >= (2 if outage is hang else 7), 30)
    back()
    right_in_time(etcd, served)
    held = {view["container"] for view in served.get("/v1/allocations")}
    assert held == {f"old{number}" for number in range(5, 10)} | {f"new{number}" for number in range(5, ready)}


@pytest.mark.parametrize("outage", [hang, die])
def test_a_daemon_killed_and_started_while_etcd_is_away_serves_from_its_state_file(
    etcd: EtcdProcess, served: Daemon, outage: Callable[[EtcdProcess], Callable[[], object]]
) -> None:
    """It answers repeated ADDs as before and new ones from the reserve, and etcd agrees once it is back."""
    before = {view["container"]: view["address"] for view in served.get("/v1/allocations")}
    back = outage(etcd)
    before |= {f"new{number}": prompt(served, "ADD", f"new{number}")[0] for number in range(10)}
    released = {before.pop(container) for container in ("old0", "old1")}
    for container in ("old0", "old1"):
        prompt(served, "DEL", container)
    served.kill()
    served.start()
    assert not served.get("/v1/status")["store"]["synced"]
    for container, address in before.items():
        assert prompt(served, "ADD", container) == [address]
    fresh = {prompt(served, "ADD", f"late{number}")[0] for number in range(available(served))}
    assert len(fresh) > RESERVE // 2 - 10
    assert not fresh & (released | set(before.values())), "an address that etcd may still say is another pod's"
    assert served.post("ADD", "one-too-many")[0] == 503
    prompt(served, "DEL", "late0")
    prompt(served, "DEL", "old2")
    back()
    right_in_time(etcd, served)
    held = {view["container"] for view in served.get("/v1/allocations")}
    assert held == (before.keys() | {f"late{number}" for number in range(len(fresh))}) - {"late0", "old2"}
    assert served.post("ADD", "one-too-many")[0] == 200


def right_in_time(etcd: EtcdProcess, daemon: Daemon) -> None:
    """What etcd has is what the daemon says, not later than promised after etcd's return."""
    wait_for(
        lambda: not differences(State.of(etcd), [daemon]), CATCH_UP, why=lambda: differences(State.of(etcd), [daemon])
    )
