"""Commands on records: ``get``."""

import click

from ipamd.ctl import completion
from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Output, output_option, show
from ipamd.ctl.resources.kind import Kind
from ipamd.ctl.resources.kinds import KindType
from ipamd.ctl.target import Target

_GET = """\
  ipamctl get ippool
  ipamctl get ippool default-ipv4-ippool -o yaml
  ipamctl get ippools -o wide
  ipamctl get ippools -o jsonpath='{range .items[*]}{.metadata.name}{"\\t"}{.spec.cidr}{"\\n"}{end}'
  ipamctl get ippools -o custom-columns=NAME:.metadata.name,BLOCKS:.spec.blockSize
"""


@command("get", _GET)
@click.argument("kind", type=KindType())
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=completion.of_kind)
@output_option
async def get(target: Target, kind: Kind, names: tuple[str, ...], output: Output) -> None:
    """Show records of a kind: all, or those named."""
    async with target.records() as records:
        listing = await kind.read(records, names)
    show(output, kind.sheet, listing.resources, kind.document(listing, names))
    if listing.damaged:
        raise CommandError("\n".join(listing.damaged))
