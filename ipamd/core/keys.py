"""Where Calico keeps its records: the keys, built and taken apart.

The key scheme is Calico's etcd datastore's; every store uses it to name records (see ``store.base``).
"""

from enum import Enum
from functools import lru_cache

from ipamd.core.address import Cidr, parse_cidr

RESOURCES = "/calico/resources/v3/projectcalico.org/"
POOLS = RESOURCES + "ippools/"
RESERVATIONS = RESOURCES + "ipreservations/"
NODES = RESOURCES + "nodes/"
CLUSTER_INFORMATION = RESOURCES + "clusterinformations/default"
IPAM = "/calico/ipam/v2/"
CONFIG = IPAM + "config"
HANDLES = IPAM + "handle/"
PRESSURE = "/calico/ipamd/pressure/"
"""Ours, not Calico's: one key for each pool that a node found exhausted while a pod waited.

Below Calico's prefix, where none of its programs looks: etcd credentials made for Calico are enough.
"""
ASKED = PRESSURE + "address/"
"""Below it one key for each address that a pod asked for while another node has it in reserve."""

CLEANER = "/calico/ipamd/cleaner"
"""Which daemon of the cluster clears away what nobody owns: a record under its lease."""

DAEMONS = "/calico/ipamd/nodes/"
"""Below it which host serves a node: a record under its lease."""


class Kind(Enum):
    """What a key names."""

    POOL = "pool"
    RESERVATION = "reservation"
    NODE = "node"
    CLUSTER_INFORMATION = "cluster information"
    CONFIG = "IPAM configuration"
    BLOCK = "block"
    AFFINITY = "affinity"
    HANDLE = "handle"
    PRESSURE = "pressure"
    OTHER = "other"


_BLOCKS = (IPAM + "assignment/ipv4/block/", IPAM + "assignment/ipv6/block/")
_PREFIXES = (
    (_BLOCKS, Kind.BLOCK),
    (HANDLES, Kind.HANDLE),
    (IPAM + "host/", Kind.AFFINITY),
    (POOLS, Kind.POOL),
    (RESERVATIONS, Kind.RESERVATION),
    (NODES, Kind.NODE),
    (CONFIG, Kind.CONFIG),
    (CLUSTER_INFORMATION, Kind.CLUSTER_INFORMATION),
    (PRESSURE, Kind.PRESSURE),
)


def kind_of(key: str) -> Kind:
    """What kind of record a key names; OTHER for keys that are none of ours."""
    for prefix, kind in _PREFIXES:
        if key.startswith(prefix):
            return kind
    return Kind.OTHER


def is_block(key: str) -> bool:
    """Whether a key is a block's."""
    return key.startswith(_BLOCKS)


def blocks_prefix(family: int) -> str:
    """Below which all blocks of an IP version are."""
    return f"{IPAM}assignment/ipv{family}/block/"


@lru_cache(maxsize=4096)
def block_key(cidr: Cidr) -> str:
    """The key of a block: its CIDR with ``-`` for ``/``."""
    return blocks_prefix(cidr.family) + _dashed(cidr)


RESERVE = "ipamd-reserve-"
"""What the handles of all reserves begin with."""


def reserve_handle(node: str, instance: str = "") -> str:
    """The handle of a node's reserve: with the name of the state file that knows to whom it was promised."""
    return f"{RESERVE}{node}.{instance}" if instance else RESERVE + node


def is_reserve_of(handle: str, node: str) -> bool:
    """Whether a handle is that of a node's reserve, under the name of whatever state file."""
    name = reserve_handle(node)
    return handle == name or handle.rpartition(".")[0] == name


def host_affinity(node: str) -> str:
    """What a block's ``affinity`` says when it belongs to a node."""
    return f"host:{node}"


def affinities_prefix(node: str) -> str:
    """Below which all affinities of a node are, of both IP versions."""
    return f"{IPAM}host/{node}/"


def affinity_key(node: str, cidr: Cidr) -> str:
    """The key of a node's claim of a block."""
    return claim_key(host_affinity(node), cidr)


def claim_key(owner: str, cidr: Cidr) -> str:
    """The key of an owner's claim of a block; the owner as a block's ``affinity`` says it, ``host:<node>``."""
    kind, _, name = owner.partition(":")
    return f"{IPAM}{kind}/{name}/ipv{cidr.family}/block/{_dashed(cidr)}"


def handle_key(handle: str) -> str:
    """The key of a handle."""
    return HANDLES + handle


def pressure_key(pool: str) -> str:
    """The key that says that a pool is pressed."""
    return PRESSURE + pool


def asked_key(address: str) -> str:
    """The key that asks whoever has an address in reserve to give it back."""
    return ASKED + address


def cidr_of(key: str) -> Cidr:
    """The CIDR that a block's or an affinity's key names; raises ValueError if it names none."""
    return parse_cidr("/".join(key.rpartition("/")[2].rsplit("-", 1)))


def name_of(key: str) -> str:
    """The last part of a resource's key: its name."""
    return key.rpartition("/")[2]


def _dashed(cidr: Cidr) -> str:
    return str(cidr).replace("/", "-")
