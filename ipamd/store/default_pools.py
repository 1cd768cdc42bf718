"""The pools made at start when the store has none: so that a first pod finds an address.

As Calico's node agent makes them: one of each IP version that has none, under the agent's names. Several nodes that
start at once make each pool once.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.pool import Pool, decode_pool
from ipamd.core.records import RecordError, go_json, rfc3339
from ipamd.store.base import Change, Store
from ipamd.store.claim import keys_among


class DefaultPool(Struct, frozen=True):
    """A pool to make; the modes are ``Never``, ``Always`` or ``CrossSubnet``, fields as in an IPPool's spec."""

    pool: Pool
    node_selector: str
    ipip: str
    vxlan: str
    nat_outgoing: bool
    disable_bgp_export: bool


async def create_default_pools(
    store: Store, pools: Sequence[DefaultPool], uids: Iterable[str], now: int
) -> tuple[list[str], list[str]]:
    """Create each pool unless there is one of its IP version; returns the names of those created, and what hinders.

    ``now`` is Unix time (ns). Raises what the store raises.
    """
    snapshot = await store.read((), (keys.POOLS,))
    present = {_family(record.value) for record in snapshot.records}
    created, hindered = [], []
    for default, uid in zip(pools, uids, strict=False):
        pool = default.pool
        if pool.family in present:
            continue
        old = await _block_of_another_size(store, pool)
        if old:
            hindered.append(f"cannot create pool {pool.name} with blocks of /{pool.block_size}: {old} is in use")
            continue
        outcome = await store.commit([Change(keys.POOLS + pool.name, _record(default, uid, now), 0)])
        if outcome.chosen is not None:
            created.append(pool.name)
    return created, hindered


def _family(value: bytes) -> int:
    try:
        return decode_pool(value).family
    except RecordError:  # somebody's pool, of whatever version
        return 0


async def _block_of_another_size(store: Store, pool: Pool) -> str:
    """A block that lies in the pool and is not one of its own, from before it; "" if there is none."""
    after = ""
    while True:
        window = keys_among(pool, after)
        _revision, found = await store.list_keys(window)
        for key in found:
            try:
                block = keys.cidr_of(key)
            except ValueError:  # no block's key
                continue
            if block.overlaps(pool.cidr) and not pool.cuts(block):
                return str(block)
        if len(found) < window.limit:
            return ""
        after = found[-1]


def _record(default: DefaultPool, uid: str, now: int) -> bytes:
    pool = default.pool
    metadata = {"name": pool.name, "uid": uid, "creationTimestamp": rfc3339(now)}
    spec = {
        "cidr": str(pool.cidr),
        "vxlanMode": default.vxlan,
        "ipipMode": default.ipip,
        **({"natOutgoing": True} if default.nat_outgoing else {}),
        **({"disableBGPExport": True} if default.disable_bgp_export else {}),
        "blockSize": pool.block_size,
        "nodeSelector": default.node_selector,
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }
    return go_json({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec})
