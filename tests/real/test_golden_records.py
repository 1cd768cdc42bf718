"""Records as Calico's own programs write them: kept byte for byte, and written by the same rules.

The rules (``flaws``) are first held against every captured record, then against what ipamd writes.
"""

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipamd.core import keys
from ipamd.core.records import BlockRecord, HandleRecord, affinity_record, affinity_state
from tests.calico.schema import as_go_writes, flaws
from tests.calico_state import State, agreed
from tests.daemon_process import POOLS, dual_stack
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

FIXTURES = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parent.parent / "data" / "calico").glob("*.json")
}
CAPTURED = [
    pytest.param(key, value.encode(), id=f"{name}:{key.rpartition('calico/')[2]}")
    for name, fixture in sorted(FIXTURES.items())
    for key, value in fixture["etcd"].items()
    if keys.kind_of(key) in (keys.Kind.BLOCK, keys.Kind.HANDLE, keys.Kind.AFFINITY)
]

# --- captured records -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "raw"), CAPTURED)
def test_a_captured_record_is_the_same_after_decode_and_encode(key: str, raw: bytes) -> None:
    """Decoded and encoded again a record has the same bytes; only a block's sequence number is one higher."""
    match keys.kind_of(key):
        case keys.Kind.BLOCK:
            number = json.loads(raw)["sequenceNumber"]
            again = BlockRecord(raw).encode()
            assert again == raw.replace(b'"sequenceNumber":%d,' % number, b'"sequenceNumber":%d,' % (number + 1))
        case keys.Kind.HANDLE:
            assert HandleRecord(raw).encode() == raw
        case keys.Kind.AFFINITY:
            assert affinity_record(affinity_state(raw), raw) == raw
            assert affinity_record(affinity_state(raw)) == raw


@pytest.mark.parametrize(("key", "raw"), CAPTURED)
def test_a_captured_record_obeys_the_rules(key: str, raw: bytes) -> None:
    """The rules that ipamd's records are held to are those of Calico's own."""
    assert flaws(key, raw) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.update(extra=1),
        lambda block: block.update(affinity=block.pop("affinity")),
        lambda block: block["attributes"][0]["secondary"].update(timestamp="2026-11-20T23:47:41Z"),
        lambda block: block["attributes"][0]["secondary"].update(a=block["attributes"][0]["secondary"]["node"]),
        lambda block: block["sequenceNumberForAllocation"].popitem(),
        lambda block: block["sequenceNumberForAllocation"].update({"0": block["sequenceNumber"]}),
    ],
)
def test_the_rules_find_what_calico_would_not_write(change: Callable[[Any], Any]) -> None:
    """Another key, another order, another form of a time, a missing or impossible sequence number: each is a flaw."""
    key = "/calico/ipam/v2/assignment/ipv4/block/192.168.174.128-26"
    block = json.loads(FIXTURES["basic"]["etcd"][key])
    change(block)
    assert flaws(key, as_go_writes(block))


# --- what ipamd writes ----------------------------------------------------------------------------------------


def at_revision(etcd: EtcdProcess, revision: int) -> dict[str, bytes]:
    """All of Calico's records as they stood at a revision."""
    answer = etcd.gateway("kv/range", key=b"/calico/", range_end=b"/calico0", revision=revision)
    kvs: Any = answer.get("kvs", [])
    return {base64.b64decode(kv["key"]).decode(): base64.b64decode(kv.get("value", "")) for kv in kvs}


@pytest.mark.real
def test_every_record_that_ipamd_writes_obeys_the_rules_at_every_revision(etcd: EtcdProcess, start: Start) -> None:
    """After each transaction each record has Calico's form, counts agree, sequence numbers go up by one."""
    daemon = start("node-a", *POOLS)
    config = msgspec.json.encode(dual_stack())
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda number: daemon.post("ADD", f"a{number}", config), range(60)))
        list(pool.map(lambda number: daemon.post("DEL", f"a{number}"), range(0, 60, 2)))
        list(pool.map(lambda number: daemon.post("ADD", f"b{number}"), range(60)))
    daemon.add("no-pod", args="IgnoreUnknown=1")
    agreed(etcd, daemon)
    sequences: dict[str, int] = {}
    seen: set[tuple[str, bytes]] = set()
    kinds = set()
    for revision in range(2, etcd.revision() + 1):
        records = at_revision(etcd, revision)
        state = State(records)
        assert state.problems() == [], f"at revision {revision}"
        for key, raw in records.items():
            if keys.kind_of(key) not in (keys.Kind.BLOCK, keys.Kind.HANDLE, keys.Kind.AFFINITY) or (key, raw) in seen:
                continue
            seen.add((key, raw))
            kinds.add(keys.kind_of(key))
            assert flaws(key, raw) == [], f"{key} at revision {revision}: {raw!r}"
        for cidr, block in state.blocks.items():
            before = sequences.get(cidr, block["sequenceNumber"])
            assert block["sequenceNumber"] - before in (0, 1)
            sequences[cidr] = block["sequenceNumber"]
    assert len(seen) > 150
    assert kinds == {keys.Kind.BLOCK, keys.Kind.HANDLE, keys.Kind.AFFINITY}
