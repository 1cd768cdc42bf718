"""Calico's allocation block as its programs change it, written a second time and on plain JSON.

Shares nothing with the code under test: a block is the decoded record (a dict in the order of its keys), so fields that
are not known here stay where they are. A change is followed by ``finished`` before the record is written.
"""

import ipaddress
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

BlockJson = dict[str, Any]
Attribute = dict[str, Any]
SECOND = 1_000_000_000
WINDOWS = "windows-reserved-ipam-handle"


def encode(record: Mapping[str, object]) -> bytes:
    """A record's bytes: Go's compact JSON, with HTML's special characters escaped."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    for character in "&<>":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def new(cidr: str, affinity: str, at: int) -> BlockJson:
    """An empty block claimed at ``at`` (Unix nanoseconds), which its sequence number starts from."""
    size = ipaddress.ip_network(cidr).num_addresses
    return {
        "cidr": cidr,
        "affinity": affinity,
        "affinity_claim_time": _seconds(at),
        "allocations": [None] * size,
        "unallocated": list(range(size)),
        "attributes": [],
        "sequenceNumber": at,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


def finished(block: BlockJson) -> bytes:
    """The bytes to write: attributes that nothing refers to dropped, maps sorted, the sequence number one higher."""
    used = sorted({index for index in block["allocations"] if index is not None})
    block["attributes"] = [block["attributes"][index] for index in used]
    renumbered = {old: fresh for fresh, old in enumerate(used)}
    block["allocations"] = [index if index is None else renumbered[index] for index in block["allocations"]]
    block["sequenceNumberForAllocation"] = dict(sorted(block["sequenceNumberForAllocation"].items()))
    block["sequenceNumber"] += 1
    return encode(block)


def address(block: BlockJson, ordinal: int) -> str:
    """The text of an ordinal's address."""
    return str(ipaddress.ip_network(block["cidr"])[ordinal])


def ordinal_of(block: BlockJson, text: str) -> int:
    """The ordinal of an address."""
    return int(ipaddress.ip_address(text)) - int(ipaddress.ip_network(block["cidr"])[0])


def attribute_of(block: BlockJson, ordinal: int) -> Attribute | None:
    """Who has an ordinal: its attribute; None if it is free."""
    index = block["allocations"][ordinal]
    return None if index is None else block["attributes"][index]


def give(block: BlockJson, ordinal: int, attribute: Attribute) -> None:
    """Take an ordinal out of the free ones for the owner that ``attribute`` names."""
    block["unallocated"].remove(ordinal)
    _point(block, ordinal, attribute)
    block["sequenceNumberForAllocation"][str(ordinal)] = block["sequenceNumber"]


def take_back(block: BlockJson, ordinal: int, cooldown: int, at: int) -> None:
    """Release an ordinal: it is free, or with a cooldown (seconds) marked as released at ``at``."""
    if cooldown:
        _point(block, ordinal, {"releasedAt": _seconds(at)})
        return
    block["allocations"][ordinal] = None
    block["unallocated"].append(ordinal)
    block["sequenceNumberForAllocation"].pop(str(ordinal), None)


def thaw(block: BlockJson, cooldown: int, at: int) -> None:
    """Free what has been cooling for longer than ``cooldown`` seconds: whoever reads a block for writing does it."""
    for ordinal in range(len(block["allocations"])):
        released = (attribute_of(block, ordinal) or {}).get("releasedAt")
        if released and at - _nanoseconds(released) > cooldown * SECOND:
            take_back(block, ordinal, 0, at)


def free(block: BlockJson, reserved: Callable[[str], bool]) -> list[int]:
    """The free ordinals that no reservation keeps, the one that has been free the longest first."""
    return [ordinal for ordinal in block["unallocated"] if not reserved(address(block, ordinal))]


def held_by(block: BlockJson, handle: str) -> list[int]:
    """The ordinals of a handle."""
    return [
        ordinal
        for ordinal in range(len(block["allocations"]))
        if (attribute_of(block, ordinal) or {}).get("handle_id") == handle
    ]


def empty(block: BlockJson) -> bool:
    """Whether nobody has an address of it; what is set aside for Windows does not count."""
    holders = (attribute_of(block, ordinal) for ordinal in range(len(block["allocations"])))
    return all(holder is None or holder.get("handle_id") == WINDOWS for holder in holders)


def age(block: BlockJson, at: int) -> int | None:
    """Nanoseconds since the block was claimed, if it says when."""
    claimed = block.get("affinity_claim_time")
    return None if claimed is None else at - _nanoseconds(claimed)


def _point(block: BlockJson, ordinal: int, attribute: Attribute) -> None:
    if attribute not in block["attributes"]:
        block["attributes"].append(attribute)
    block["allocations"][ordinal] = block["attributes"].index(attribute)


def _seconds(at: int) -> str:
    return f"{datetime.fromtimestamp(at // SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _nanoseconds(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()) * SECOND
