"""A real daemon under hostile requests from one seed, and what must be true of it meanwhile and afterwards."""

import json
import os
import time
from collections import Counter
from pathlib import Path

from msgspec import Struct

from tests.daemon_process import POOLS, Daemon, wait_for
from tests.fuzz.aftermath import held_twice, left, left_after_a_restart, network_of, said
from tests.fuzz.clients import send
from tests.fuzz.hostile import TUNNELS
from tests.fuzz.processes import share_out

MEMORY = 400 << 20
"""Bytes that the daemon may have at most. It remembers every DEL for a quarter of an hour; the ids are few."""

GROWTH = 64 << 20
"""Bytes by which the second half of a campaign may add to what the first has left."""


class Outcome(Struct):
    """What a campaign did, and in sentences what was wrong."""

    requests: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = {}
    addresses: int = 0
    """How many were held when the last request was answered."""
    memory: int = 0
    """The most bytes that the daemon had."""
    descriptors: int = 0
    """The most that it had open."""
    findings: list[str] = []


def run(directory: Path, seed: int, requests: int, processes: int) -> Outcome:
    """Send hostile requests to a daemon with its files below ``directory``."""
    outcome = Outcome(findings=[])
    flags = (*POOLS, "--store", "embedded", "--reserve-wait", "0.3", "--spool-dir", str(directory / "spool"))
    with Daemon(directory, "fuzzed", *flags) as daemon:
        before = _descriptors(daemon)
        began = time.monotonic()
        _attack(daemon, seed, requests, processes, outcome)
        outcome.seconds = time.monotonic() - began
        if daemon.lives:
            _look(daemon, before, outcome)
            _release(daemon, outcome)
            outcome.findings += left_after_a_restart(daemon)
    outcome.findings += said(daemon.log)
    return outcome


def _attack(daemon: Daemon, seed: int, requests: int, processes: int, outcome: Outcome) -> None:
    """Send everything, and look at the daemon meanwhile."""
    halfway = 0

    def watch() -> bool:
        nonlocal halfway
        if not daemon.lives:
            outcome.findings.append("the daemon died")
            return False
        if daemon.request("GET", "/healthz")[0] != 200:
            outcome.findings.append("the daemon does not say that it is healthy")
        outcome.memory = max(outcome.memory, _memory(daemon))
        outcome.descriptors = max(outcome.descriptors, _descriptors(daemon))
        halfway = halfway or (_memory(daemon) if _handled(daemon) > requests // 2 else 0)
        return True

    shares = [
        (daemon.socket, seed * 1000 + number, requests // processes + (number < requests % processes))
        for number in range(processes)
    ]
    for result in share_out(send, shares, watch):
        if result is None:
            outcome.findings.append("a client failed, see its traceback above")
            continue
        sent, statuses, crashed = result
        outcome.requests += sent
        outcome.statuses = dict(Counter(outcome.statuses) + statuses)
        outcome.findings += [f"internal error for one of {pieces}" for pieces in crashed]
    if halfway and _memory(daemon) > halfway + GROWTH:
        outcome.findings.append(f"its memory grew from {halfway} bytes half-way to {_memory(daemon)}")


def _look(daemon: Daemon, before: int, outcome: Outcome) -> None:
    """The daemon after the last request: what it holds makes sense, and nothing of the clients is left."""
    if outcome.memory > MEMORY:
        outcome.findings.append(f"it had {outcome.memory} bytes of memory")
    if outcome.descriptors > before + 512:
        outcome.findings.append(f"it had {outcome.descriptors} open descriptors")
    try:
        wait_for(lambda: _descriptors(daemon) <= before + 2)
    except AssertionError:
        outcome.findings.append(f"{_descriptors(daemon)} descriptors are open, {before} before")
    held = daemon.get("/v1/allocations")
    outcome.addresses = len(held)
    outcome.findings += held_twice(held)


def _release(daemon: Daemon, outcome: Outcome) -> None:
    """DEL of all that is held, and what is left of it."""
    for held in daemon.get("/v1/allocations"):
        fields = {"Cni-Command": "DEL", "Cni-Containerid": held["container"], "Cni-Ifname": held["interface"]}
        fields = {name: value.encode().decode("latin-1") for name, value in fields.items()}
        status, answer = daemon.request("POST", "/v1/cni", json.dumps(network_of(held)).encode(), fields)
        if status != 200:
            outcome.findings.append(f"DEL of {held} was refused: {answer!r}")
    for kind in TUNNELS:
        daemon.request("DELETE", "/v1/tunnel-addresses", json.dumps({"type": kind}).encode())
    outcome.findings += left(daemon)


def _memory(daemon: Daemon) -> int:
    """The resident bytes of the daemon."""
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors(daemon: Daemon) -> int:
    """How many descriptors it has open."""
    return sum(1 for _ in Path(f"/proc/{daemon.pid}/fd").iterdir())


def _handled(daemon: Daemon) -> float:
    """How many calls of the plugin it has answered."""
    metrics = daemon.request("GET", "/metrics")[1].decode().splitlines()  # without a call yet there is no such line
    return sum(float(line.rpartition(" ")[2]) for line in metrics if line.startswith("ipamd_requests_total{"))
