"""What the records say of every pool and every block: read in pages, each block looked at once and let go.

A cluster's blocks are far larger than what is told of them, so none is kept. The pages need not be of one revision.
"""

import sys
from collections.abc import Callable, Mapping

import click
from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import FAMILIES, Cidr
from ipamd.core.census import BlockUse, PoolUse, barred_in, count
from ipamd.core.records import BlockRecord, RecordError, serving_instance
from ipamd.core.settings import Settings
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import counted
from ipamd.ctl.resources.release import keys_below
from ipamd.ctl.target import Records
from ipamd.store.base import Record

PAGE = 100
"""How many blocks are read at once: some hundred kilobytes, one round trip to etcd."""


class Cluster(Struct, frozen=True):
    """What counts beside the blocks: pools and reservations, and the state file of each node that a daemon serves.

    ``damaged`` has the records that cannot be understood, with the reason: what they say is not counted.
    """

    settings: Settings
    serving: Mapping[str, str]
    damaged: dict[str, str]

    def complain(self) -> None:
        """Raise CommandError if anything could not be counted."""
        if self.damaged:
            told = "; ".join(f"{key}: {why}" for key, why in self.damaged.items())
            raise CommandError(
                f"cannot read {counted(len(self.damaged), 'record')}, so that what they hold is not counted: {told}; "
                "another program wrote them: correct or delete them"
            )


async def look(records: Records) -> Cluster:
    """Read what counts beside the blocks."""
    settings, serving, damaged = Settings(""), dict[str, str](), dict[str, str]()
    for record in (await records.read((), (keys.POOLS, keys.RESERVATIONS, keys.DAEMONS))).records:
        try:
            if record.key.startswith(keys.DAEMONS):
                serving[keys.name_of(record.key)] = serving_instance(record.value)
            else:
                settings.apply(record.key, record.value)
        except RecordError as error:
            damaged[record.key] = str(error)
    return Cluster(settings, serving, damaged)


async def each_block(
    records: Records, cluster: Cluster, visit: Callable[[BlockRecord], None], *, progress: bool = True
) -> None:
    """Show every block to ``visit``, in the order of the keys, IPv4 first; on a terminal with a progress bar."""
    names: list[str] = []
    for family in FAMILIES:
        names += await keys_below(records, keys.blocks_prefix(family))
    shown = progress and len(names) > PAGE and sys.stderr.isatty()
    with click.progressbar(length=len(names), label="blocks", file=sys.stderr, hidden=not shown) as bar:
        for start in range(0, len(names), PAGE):
            page = names[start : start + PAGE]
            for record in (await records.read(page)).records:
                block = seen(record, cluster)
                if block is not None:
                    visit(block)
            bar.update(len(page))


def seen(record: Record, cluster: Cluster) -> BlockRecord | None:
    """The block of a record; None if it is softly deleted, or damaged, which is noted."""
    try:
        block = BlockRecord(record.value)
    except RecordError as error:
        cluster.damaged[record.key] = str(error)
        return None
    return None if block.deleted else block


def pool_of(cluster: Cluster, cidr: Cidr) -> str | None:
    """The name of the pool that a block lies in."""
    return next((name for name, pool in cluster.settings.pools.items() if pool.cidr.contains(cidr)), None)


class Usage(Struct, frozen=True):
    """The addresses of each pool, in the order of their names, and of the blocks that lie in none."""

    pools: list[PoolUse]
    orphans: list[BlockUse]


async def usage(records: Records, cluster: Cluster) -> Usage:
    """Count all addresses."""
    settings = cluster.settings
    of_pool: dict[str, list[BlockUse]] = {name: [] for name in settings.pools}
    orphans: list[BlockUse] = []

    def visit(record: BlockRecord) -> None:
        used = count(record, settings.barred_in(record.cidr), cluster.serving)
        pool = pool_of(cluster, record.cidr)
        (orphans if pool is None else of_pool[pool]).append(used)

    await each_block(records, cluster, visit)
    reserved = [cidr for cidrs in settings.reservations.values() for cidr in cidrs]
    pools = [
        PoolUse(name, pool.cidr, of_pool[name], barred_in(pool.cidr, reserved)) for name, pool in settings.pools.items()
    ]
    return Usage(pools, orphans)
