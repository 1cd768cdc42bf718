"""``gc``: allocations whose container is gone and whose DEL never came."""

from typing import Any

import click

from ipamd.ctl.asking import ask
from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Column, Output, Sheet, age, counted, output_option, show
from ipamd.ctl.target import Target

_GC = """\
  ipamctl gc
  ipamctl gc --release --yes
  ipamctl gc -o json
"""

_SHEET = Sheet(
    (
        Column("ADDRESSES", lambda leak: ",".join(leak["addresses"])),
        Column("HANDLE", lambda leak: leak["handle"]),
        Column("RELEASED IN", lambda leak: age(leak["seconds_left"])),
        Column("WHY", lambda leak: leak["why"]),
    ),
    lambda leak: f"handle/{leak['handle']}",
)


@command("gc", _GC)
@click.option("--release", is_flag=True, help="release them at once; asks first")
@click.option("--yes", is_flag=True, help="do not ask")
@output_option
async def gc(target: Target, release: bool, yes: bool, output: Output) -> None:  # noqa: FBT001 - click passes names
    """Show the allocations that look leaked: their container is gone, by the runtime's word and another source's.

    The daemon releases them by itself when that has been so for `runtime.leak_grace` without a break.
    """
    daemon = target.daemon()
    told: dict[str, Any] = await daemon.get("/v1/gc")
    if told["problem"]:
        raise CommandError(f"cannot tell what is leaked: {told['problem']}; nothing is released on one source's word")
    if release and told["leaks"]:
        ask(f"Release {counted(len(told['leaks']), 'allocation')} now?", yes=yes)
        told = await daemon.post("/v1/gc")
        click.echo(f"released {counted(len(told['leaks']), 'allocation')}", err=True)
    if told["leaks"] or output.form not in ("table", "wide"):
        show(output, _SHEET, told["leaks"], {"items": told["leaks"]})
    else:
        click.echo("nothing looks leaked")
