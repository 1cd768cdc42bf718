"""``ipam show``: pools and blocks with their addresses counted, one address, borrowed ones, the configuration."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import click

from ipamd.core.census import BlockUse, PoolUse
from ipamd.ctl import completion
from ipamd.ctl import output as forms
from ipamd.ctl.command import command
from ipamd.ctl.commands.ipam.holders import AddressType
from ipamd.ctl.commands.ipam.holders import show_address as _show_address
from ipamd.ctl.commands.ipam.holders import show_borrowed as _show_borrowed
from ipamd.ctl.errors import UsageError
from ipamd.ctl.output import Column, Output, Sheet, counted, output_option
from ipamd.ctl.target import Records, Target

_SHOW = """\
  ipamctl ipam show
  ipamctl ipam show --show-blocks -o wide
  ipamctl ipam show --ip 192.168.0.7
  ipamctl ipam show --show-borrowed
  ipamctl ipam show --show-configuration
  ipamctl ipam show --map --node node-a --watch
  ipamctl ipam show -o jsonpath='{range .items[*]}{.cidr}{"\\t"}{.free}{"\\n"}{end}'
"""


@command("show", _SHOW)
@click.option("--show-blocks", is_flag=True, help="each pool's blocks too, and those that lie in no pool")
@click.option("--ip", type=AddressType(), metavar="ADDRESS", help="who has this address")
@click.option("--show-borrowed", is_flag=True, help="addresses that nodes have in other nodes' blocks")
@click.option("--show-configuration", is_flag=True, help="the cluster's IPAM configuration")
@click.option("--map", "as_map", is_flag=True, help="each block as a grid of its addresses")
@click.option(
    "--node",
    metavar="NAME",
    shell_complete=completion.of("node"),
    help="with --map: only blocks of this node, and those in which it has addresses",
)
@click.option(
    "--watch",
    type=click.FloatRange(0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="with --map: draw again every so many seconds (2), until Ctrl-C",
)
@output_option
async def show(
    target: Target,
    /,
    *,
    show_blocks: bool,
    ip: tuple[int, int] | None,
    show_borrowed: bool,
    show_configuration: bool,
    as_map: bool,
    node: str | None,
    watch: float | None,
    output: Output,
) -> None:
    """Show how many addresses each pool has, and who has them.

    IN USE is what pods and tunnels have, and what is cooling or quarantined. An address in ipamd's reserve is FREE: no
    pod has it, and its node gives it to its next pod, or back when others need it; Calico's own tools count it as in
    use. -o wide counts reserve, cooling and quarantine one by one. RESERVED is what an IPReservation keeps back. An
    address that is reserved and in use counts as both, so that the sum may be more than all.
    """
    modes = {
        "--show-blocks": show_blocks,
        "--ip": ip is not None,
        "--show-borrowed": show_borrowed,
        "--show-configuration": show_configuration,
        "--map": as_map,
    }
    given = [flag for flag, is_given in modes.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"cannot show {' and '.join(given)} at once; give one of them")
    if not as_map and (node is not None or watch is not None):
        raise UsageError(f"cannot take {'--node' if node is not None else '--watch'} without --map; add it")
    if watch is not None and output.form not in ("table", "wide"):
        raise UsageError(f"cannot watch as {output.form}; leave out -o or --watch")
    from ipamd.ctl.commands.ipam.map import show_map, watch_map

    if watch is not None:
        await watch_map(target, node or "", watch)
        return
    async with target.records() as records:
        if ip is not None:
            await _show_address(records, ip, output)
        elif show_borrowed:
            await _show_borrowed(records, output)
        elif show_configuration:
            await _show_configuration(records, output)
        elif as_map:
            await show_map(records, node or "", output)
        else:
            await _show_usage(records, output, blocks=show_blocks)


def _of(used: PoolUse | BlockUse) -> dict[str, Any]:
    states = used.states
    return {
        "total": used.total,
        "in_use": used.in_use,
        "reserved": used.barred,
        "free": used.free,
        "in_reserve": states.get("reserve", 0),
        "cooling": states.get("cooling", 0),
        "quarantined": states.get("quarantined", 0),
    }


def _pool(pool: PoolUse) -> dict[str, Any]:
    return {"kind": "IPPool", "name": pool.name, "cidr": str(pool.cidr), **_of(pool)}


def _block(block: BlockUse) -> dict[str, Any]:
    return {"kind": "Block", "cidr": str(block.cidr), "affinity": block.affinity, **_of(block)}


def _share(name: str) -> Any:
    def text(row: dict[str, Any]) -> str:
        return f"{row[name]} ({round(Fraction(100 * row[name], row['total']))}%)"

    return text


def _whose(row: dict[str, Any]) -> str:
    if row["kind"] == "IPPool":
        return str(row["name"])
    return str(row["affinity"]).removeprefix("host:") or "<none>"


_USAGE = Sheet(
    (
        Column("GROUPING", lambda row: "IP Pool" if row["kind"] == "IPPool" else "Block"),
        Column("CIDR", lambda row: row["cidr"]),
        Column("IPS TOTAL", lambda row: str(row["total"]), right=True),
        Column("IPS IN USE", _share("in_use"), right=True),
        Column("IPS RESERVED", _share("reserved"), right=True),
        Column("IPS FREE", _share("free"), right=True),
        Column("IN RESERVE", _share("in_reserve"), wide=True, right=True),
        Column("COOLING", _share("cooling"), wide=True, right=True),
        Column("QUARANTINED", _share("quarantined"), wide=True, right=True),
        Column("POOL OR NODE", _whose, wide=True),
    ),
    lambda row: f"ippool.projectcalico.org/{row['name']}" if row["kind"] == "IPPool" else f"block/{row['cidr']}",
    boxed=True,
)


async def _show_usage(records: Records, output: Output, *, blocks: bool) -> None:
    from ipamd.ctl.usage import look, usage

    cluster = await look(records)
    used = await usage(records, cluster)
    orphans = [_block(block) for block in used.orphans]
    items = [{**_pool(pool), **({"blocks": [_block(b) for b in pool.blocks]} if blocks else {})} for pool in used.pools]
    rows = list(_rows(items)) + (orphans if blocks else [])
    forms.show(output, _USAGE, rows, {"items": items + (orphans if blocks else [])})
    if orphans and not blocks:
        held = sum(block.in_use for block in used.orphans)
        click.echo(
            f"ipamctl: not counted: {counted(held, 'address')} in use in {counted(len(orphans), 'block')} "
            "that lie in no pool; --show-blocks shows them",
            err=True,
        )
    cluster.complain()


def _rows(pools: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pool in pools:
        yield pool
        yield from pool.get("blocks", ())


_PROPERTIES = {
    "StrictAffinity": "strictAffinity",
    "AutoAllocateBlocks": "autoAllocateBlocks",
    "MaxBlocksPerHost": "maxBlocksPerHost",
    "KubeVirtVMAddressPersistence": "kubeVirtVMAddressPersistence",
    "IPCooldownSeconds": "ipCooldownSeconds",
}
"""Calico's titles, and the fields of an IPAMConfiguration."""

_CONFIGURATION = Sheet(
    (Column("PROPERTY", lambda row: row[0]), Column("VALUE", lambda row: row[1])), lambda row: str(row[0]), boxed=True
)


async def _show_configuration(records: Records, output: Output) -> None:
    from ipamd.ctl.resources.ipamconfiguration import IPAM_CONFIGURATION, NAME
    from ipamd.ctl.resources.kind import API, Resource, field

    listing = await IPAM_CONFIGURATION.read(records, ())
    unset = {"kind": IPAM_CONFIGURATION.name, "apiVersion": API, "metadata": {"name": NAME}, "spec": {}}
    found: Resource = listing.resources[0] if listing.resources else unset
    shown = {**found, "spec": IPAM_CONFIGURATION.fill(found["spec"], {})}
    rows = [(title, field(shown, "spec", name)) for title, name in _PROPERTIES.items()]
    forms.show(output, _CONFIGURATION, rows, shown)
