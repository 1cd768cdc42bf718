"""Which pools Calico's programs take an address from, written a second time: plain and slow."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from tests.calico.datastore import RESOURCES, Datastore, Entry

POOLS = RESOURCES + "ippools/"
RESERVATIONS = RESOURCES + "ipreservations/"
NODES = RESOURCES + "nodes/"


class CalicoError(Exception):
    """A request that Calico's programs refuse, in their words."""


class Pool(Struct, frozen=True):
    """A pool as far as an assignment looks at it; ``selector`` is its node selector."""

    name: str
    cidr: str
    block_size: int
    enabled: bool
    manual: bool
    uses: tuple[str, ...]
    selector: str

    @property
    def family(self) -> int:
        """The pool's IP version."""
        return ipaddress.ip_network(self.cidr).version

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return 1 << (self.block_size - ipaddress.ip_network(self.cidr).prefixlen)

    def block(self, index: int) -> str:
        """The CIDR of a block."""
        network = ipaddress.ip_network(self.cidr)
        size = network.num_addresses // self.blocks
        return f"{network.network_address + index * size}/{self.block_size}"

    def block_of(self, address: str) -> str:
        """The CIDR of the block that an address lies in."""
        return str(ipaddress.ip_network(f"{address}/{self.block_size}", strict=False))

    def has(self, address: str) -> bool:
        """Whether an address lies in the pool."""
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.cidr)


async def read_pools(datastore: Datastore) -> list[Pool]:
    """All pools, in the order of their names."""
    return [_pool(entry) for entry in await datastore.list(POOLS)]


def _pool(entry: Entry) -> Pool:
    spec = entry.value["spec"]
    default = 122 if ":" in spec["cidr"] else 26
    return Pool(
        entry.value["metadata"]["name"],
        spec["cidr"],
        spec.get("blockSize") or default,
        not spec.get("disabled"),
        spec.get("assignmentMode") == "Manual",
        tuple(spec.get("allowedUses") or ("Workload", "Tunnel")),
        spec.get("nodeSelector", ""),
    )


def choose(pools: Sequence[Pool], named: Sequence[str], use: str, labels: Mapping[str, str]) -> list[Pool]:
    """The pools of one IP version to try, in order; raises CalicoError if none may serve the use."""
    if named:
        chosen = [_named(pools, name) for name in named]
    else:
        chosen = [pool for pool in pools if pool.enabled and not pool.manual and selects(pool.selector, labels)]
    fit = [pool for pool in chosen if use in pool.uses]
    if chosen and not fit:
        raise CalicoError(f"cannot find a qualified ippool, no pools match the required use ({use})")
    if not fit:
        raise CalicoError("no configured Calico pools")
    return sorted(fit, key=lambda pool: pool.name)


def _named(pools: Sequence[Pool], name: str) -> Pool:
    by_name = {pool.name: pool.cidr for pool in pools}
    cidr = by_name.get(name, name)
    try:
        ipaddress.ip_network(cidr)
    except ValueError:
        raise CalicoError(f'error parsing pool "{name}": invalid CIDR address: {name}') from None
    for pool in pools:
        if pool.cidr == cidr and pool.enabled:
            return pool
    raise CalicoError(f"the given pool ({cidr}) does not exist, or is not enabled")


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether a node selector of the simple forms that the tests use matches."""
    selector = selector.strip()
    if selector in ("", "all()"):
        return True
    if selector.startswith("!"):
        return not selects(selector[1:], labels)
    if comparison := re.fullmatch(r"""([\w./-]+)\s*==\s*(["'])(.*)\2""", selector):
        return labels.get(comparison[1]) == comparison[3]
    raise ValueError(f"the model does not know the selector {selector}")


async def read_reserved(datastore: Datastore) -> Callable[[str], bool]:
    """Whether a reservation keeps an address from automatic assignment."""
    cidrs = [
        ipaddress.ip_network(cidr)
        for entry in await datastore.list(RESERVATIONS)
        for cidr in entry.value["spec"].get("reservedCIDRs") or ()
    ]
    return lambda address: any(ipaddress.ip_address(address) in cidr for cidr in cidrs)


def of_address(pools: Iterable[Pool], address: str) -> Pool | None:
    """The enabled pool that an address lies in."""
    return next((pool for pool in pools if pool.enabled and pool.has(address)), None)
