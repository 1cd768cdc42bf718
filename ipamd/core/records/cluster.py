"""What the cluster tells every node: configuration, lock, node labels, reservations; and pressure, our own record."""

import ipaddress

import msgspec
from msgspec import Struct

from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.records.encoding import MALFORMED, RecordError, go_json, parse_rfc3339, rfc3339


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


class _Serving(Struct):
    instance: str


def serving_instance(value: bytes) -> str:
    """The name of the state file of the daemon that serves a node, by its record below ``keys.DAEMONS``."""
    try:
        return msgspec.json.decode(value, type=_Serving).instance
    except MALFORMED as error:
        raise RecordError(f"not the record of a daemon: {error}") from error
