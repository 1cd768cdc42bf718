"""``ipam split``: one pool becomes several that cover the same addresses."""

import click

from ipamd.ctl import completion
from ipamd.ctl.command import command
from ipamd.ctl.errors import UsageError
from ipamd.ctl.target import Target

_SPLIT = """\
  ipamctl ipam split 2 --cidr 172.16.0.0/12
  ipamctl ipam split 4 --name default-ipv4-ippool --dry-run
"""


@command("split", _SPLIT)
@click.argument("number", type=int)
@click.option("--cidr", shell_complete=completion.of("ippool", "cidr"), help="CIDR of the pool to split")
@click.option("--name", shell_complete=completion.of("ippool"), help="name of the pool to split")
@click.option("--dry-run", is_flag=True, help="say which pools it would become, and change nothing")
async def split(target: Target, /, *, number: int, cidr: str | None, name: str | None, dry_run: bool) -> None:
    """Split a pool into NUMBER pools of equal size, a power of two: in one transaction, with its specification.

    Pods keep their addresses and nodes their blocks, which lie in the new pools. Nothing has to be locked. Pods and
    namespaces that name the old pool, by name or CIDR, have to name the new ones.
    """
    from ipamd.ctl.splitting import pieces, replace, the_pool

    if (cidr is None) == (name is None):
        raise UsageError("cannot split: name the pool, either with --cidr or with --name")
    async with target.records() as records:
        pool = await the_pool(records, cidr, name)
        parts = pieces(pool, number)
        if not dry_run:
            await replace(records, pool, parts)
    called = pool["metadata"]["name"]
    done = "would be" if dry_run else "was successfully"
    click.echo(f"IP Pool {called} {done} split into {number} smaller pools.")
    for part in parts:
        verb = "Would create" if dry_run else "Created"
        click.echo(f"{verb} {part['metadata']['name']} with CIDR {part['spec']['cidr']}.")
    if not dry_run:
        click.echo(f"ipamctl: pods and namespaces that name {called} have to name the new pools", err=True)
