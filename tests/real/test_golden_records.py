"""Records as Calico's own programs write them: kept byte for byte, and written by the same rules.

The rules (``flaws``) are first held against every captured record, then against what ipamd writes.
"""

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipamd.core import keys
from ipamd.core.records import BlockRecord, HandleRecord, affinity_record, affinity_state
from tests.calico_state import State, agreed
from tests.daemon_process import PLUGIN, POOLS, Answer, Daemon, dual_stack
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

# --- the rules ------------------------------------------------------------------------------------------------

BLOCK = ["cidr", "affinity", "affinity_claim_time", "allocations", "unallocated", "attributes", "sequenceNumber",
         "sequenceNumberForAllocation", "deleted"]  # fmt: skip
TIMESTAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{0,8}[1-9])? \+0000 UTC"
SECONDARY = {
    "namespace": r"[a-z0-9-]+",
    "node": r"[a-z0-9-]+",
    "note": "ipamd reserve",
    "pod": r"[a-z0-9.-]+",
    "timestamp": TIMESTAMP,
    "type": "(ipip|vxlan|vxlanV6|wireguard|wireguardV6)TunnelAddress",
}
RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def flaws(key: str, raw: bytes) -> list[str]:
    """What about a record is not as Calico's programs write it; empty: nothing."""
    value = json.loads(raw)
    found = [] if _as_go_writes(value) == raw else ["not in the form in which Go's encoder writes it"]
    rules = {keys.Kind.BLOCK: _block, keys.Kind.HANDLE: _handle, keys.Kind.AFFINITY: _affinity}
    return [*found, *rules[keys.kind_of(key)](key, value)]


def _as_go_writes(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").encode()


def _block(key: str, block: dict[str, Any]) -> Iterator[str]:
    if list(block) not in (BLOCK, [name for name in BLOCK if name != "affinity_claim_time"]):
        yield f"its keys are {list(block)}"
        return
    if key.rpartition("/")[2] != block["cidr"].replace("/", "-"):
        yield "its key names another block"
    if block["deleted"] is not False:
        yield "deleted is not false"
    if not re.fullmatch(RFC3339, block.get("affinity_claim_time", "2026-11-20T23:47:41Z")):
        yield "the claim time has another form"
    if (block["affinity"] is None) != ("affinity_claim_time" not in block):
        yield "claim time and affinity do not go together"
    if block["affinity"] is not None and not re.fullmatch(r"(host|virtual):[a-z0-9-]+", block["affinity"]):
        yield f"the affinity is {block['affinity']}"
    allocated = [ordinal for ordinal, index in enumerate(block["allocations"]) if index is not None]
    sequences = block["sequenceNumberForAllocation"]
    if list(sequences) != sorted(map(str, allocated)):
        yield "sequence numbers: not one for each allocation, in the order of strings"
    if not all(type(number) is int and number < block["sequenceNumber"] for number in sequences.values()):
        yield "an allocation's sequence number is not before the block's"
    for attribute in block["attributes"]:
        yield from _attribute(attribute)


def _attribute(attribute: dict[str, Any]) -> Iterator[str]:
    if list(attribute) == ["releasedAt"]:
        return
    if list(attribute) != ["handle_id", "secondary"]:
        yield f"an attribute's keys are {list(attribute)}"
        return
    secondary = attribute["secondary"]
    if list(secondary) != sorted(secondary) or "node" not in secondary:
        yield f"secondary attributes are {list(secondary)}"
    for name, text in secondary.items():
        if not re.fullmatch(SECONDARY.get(name, ""), text):
            yield f"the secondary attribute {name} is {text!r}"


def _handle(_key: str, handle: dict[str, Any]) -> Iterator[str]:
    if list(handle) != ["block", "deleted"] or handle["deleted"] is not False:
        yield f"its keys are {list(handle)}, deleted is {handle.get('deleted')}"
    if not handle["block"] or list(handle["block"]) != sorted(handle["block"]):
        yield f"its blocks are {list(handle['block'])}"
    if not all(type(count) is int and count > 0 for count in handle["block"].values()):
        yield f"its counts are {handle['block']}"


def _affinity(_key: str, affinity: dict[str, Any]) -> Iterator[str]:
    if list(affinity.items()) != [("state", "confirmed"), ("deleted", False)]:
        yield f"it is {affinity}"


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
    assert flaws(key, _as_go_writes(block))


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


# --- the same calls, the same answers -------------------------------------------------------------------------

BETTER = {
    "IP=": "a single requested address is not served yet",
    "STATUS": "Calico's plugin does not know it",
    "GC": "Calico's plugin does not know it",
}
"""Captured calls that are answered otherwise on purpose, by what they have in the verb or the arguments."""
ADDRESS = re.compile(rb"(192\.168\.\d+\.\d+|fd00:10:244:[0-9a-f:]+)(?=/)")


def replay(step: dict[str, Any], daemon: Daemon) -> Answer:
    """Make a captured call of the plugin."""
    env = {**step["env"], "IPAMD_SOCKET": str(daemon.socket)}
    done = subprocess.run(
        [step["plugin"]], executable=PLUGIN, env=env, input=json.dumps(step["stdin"]).encode(), capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout)


@pytest.mark.real
def test_the_captured_calls_of_calicos_plugin_get_the_same_answers(etcd: EtcdProcess, start: Start) -> None:
    """Each call succeeds or fails as with Calico's plugin and prints the same, but for which free address it is."""
    for key, value in FIXTURES["basic"]["etcd"].items():
        if key.startswith("/calico/resources/"):
            etcd.put(key, value.encode())
    daemons = {node: start(node) for node in ("node-a", "node-b")}
    given: dict[str, bytes] = {}
    replayed = 0
    for step in FIXTURES["basic"]["steps"]:
        if "plugin" not in step or any(
            reason in step["env"]["CNI_ARGS"] or reason == step["env"]["CNI_COMMAND"] for reason in BETTER
        ):
            continue
        replayed += 1
        answer = replay(step, daemons[step["stdin"]["nodename"]])
        container, command = step["env"]["CNI_CONTAINERID"], step["env"]["CNI_COMMAND"]
        assert answer.code == step["exit"], (command, container, answer.text)
        if step["exit"]:
            assert set(answer.json) == {"cniVersion", "code", "msg"}
            assert answer.json["cniVersion"] == step["stdin"]["cniVersion"]
            continue
        if command == "VERSION":
            versions = json.loads(step["stdout"])["supportedVersions"]
            assert set(answer.json["supportedVersions"]) == {*versions, "1.1.0"}
            continue
        expected = step["stdout"].encode()
        assert ADDRESS.sub(b"<address>", answer.output) == ADDRESS.sub(b"<address>", expected), (command, container)
        if command == "ADD":
            if container in given:
                assert answer.output == given[container], "a repeated ADD"
            given[container] = answer.output
    assert replayed == 20
    addresses = [tuple(ADDRESS.findall(output)) for output in given.values()]
    assert len(set(addresses)) == len(addresses)
