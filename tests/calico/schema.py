"""The form in which Calico's programs write records: ``flaws`` says what about a record is not in it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from ipamd.core import keys

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
    found = [] if as_go_writes(value) == raw else ["not in the form in which Go's encoder writes it"]
    rules = {keys.Kind.BLOCK: _block, keys.Kind.HANDLE: _handle, keys.Kind.AFFINITY: _affinity}
    return [*found, *rules[keys.kind_of(key)](key, value)]


def as_go_writes(value: Any) -> bytes:
    """JSON in the form in which Go's encoder writes it."""
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
