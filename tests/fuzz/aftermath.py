"""What must be true when the last pod is gone: of the daemon, its state file, its store and its log."""

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipamd.core.check import check
from ipamd.core.reserve import ReservePolicy
from ipamd.journal.format import describe
from tests.core.snapshot import replay
from tests.daemon_process import Daemon, network, wait_for

Held = Mapping[str, Any]
"""One of ``/v1/allocations``."""


def network_of(held: Held) -> dict[str, object]:
    """The network configuration of a DEL that releases it."""
    if "handle" in held:
        return network() | {"name": held["network"]}
    return network(kind="host-local", subnet="10.9.0.0/24") | {"name": held["network"]}


def held_twice(allocations: Sequence[Held]) -> list[str]:
    """Addresses that more than one pod has; host-local ranges are each network's own."""
    keys = [(each["address"], each["network"] if "handle" not in each else "") for each in allocations]
    return [f"{key} is held twice" for key, count in Counter(keys).items() if count > 1]


def left(daemon: Daemon) -> list[str]:
    """What a daemon still has of pods and tunnels."""
    findings = [f"left: {each}" for each in daemon.get("/v1/allocations") + daemon.get("/v1/tunnel-addresses")]
    try:
        wait_for(lambda: not any(b["unflushed"] or b["in_use"] or b["contested"] for b in daemon.get("/v1/blocks")))
    except AssertionError:
        findings.append(f"blocks after the last DEL: {daemon.get('/v1/blocks')}")
    return findings


def left_after_a_restart(daemon: Daemon) -> list[str]:
    """What its files say when it has ended, and what it says when it was started again. It is left ended."""
    daemon.stop()
    findings = _left_in_files(daemon)
    daemon.start()
    if daemon.get("/v1/allocations"):
        findings.append("a daemon started again holds addresses that were released")
    daemon.stop()
    return findings


def _left_in_files(daemon: Daemon) -> list[str]:
    """No allocation in the state file and the store, and nothing that contradicts itself."""
    contents = describe((daemon.directory / "state" / "state").read_bytes())
    ledger = replay(daemon.node, ReservePolicy(), contents.facts)
    findings = [*([contents.problem] if contents.problem else []), *check(ledger)]
    findings += [f"the state file holds {each}" for each in (*ledger.holdings, *ledger.ranges.holdings)]
    (store,) = daemon.directory.rglob("*.db")
    records = sqlite3.connect(store)
    try:
        query = "SELECT key FROM records WHERE key LIKE '/calico/ipam/v2/handle/%' AND key NOT LIKE '%/ipamd-reserve-%'"
        findings += [f"the store holds {key}" for (key,) in records.execute(query)]
    finally:
        records.close()
    return findings


def said(log: Path) -> list[str]:
    """What the daemon's log must not say, with what stands around its first appearance."""
    text = log.read_text(errors="replace")
    words = ("Traceback", "crashed its handler", "records disagree")
    return [f"the log says {word}: {text[max(0, text.find(word) - 300) :][:3000]}" for word in words if word in text]
