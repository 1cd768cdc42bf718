"""``version`` and ``completion``."""

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from ipamd import __version__
from ipamd.ctl.command import Command, command
from ipamd.ctl.target import Target

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}

_VERSION = """\
  ipamctl version
  ipamctl version --client
"""


@command("version", _VERSION)
@click.option("--client", is_flag=True, help="do not ask the daemon")
async def version(target: Target, client: bool) -> None:  # noqa: FBT001 - click passes names
    """Print the versions of this program and of the daemon."""
    click.echo(f"ipamctl {__version__}")
    if not client and not target.direct:
        status = await target.daemon().get("/v1/status")
        click.echo(f"ipamd {status['version']} (node {status['node']})")


@click.command(
    "completion",
    cls=Command,
    epilog="""\
  eval "$(ipamctl completion bash)"
  ipamctl completion zsh > "${fpath[1]}/_ipamctl"
  ipamctl completion fish > ~/.config/fish/completions/ipamctl.fish
""",
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, flags, kinds and names."""
    script = _SHELLS[shell](context.find_root().command, {}, "ipamctl", "_IPAMCTL_COMPLETE")
    click.echo(script.source())
