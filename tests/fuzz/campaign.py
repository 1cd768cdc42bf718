"""A real daemon under hostile requests from one seed, and what must be true of it meanwhile and afterwards."""

import json
import multiprocessing
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path

from msgspec import Struct

from ipamd.core.check import check
from ipamd.core.reserve import ReservePolicy
from ipamd.journal.format import describe
from tests.core.snapshot import replay
from tests.daemon_process import POOLS, Daemon, wait_for
from tests.fuzz.clients import send
from tests.fuzz.hostile import TUNNELS

MEMORY = 400 << 20
"""Bytes that the daemon may have at most. It remembers every DEL for a quarter of an hour; the ids are few."""

GROWTH = 64 << 20
"""Bytes by which the second half of a campaign may add to what the first has left."""

NODE = "fuzzed"


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
    with Daemon(directory, NODE, *flags) as daemon:
        before = _descriptors(daemon)
        began = time.monotonic()
        _attack(daemon, seed, requests, processes, outcome)
        outcome.seconds = time.monotonic() - began
        if daemon.lives:
            _look(daemon, before, outcome)
            _release(daemon, outcome)
            daemon.stop()
            _look_at_files(directory, outcome)
            daemon.start()
            if daemon.get("/v1/allocations"):
                outcome.findings.append("a daemon started again holds addresses that were released")
            daemon.stop()
    outcome.findings += _said(daemon.log)
    return outcome


def _attack(daemon: Daemon, seed: int, requests: int, processes: int, outcome: Outcome) -> None:
    """Send everything, and look at the daemon meanwhile."""
    clients = []
    for number in range(processes):
        share = requests // processes + (number < requests % processes)
        results, ours = multiprocessing.Pipe(duplex=False)
        client = multiprocessing.Process(target=send, args=(daemon.socket, seed * 1000 + number, share, ours))
        client.start()
        ours.close()
        clients.append((client, results))
    halfway = 0
    try:
        while any(client.is_alive() and not results.poll() for client, results in clients):
            time.sleep(0.2)
            if not daemon.lives:
                outcome.findings.append("the daemon died")
                return
            if daemon.request("GET", "/healthz")[0] != 200:
                outcome.findings.append("the daemon does not say that it is healthy")
            outcome.memory = max(outcome.memory, _memory(daemon))
            outcome.descriptors = max(outcome.descriptors, _descriptors(daemon))
            halfway = halfway or (_memory(daemon) if _handled(daemon) > requests // 2 else 0)
        for client, results in clients:
            _gather(results, outcome)
            client.join()
    finally:
        for client, results in clients:
            client.kill()
            results.close()
    if halfway and _memory(daemon) > halfway + GROWTH:
        outcome.findings.append(f"its memory grew from {halfway} bytes half-way to {_memory(daemon)}")


def _gather(results: "multiprocessing.connection.Connection[object, object]", outcome: Outcome) -> None:
    try:
        sent, statuses, crashed = results.recv()
    except EOFError:
        outcome.findings.append("a client failed, see its traceback above")
        return
    outcome.requests += sent
    outcome.statuses = dict(Counter(outcome.statuses) + statuses)
    outcome.findings += [f"internal error for one of {pieces}" for pieces in crashed]


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
    keys = [(each["address"], each["network"] if "handle" not in each else "") for each in held]
    outcome.findings += [f"{key} is held twice" for key, count in Counter(keys).items() if count > 1]


def _release(daemon: Daemon, outcome: Outcome) -> None:
    """DEL of all that is held, and what is left of it."""
    for each in daemon.get("/v1/allocations"):
        ipam = {"type": "calico-ipam" if "handle" in each else "host-local", "subnet": "10.9.0.0/24"}
        body = json.dumps({"cniVersion": "1.0.0", "name": each["network"], "ipam": ipam}).encode()
        call = {"Cni-Command": "DEL", "Cni-Containerid": each["container"], "Cni-Ifname": each["interface"]}
        fields = {name: value.encode().decode("latin-1") for name, value in call.items()}
        status, answer = daemon.request("POST", "/v1/cni", body, fields)
        if status != 200:
            outcome.findings.append(f"DEL of {each} was refused: {answer!r}")
    for kind in TUNNELS:
        daemon.request("DELETE", "/v1/tunnel-addresses", json.dumps({"type": kind}).encode())
    outcome.findings += [f"left: {each}" for each in daemon.get("/v1/allocations") + daemon.get("/v1/tunnel-addresses")]
    try:
        wait_for(lambda: not any(b["unflushed"] or b["in_use"] or b["contested"] for b in daemon.get("/v1/blocks")))
    except AssertionError:
        outcome.findings.append(f"blocks after the last DEL: {daemon.get('/v1/blocks')}")


def _look_at_files(directory: Path, outcome: Outcome) -> None:
    """What the state file and the store say: no allocation, and nothing that contradicts itself."""
    contents = describe((directory / "state" / "state").read_bytes())
    ledger = replay(NODE, ReservePolicy(), contents.facts)
    outcome.findings += [*([contents.problem] if contents.problem else []), *check(ledger)]
    outcome.findings += [f"the state file holds {each}" for each in (*ledger.holdings, *ledger.ranges.holdings)]
    (store,) = directory.rglob("*.db")
    records = sqlite3.connect(store)
    try:
        query = "SELECT key FROM records WHERE key LIKE '/calico/ipam/v2/handle/%' AND key NOT LIKE '%/ipamd-reserve-%'"
        outcome.findings += [f"the store holds {key}" for (key,) in records.execute(query)]
    finally:
        records.close()


def _said(log: Path) -> list[str]:
    """What the daemon's log must not say, with what stands around its first appearance."""
    text = log.read_text(errors="replace")
    words = ("Traceback", "crashed its handler", "records disagree")
    return [f"the log says {word}: {text[max(0, text.find(word) - 300) :][:3000]}" for word in words if word in text]


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
