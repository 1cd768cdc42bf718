"""Calico's records as values: decoded from and encoded to exactly the bytes that Calico's programs write.

Formats are those of Calico's etcd datastore. What Go's JSON encoder does is kept: field order, maps sorted by key,
``&``, ``<`` and ``>`` escaped. Fields that are not known here survive a rewrite at their place: a record is decoded
into its raw parts, and only the parts that changed are encoded again.

``RecordError`` is raised for bytes that are no such record.
"""

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from msgspec import Raw, Struct

from ipamd.core.address import Cidr, parse_cidr

RESERVE_NOTE = "ipamd reserve"
WINDOWS_HANDLE = "windows-reserved-ipam-handle"
"""Calico's name for the addresses of a block that Windows keeps for itself."""
_CLAIM_TIME = "affinity_claim_time"


class RecordError(ValueError):
    """A record's bytes do not have the form of its kind; the text says what is wrong."""


MALFORMED = (ValueError, RecursionError)
"""What decoding bytes that are no such record raises: msgspec's errors are ValueErrors, too deep nesting is not."""


def go_json(value: object) -> bytes:
    """Encode as Go's ``encoding/json`` does: compact, with HTML's special characters and U+2028/9 escaped."""
    text = msgspec.json.encode(value)
    for character, escaped in _GO_ESCAPES:
        if character in text:
            text = text.replace(character, escaped)
    return text


_GO_ESCAPES = (
    (b"&", b"\\u0026"),
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def go_time(at: int) -> str:
    """Unix nanoseconds in the form of Go's ``time.Time.String()`` in UTC, as in ``timestamp`` attributes."""
    seconds, nanoseconds = divmod(at, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


def rfc3339(at: int) -> str:
    """Unix nanoseconds in seconds' resolution, as in ``affinity_claim_time``."""
    return f"{datetime.fromtimestamp(at // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_rfc3339(text: str) -> int | None:
    """Unix nanoseconds of a time such as ``2026-11-20T23:47:55Z``; None if it is no such time."""
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return None


# --- blocks ---------------------------------------------------------------------------------------------------


class Owner(Struct, frozen=True):
    """Who holds an ordinal: a block's attribute, as far as it is understood here."""

    handle: str
    """Without the ``\\r...`` that a handle may carry; "" if the allocation has none."""
    node: str
    secondary: dict[str, str]
    released_at: str = ""
    """Since when the address is cooling: it is nobody's, and not to be given to anybody yet. "" if it is not."""


class _Attribute(Struct, frozen=True):
    handle_id: str | None = None
    secondary: dict[str, str] | None = None
    releasedAt: str = ""  # noqa: N815 - Calico's field name

    def owner(self) -> Owner:
        secondary = self.secondary or {}
        handle = (self.handle_id or "").partition("\r")[0]
        return Owner(handle, secondary.get("node", ""), secondary, "" if handle else self.releasedAt)


def attribute(handle: str, secondary: Mapping[str, str]) -> Raw:
    """An attribute as Calico writes it: the handle, and the secondary attributes sorted by key."""
    return Raw(go_json({"handle_id": handle, "secondary": dict(sorted(secondary.items()))}))


def cooling_attribute(at: int) -> Raw:
    """The attribute of an address that was released at ``at`` (Unix time, ns) and is cooling."""
    return Raw(go_json({"releasedAt": rfc3339(at)}))


class BlockRecord:
    """An allocation block. Mutable while an edit is prepared; ``encode`` gives the bytes to store.

    ``allocations[ordinal]`` is None (free) or an index into ``attributes`` (raw JSON) and ``owners`` (the same,
    understood); ``unallocated`` holds the free ordinals, the one that has been free the longest first.
    """

    __slots__ = (
        "_fields",
        "affinity",
        "allocations",
        "attributes",
        "cidr",
        "owners",
        "sequence",
        "sequences",
        "unallocated",
    )

    def __init__(self, value: bytes) -> None:
        try:
            self._fields = msgspec.json.decode(value, type=dict[str, Raw])
            known = msgspec.json.decode(value, type=_KnownBlock)
            self.cidr = parse_cidr(known.cidr)
            self.owners = [msgspec.json.decode(raw, type=_Attribute).owner() for raw in known.attributes]
        except MALFORMED as error:
            raise RecordError(f"not an allocation block: {error}") from error
        self.affinity = known.affinity
        self.allocations = known.allocations
        self.unallocated = known.unallocated
        self.attributes = known.attributes
        self.sequence = known.sequenceNumber
        self.sequences = known.sequenceNumberForAllocation or {}
        self._check()

    def _check(self) -> None:
        size = self.cidr.size
        if len(self.allocations) != size:
            raise RecordError(f"block {self.cidr} has {len(self.allocations)} allocations, not {size}")
        free = {ordinal for ordinal, index in enumerate(self.allocations) if index is None}
        if len(self.unallocated) != len(free) or set(self.unallocated) != free:
            raise RecordError(f"block {self.cidr}: unallocated and allocations do not agree")
        if any(index is not None and not 0 <= index < len(self.attributes) for index in self.allocations):
            raise RecordError(f"block {self.cidr}: an allocation points at an attribute that does not exist")

    @property
    def claimed_at(self) -> int | None:
        """When its owner claimed it (Unix time, ns); None if that is not said, or cannot be understood."""
        try:
            return parse_rfc3339(msgspec.json.decode(self._fields.get(_CLAIM_TIME, b'""'), type=str))
        except MALFORMED:
            return None

    @property
    def deleted(self) -> bool:
        """Softly deleted: to be treated as absent."""
        return bytes(self._fields.get("deleted", b"")) == b"true"  # a Raw equals no bytes

    @property
    def empty(self) -> bool:
        """Whether nobody has an address of it; what is set aside in a block for a Windows node does not count."""
        return all(index is None or self.owners[index].handle == WINDOWS_HANDLE for index in self.allocations)

    def owner(self, ordinal: int) -> Owner | None:
        """Who holds an ordinal; None if it is free."""
        index = self.allocations[ordinal]
        return None if index is None else self.owners[index]

    def free(self, ordinal: int) -> None:
        """Free an allocated ordinal: it goes to the tail of ``unallocated``."""
        self.allocations[ordinal] = None
        self.unallocated.append(ordinal)
        self.sequences.pop(str(ordinal), None)

    def give(self, ordinal: int, raw: Raw) -> None:
        """Give an ordinal to the owner that ``raw`` describes, whoever had it before.

        The caller removes it from ``unallocated`` if it was free (``take`` does).
        """
        self._point(ordinal, raw)
        self.sequences[str(ordinal)] = self.sequence

    def cool(self, ordinal: int, raw: Raw) -> None:
        """Take an allocated ordinal from its owner and let it cool (``cooling_attribute``).

        It stays allocated, with the sequence number of the allocation that ended.
        """
        self._point(ordinal, raw)

    def _point(self, ordinal: int, raw: Raw) -> None:
        try:
            index = self.attributes.index(raw)
        except ValueError:
            index = len(self.attributes)
            self.attributes.append(raw)
            self.owners.append(msgspec.json.decode(raw, type=_Attribute).owner())
        self.allocations[ordinal] = index

    def take(self, ordinals: set[int], raw: Raw) -> None:
        """Give free ordinals to one owner."""
        self.unallocated = [ordinal for ordinal in self.unallocated if ordinal not in ordinals]
        for ordinal in sorted(ordinals):
            self.give(ordinal, raw)

    def count(self, handle: str) -> int:
        """How many ordinals a handle holds."""
        indexes = {index for index, owner in enumerate(self.owners) if owner.handle == handle}
        return sum(1 for index in self.allocations if index in indexes)

    def encode(self) -> bytes:
        """The bytes to store: unused attributes dropped, the sequence number one higher."""
        self._compact()
        self.sequence += 1
        fields: dict[str, object] = dict(self._fields)
        fields["affinity"] = self.affinity
        if self.affinity is None:
            fields.pop(_CLAIM_TIME, None)
        fields["allocations"] = self.allocations
        fields["unallocated"] = self.unallocated
        fields["attributes"] = self.attributes
        fields["sequenceNumber"] = self.sequence
        deleted = fields.pop("deleted") if "sequenceNumberForAllocation" not in fields and "deleted" in fields else None
        fields["sequenceNumberForAllocation"] = dict(sorted(self.sequences.items()))
        if deleted is not None:  # an old block has no such map; Calico writes it before this field
            fields["deleted"] = deleted
        return go_json(fields)

    def _compact(self) -> None:
        used = sorted({index for index in self.allocations if index is not None})
        if len(used) == len(self.attributes):
            return
        renumbered = {old: new for new, old in enumerate(used)}
        self.attributes = [self.attributes[old] for old in used]
        self.owners = [self.owners[old] for old in used]
        self.allocations = [None if index is None else renumbered[index] for index in self.allocations]


class _KnownBlock(Struct):
    cidr: str
    allocations: list[int | None]
    unallocated: list[int]
    attributes: list[Raw]
    affinity: str | None = None
    sequenceNumber: int = 0  # noqa: N815 - Calico's field name
    sequenceNumberForAllocation: dict[str, int] | None = None  # noqa: N815 - Calico's field name


def new_block(cidr: Cidr, affinity: str, at: int) -> BlockRecord:
    """An empty block that nobody has stored yet, its sequence number starting at the current time (ns)."""
    return BlockRecord(
        go_json(
            {
                "cidr": str(cidr),
                "affinity": affinity,
                _CLAIM_TIME: rfc3339(at),
                "allocations": [None] * cidr.size,
                "unallocated": list(range(cidr.size)),
                "attributes": [],
                "sequenceNumber": at,
                "sequenceNumberForAllocation": {},
                "deleted": False,
            }
        )
    )


# --- affinities and handles -----------------------------------------------------------------------------------


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
    fields: dict[str, object] = dict(_raw_fields(old))
    fields["state"] = state
    fields["deleted"] = False
    return go_json(fields)


class HandleRecord:
    """How many addresses of each block (by CIDR) a handle holds."""

    __slots__ = ("_fields", "blocks")

    def __init__(self, value: bytes | None) -> None:
        self._fields = _raw_fields(value)
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


def _raw_fields(value: bytes | None) -> dict[str, Raw]:
    if not value:
        return {}
    try:
        return msgspec.json.decode(value, type=dict[str, Raw])
    except MALFORMED as error:
        raise RecordError(f"not a JSON object: {error}") from error


# --- configuration and resources ------------------------------------------------------------------------------


class IpamConfig(Struct, frozen=True):
    """The cluster's IPAM configuration; the defaults are those of a cluster that has no such record."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0
    cooldown: int = 0
    """Seconds for which a released address is kept from everybody."""

    @property
    def block_limit(self) -> int:
        """How many affine blocks a node may have, for each IP version (Calico takes 0 as 20)."""
        return self.max_blocks_per_host or 20


class _StoredConfig(Struct):
    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    maxBlocksPerHost: int = 0  # noqa: N815 - Calico's field name
    ipCooldownSeconds: int = 0  # noqa: N815 - Calico's field name


def decode_config(value: bytes | None) -> IpamConfig:
    """The IPAM configuration: if the record is there, an absent boolean is false."""
    if value is None:
        return IpamConfig()
    try:
        stored = msgspec.json.decode(value, type=_StoredConfig)
    except MALFORMED as error:
        raise RecordError(f"not an IPAM configuration: {error}") from error
    return IpamConfig(
        stored.strict_affinity, stored.auto_allocate_blocks, stored.maxBlocksPerHost, stored.ipCooldownSeconds
    )


class _ClusterSpec(Struct):
    datastoreReady: bool | None = None  # noqa: N815 - Calico's field name
    clusterGUID: str = ""  # noqa: N815 - Calico's field name


class _ClusterInformation(Struct):
    spec: _ClusterSpec


def datastore_locked(value: bytes | None) -> bool:
    """Whether ClusterInformation says that nobody may write (upgrade, migration)."""
    return False if value is None else _cluster(value).datastoreReady is False


def cluster_guid(value: bytes | None) -> str:
    """What ClusterInformation calls the cluster; "" if it does not say."""
    return "" if value is None else _cluster(value).clusterGUID


def _cluster(value: bytes) -> _ClusterSpec:
    try:
        return msgspec.json.decode(value, type=_ClusterInformation).spec
    except MALFORMED as error:
        raise RecordError(f"not a ClusterInformation: {error}") from error


class _NodeMetadata(Struct):
    labels: dict[str, str] | None = None


class _Node(Struct):
    metadata: _NodeMetadata


def node_labels(value: bytes) -> dict[str, str]:
    """The labels of a Node, which its Kubernetes node's are copied to."""
    try:
        return msgspec.json.decode(value, type=_Node).metadata.labels or {}
    except MALFORMED as error:
        raise RecordError(f"not a Node: {error}") from error


class _Pressure(Struct):
    time: str


def pressure_record(node: str, at: int) -> bytes:
    """Says that ``node`` found a pool exhausted at ``at`` (Unix time, ns) while a pod waited: our own record."""
    return go_json({"node": node, "time": rfc3339(at)})


def pressure_at(value: bytes) -> int | None:
    """When a node found a pool exhausted, by its own clock (Unix time, ns); None if that is not said in this form."""
    try:
        return parse_rfc3339(msgspec.json.decode(value, type=_Pressure).time)
    except MALFORMED:
        return None


class _ReservationSpec(Struct):
    reservedCIDRs: list[str] | None = None  # noqa: N815 - Calico's field name


class _Reservation(Struct):
    spec: _ReservationSpec


def reserved_cidrs(value: bytes) -> tuple[Cidr, ...]:
    """The CIDRs and single addresses that an IPReservation keeps from automatic assignment.

    10.0.0.5/30 is 10.0.0.4/30: Calico takes it, unlike for a pool.
    """
    try:
        texts = msgspec.json.decode(value, type=_Reservation).spec.reservedCIDRs or []
        return tuple(parse_cidr(str(ipaddress.ip_network(text, strict=False))) for text in texts)
    except MALFORMED as error:
        raise RecordError(f"not an IPReservation: {error}") from error
