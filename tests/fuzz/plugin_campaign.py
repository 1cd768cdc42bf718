"""The real plugin under calls from one seed: of a real daemon, of others that answer, and of a daemon that is away."""

import time
from collections import Counter
from pathlib import Path

from msgspec import Struct, field

from tests.daemon_process import POOLS, Daemon, wait_for
from tests.fuzz.aftermath import held_twice, left, left_after_a_restart, network_of, said
from tests.fuzz.calls import NODE
from tests.fuzz.plugin import Share, send
from tests.fuzz.processes import share_out

ROUND = 50_000
"""Calls between two times that the daemon is killed."""

AWAY = 0.1
"""The share of a round's calls that find no daemon: half of them are DELs, and the spool takes ten thousand."""


HOSTILE = 0.3
"""The share of the other calls that somebody hostile answers."""


class Outcome(Struct):
    """What a campaign did, and in sentences what was wrong."""

    calls: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    addresses: int = 0
    """How many were held in the end."""
    findings: list[str] = []


def run(directory: Path, program: Path, seed: int, calls: int, processes: int) -> Outcome:
    """Start ``program`` for each of the calls, with a daemon that has its files below ``directory``."""
    outcome = Outcome()
    flags = (*POOLS, "--store", "embedded", "--reserve-wait", "0.3")
    began = time.monotonic()
    with Daemon(directory, NODE, *flags) as daemon:
        for number in range(0, calls, ROUND):
            of_round = min(ROUND, calls - number)
            away = int(of_round * AWAY)
            _call(daemon, program, seed, of_round - away, processes, outcome)
            if not daemon.lives:
                break
            daemon.kill()
            _call(daemon, program, seed, away, processes, outcome)
            _come_back(daemon)
        outcome.seconds = time.monotonic() - began
        if daemon.lives:
            _release(daemon, outcome)
            outcome.findings += left(daemon)
            outcome.findings += left_after_a_restart(daemon)
    outcome.findings += said(daemon.log)
    return outcome


def _call(daemon: Daemon, program: Path, seed: int, calls: int, processes: int, outcome: Outcome) -> None:
    """Make calls of a daemon that lives, or of one that was killed."""
    away = not daemon.lives
    shares = [
        Share(
            program, daemon.socket, _spool(daemon), daemon.directory / f"{outcome.calls}-{number}",
            seed * 1_000_000 + outcome.calls + number, calls // processes + (number < calls % processes), away, 0.0 if away else HOSTILE,
        )
        for number in range(processes)
    ]  # fmt: skip
    for result in share_out(send, [(share,) for share in shares], lambda: away or daemon.lives) or [None]:
        if result is None:
            outcome.findings.append("the daemon died, or a process failed: see its traceback above")
            continue
        made, outcomes, findings = result
        outcome.calls += made
        outcome.outcomes += outcomes
        outcome.findings += findings


def _release(daemon: Daemon, outcome: Outcome) -> None:
    """DEL of all that is held while the daemon is away again: it learns of each by what the plugin kept."""
    wait_for(lambda: not _kept(daemon), why=lambda: f"kept DELs are not carried out: {_kept(daemon)[:5]}")
    held = daemon.get("/v1/allocations")
    outcome.addresses = len(held)
    outcome.findings += held_twice(held)
    daemon.kill()
    for each in held:
        answer = daemon.plugin("DEL", each["container"], network_of(each), interface=each["interface"], connect_ms=0)
        if (answer.code, answer.output) != (0, b""):
            outcome.findings.append(f"DEL of {each} was not kept: {answer.text}")
    _come_back(daemon)
    outcome.findings += [f"among the kept DELs: {name}" for name in _kept(daemon)]


def _come_back(daemon: Daemon) -> None:
    """Start it; it first carries out what was kept, thousands of DELs with a line in the log for most."""
    daemon.start(ready=False)
    daemon.wait_ready(timeout=120)


def _spool(daemon: Daemon) -> Path:
    return daemon.directory / "state" / "del.d"


def _kept(daemon: Daemon) -> list[str]:
    return [path.name for path in _spool(daemon).iterdir()]
