"""Replacing a pool by several that cover the same addresses, in one transaction: no reader ever sees a gap."""

import time
import uuid
from collections.abc import Sequence

from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.pool import decode_pool
from ipamd.core.records import RecordError, go_json, rfc3339
from ipamd.ctl.errors import CommandError
from ipamd.ctl.resources.fields import LONGEST_NAME
from ipamd.ctl.resources.ippool import IP_POOL
from ipamd.ctl.resources.kind import Resource
from ipamd.ctl.target import Records
from ipamd.store.base import Change

MOST = 64
"""Pools that one becomes at most: they are made in one transaction, of which etcd takes 128 operations."""


async def the_pool(records: Records, cidr: str | None, name: str | None) -> Resource:
    """The pool of a name or of a CIDR; raises CommandError."""
    if name is not None:
        return (await IP_POOL.read(records, [name])).resources[0]
    for pool in (await IP_POOL.read(records, ())).resources:
        if pool["spec"]["cidr"] == cidr:
            return pool
    raise CommandError(f"cannot split {cidr}: no pool has this CIDR; `ipamctl get ippool` lists the pools")


def pieces(pool: Resource, number: int) -> list[Resource]:
    """The pools that one becomes, named ``split-<name>-<number>`` as Calico names them; raises CommandError."""
    name = pool["metadata"]["name"]
    cannot = f"cannot split IPPool {name} into {number}"
    try:
        known = decode_pool(go_json(pool))
    except RecordError as error:
        raise CommandError(f"{cannot}: {error}; correct its record") from error
    cidr, size = known.cidr, known.block_size
    if number < 2 or number.bit_count() != 1:
        raise CommandError(f"{cannot}: the number is no power of 2; give 2, 4, 8, ...")
    if number > MOST:
        raise CommandError(f"{cannot}: {MOST} are the most at once; split the parts again")
    prefix = cidr.prefix + number.bit_length() - 1
    if prefix > size:
        raise CommandError(
            f"{cannot}: {cidr} is not large enough, each part would be smaller than one of its blocks (/{size}); "
            f"{1 << max(0, size - cidr.prefix)} are the most"
        )
    created = rfc3339(time.time_ns())
    return [
        {
            **pool,
            "metadata": {
                **_kept(pool),
                "name": _name(name, at),
                "uid": str(uuid.uuid4()),
                "creationTimestamp": created,
            },
            "spec": {**pool["spec"], "cidr": str(Cidr(cidr.family, cidr.base + at * (cidr.size // number), prefix))},
        }
        for at in range(number)
    ]


def _kept(pool: Resource) -> Resource:
    return {name: value for name, value in pool["metadata"].items() if name in ("labels", "annotations")}


def _name(name: str, at: int) -> str:
    longest = LONGEST_NAME - len(f"split--{at}")
    return f"split-{name[:longest]}-{at}"


async def replace(records: Records, pool: Resource, parts: Sequence[Resource]) -> None:
    """Write the parts in place of the pool, if it is as it was read; raises CommandError."""
    name, revision = pool["metadata"]["name"], int(pool["metadata"]["resourceVersion"])
    created = [Change(IP_POOL.key(part["metadata"]["name"]), IP_POOL.encode(part, None), 0) for part in parts]
    outcome = await records.commit([*created, Change(IP_POOL.key(name), None, revision)])
    if outcome.chosen is not None:
        return
    there = [keys.name_of(change.key) for change in created if change.key in outcome.records]
    if there:
        raise CommandError(f"cannot split IPPool {name}: {there[0]} exists already; delete it, or split that one")
    raise CommandError(
        f"cannot split IPPool {name}: somebody else changed it at this moment; look at it, and try again"
    )
