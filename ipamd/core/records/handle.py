"""Affinities, a node's claims of blocks; and handles, which count the addresses that one id holds in each block."""

import msgspec
from msgspec import Struct

from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.records.encoding import MALFORMED, RecordError, go_json, raw_fields


class _Affinity(Struct):
    state: str = "confirmed"  # very old rows have no state, or no value at all
    deleted: bool = False


def affinity_state(value: bytes) -> str:
    """``confirmed``, ``pending``, ``pendingDeletion``, or "" if softly deleted."""
    if not value:
        return "confirmed"
    try:
        affinity = msgspec.json.decode(value, type=_Affinity)
    except MALFORMED as error:
        raise RecordError(f"not a block affinity: {error}") from error
    return "" if affinity.deleted else (affinity.state or "confirmed")


def affinity_record(state: str, old: bytes | None = None) -> bytes:
    """A block affinity in this state; ``old`` is the record it replaces, whose unknown fields it keeps."""
    fields: dict[str, object] = dict(raw_fields(old))
    fields["state"] = state
    fields["deleted"] = False
    return go_json(fields)


class HandleRecord:
    """How many addresses of each block (by CIDR) a handle holds."""

    __slots__ = ("_fields", "blocks")

    def __init__(self, value: bytes | None) -> None:
        self._fields = raw_fields(value)
        try:
            known = msgspec.json.decode(value, type=_Handle) if value else _Handle()
        except MALFORMED as error:
            raise RecordError(f"not a handle: {error}") from error
        self.blocks = {} if known.deleted else dict(known.block or {})

    def set(self, block: str, count: int) -> None:
        """Set how many addresses of a block the handle holds."""
        if count:
            self.blocks[block] = count
        else:
            self.blocks.pop(block, None)

    def encode(self) -> bytes | None:
        """The bytes to store; None: the handle holds nothing and is deleted."""
        if not self.blocks:
            return None
        fields: dict[str, object] = dict(self._fields)
        fields["block"] = dict(sorted(self.blocks.items()))
        fields["deleted"] = False
        return go_json(fields)


def handle_blocks(value: bytes) -> list[Cidr]:
    """The blocks in which a handle holds addresses; none if its record cannot be understood."""
    try:
        return [parse_cidr(cidr) for cidr in HandleRecord(value).blocks]
    except ValueError:  # RecordError is one
        return []


class _Handle(Struct):
    block: dict[str, int] | None = None
    deleted: bool = False
