"""``ipam release``: free addresses that nobody uses, one by one or as a report of ``ipam check`` names them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ipamd.ctl.asking import ask
from ipamd.ctl.command import command
from ipamd.ctl.commands.ipam.holders import AddressType
from ipamd.ctl.errors import CommandError, UsageError
from ipamd.ctl.output import counted
from ipamd.ctl.target import Records, Target

if TYPE_CHECKING:
    from ipamd.ctl.freeing import Allocated
    from ipamd.ctl.report import Report

SHOWN = 10
"""Addresses that are listed before it is asked whether to release them."""

_RELEASE = """\
  ipamctl ipam release --ip 192.168.0.7
  ipamctl ipam release --ip 192.168.0.7 --yes
  ipamctl ipam release --from-report report.json
"""


@command("release", _RELEASE)
@click.option("--ip", type=AddressType(), metavar="ADDRESS", help="release this address")
@click.option(
    "--from-report",
    "reports",
    type=click.Path(),
    metavar="FILE",
    multiple=True,
    help="release what is leaked by a report of `ipam check`; of several, what is leaked by all of them",
)
@click.option("--force", is_flag=True, help="also what a pod of this daemon has, or a node's reserve")
@click.option("--yes", is_flag=True, help="do not ask")
async def release(
    target: Target, /, *, ip: tuple[int, int] | None, reports: tuple[str, ...], force: bool, yes: bool
) -> None:
    """Release addresses that were not released when their pods went: any pod can have them from then on.

    What uses an address is not told of it. From a report only what still is as it says is released: the same handle
    with the same sequence number. The exit code is 1 if anything was left alone.
    """
    if (ip is not None) == bool(reports):
        raise UsageError("cannot release: name an address with --ip, or reports with --from-report")
    async with target.records() as records:
        if ip is not None:
            await _address(target, records, ip, force=force, yes=yes)
        else:
            await _reports(target, records, reports, force=force, yes=yes)


async def _address(target: Target, records: Records, ip: tuple[int, int], *, force: bool, yes: bool) -> None:
    from ipamd.core.address import format_address
    from ipamd.ctl import freeing

    address = format_address(*ip)
    blocks = await freeing.find(records, [address])
    found = freeing.seen(address, blocks[address]) if blocks else None
    if found is None:
        raise CommandError(f"cannot release: IP address {address} is not assigned")
    held, attributes = found
    node = attributes.get("node", "")
    why = (
        _in_reserve(held.handle, node)
        or (await _living(target)).get(address, "")
        or await _served(target, records, node)
    )
    if why and not force:
        raise CommandError(f"cannot release {address}: {why}, or say --force")
    said = ", ".join(f"{name} {value}" for name, value in sorted(attributes.items()))
    ask(f"Release {address}, which handle {held.handle or '<none>'} has ({said or 'nothing is known of it'})?", yes=yes)
    freed = await freeing.free(records, [held])
    for reason in freed.refused.values():
        raise CommandError(f"cannot release {address}: {reason}; look again with `ipamctl ipam show --ip {address}`")
    click.echo(f"Successfully released IP address {address}")


def _in_reserve(handle: str, node: str) -> str:
    """Why an address is not to be released if it is a reserve; "" if it is not."""
    from ipamd.core.keys import is_reserve_of

    if not (node and is_reserve_of(handle, node)):
        return ""
    return (
        f"it is in reserve of node {node}, whose daemon may give it to a pod at any moment without asking; "
        "`ipamctl drain` there gives all of it back"
    )


async def _served(target: Target, records: Records, node: str) -> str:
    """Why an address of another node, or of any if no daemon is asked, is not to be released: a daemon serves it."""
    from ipamd.core import keys

    served = (await records.read([keys.DAEMONS + node])).records if node else ()
    if not served or (not target.direct and (await target.daemon().get("/v1/status"))["node"] == node):
        return ""
    return (
        f"ipamd serves node {node} and would write it again if its pod lives; delete the pod, or release it by the "
        "daemon there"
    )


async def _living(target: Target) -> dict[str, str]:
    """The addresses that the daemon knows to be used, each with why it is not to be released; none without a daemon."""
    if target.direct:
        return {}
    daemon = target.daemon()
    found = {}
    for held in await daemon.get("/v1/allocations"):
        pod = f"pod {held['namespace']}/{held['pod']}" if held["pod"] else "it"
        found[held["address"]] = f"{pod} of this node has it, for container {held['container']}; delete the pod"
    for tunnel in await daemon.get("/v1/tunnel-addresses"):
        found[tunnel["address"]] = f"it is this node's {tunnel['type']}; `DELETE /v1/tunnel-addresses` releases it"
    return found


# --- reports ------------------------------------------------------------------------------------------------------


async def _reports(target: Target, records: Records, files: Sequence[str], *, force: bool, yes: bool) -> None:
    from ipamd.ctl import freeing
    from ipamd.ctl.report import load

    reports = [load(file) for file in files]
    await _check_cluster(records, files, reports)
    leaked = _common(reports, _leaked)
    handles = _common(reports, lambda report: report.leakedHandles or [])
    affinities = _common(reports, lambda report: report.staleAffinities)
    blocks = _common(reports, lambda report: report.unclaimedBlocks)
    alone = (
        {} if force else {ip: why for ip, why in (await _living(target)).items() if ip in {a.address for a in leaked}}
    )
    leaked = [each for each in leaked if each.address not in alone]
    total = len(leaked) + len(handles) + len(affinities) + len(blocks)
    if total:
        for each in leaked[:SHOWN]:
            click.echo(f"  {each.address} of handle {each.handle}", err=True)
        if len(leaked) > SHOWN:
            click.echo(f"  and {len(leaked) - SHOWN} more", err=True)
        ask(
            f"Release {counted(len(leaked), 'address')} and {counted(total - len(leaked), 'leftover record')}?", yes=yes
        )
    # First the blocks, whose revision an address that is freed changes; without a node they go with the last of these.
    alone |= await _each("blocks", blocks, _key, lambda each: freeing.take_block(records, each))
    freed = await freeing.free(records, leaked)
    alone |= freed.refused
    click.echo(f"Released {len(freed.done)} IPs successfully" if leaked else _NOTHING)
    if freed.absent:
        click.echo(f"{len(freed.absent)} addresses marked as leaked in the report had already been cleaned up.")
    alone |= await _each("handles", handles, lambda each: each.ID, lambda each: freeing.delete_handle(records, each))
    alone |= await _each("affinities", affinities, _key, lambda each: freeing.delete_affinity(records, each))
    if alone:
        lines = "".join(f"\n  {what}: {why}" for what, why in sorted(alone.items()))
        raise CommandError(f"left alone {counted(len(alone), 'thing')} of the report; make a new one:{lines}")


_NOTHING = "Report didn't contain any leaked IPs to clean up."


def _key(each: Any) -> str:
    return str(each.key)


async def _check_cluster(records: Records, files: Sequence[str], reports: "Sequence[Report]") -> None:
    """Refuse a report of another cluster, or one that names records of other kinds than it may."""
    from ipamd.core import keys
    from ipamd.core.records import cluster_guid
    from ipamd.ctl.image import AFFINITIES

    found = (await records.read([keys.CLUSTER_INFORMATION])).records
    here = cluster_guid(found[0].value) if found else ""
    for file, report in zip(files, reports, strict=True):
        if report.clusterGUID != here:
            raise CommandError(
                f"cannot use {file}: it is of cluster {report.clusterGUID or '(without a name)'}, and this is "
                f"{here or 'one without a name'}; make a report of this one"
            )
        strays = [each.key for each in report.staleAffinities if not each.key.startswith(tuple(AFFINITIES))]
        strays += [each.key for each in report.unclaimedBlocks if keys.kind_of(each.key) is not keys.Kind.BLOCK]
        if strays:
            raise CommandError(f"cannot use {file}: {strays[0]} is no affinity and no block; make a new report")


def _leaked(report: "Report") -> "list[Allocated]":
    """What a report calls leaked. By ours it is because its node is gone, by Calico's for whatever reason."""
    from ipamd.ctl.freeing import Allocated

    ours = report.version.startswith("ipamctl ")
    return [
        Allocated(each.ip, each.handle, each.sequenceNumber, each.node if ours else "")
        for found in (report.allocations or {}).values()
        for each in found
        if not each.inUse
    ]


def _common(reports: "Sequence[Report]", of: "Callable[[Report], Sequence[Any]]") -> list[Any]:
    """What all reports have, in the order of the first."""
    others = [set(of(report)) for report in reports[1:]]
    return [each for each in of(reports[0]) if all(each in other for other in others)]


async def _each(
    things: str, listed: Sequence[Any], name: Callable[[Any], str], remove: Callable[[Any], Awaitable[str]]
) -> dict[str, str]:
    """Remove one thing after the other, and say how many; returns those left alone, with the reason."""
    alone = {}
    for each in listed:
        why = await remove(each)
        if why:
            alone[name(each)] = why
    if listed:
        click.echo(f"Released {len(listed) - len(alone)} {things}; {len(alone)} skipped.")
    return alone
