"""The pools made at the first start, when the store has none: so that a first pod finds an address.

Named as Calico's node agent names them. Several nodes that start at once make each pool once.
"""

from collections.abc import Iterable

from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.pool import DEFAULT_BLOCK_SIZE
from ipamd.core.records import go_json, rfc3339
from ipamd.store.base import Change, Store


async def create_default_pools(store: Store, cidrs: Iterable[Cidr], uids: Iterable[str], now: int) -> list[str]:
    """Create one pool for each CIDR unless there are pools; returns the names of those created.

    ``now`` is Unix time (ns). Raises what the store raises.
    """
    snapshot = await store.read((), (keys.POOLS,))
    if snapshot.records:
        return []
    created = []
    for cidr, uid in zip(cidrs, uids, strict=False):
        name = f"default-ipv{cidr.family}-ippool"
        outcome = await store.commit([Change(keys.POOLS + name, _record(name, cidr, uid, now), 0)])
        if outcome.chosen is not None:
            created.append(name)
    return created


def _record(name: str, cidr: Cidr, uid: str, now: int) -> bytes:
    metadata = {"name": name, "uid": uid, "creationTimestamp": rfc3339(now)}
    spec = {
        "cidr": str(cidr),
        "vxlanMode": "Never",
        "ipipMode": "Never",
        "natOutgoing": True,
        "blockSize": DEFAULT_BLOCK_SIZE[cidr.family],
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }
    return go_json({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec})
