"""``ipam configure``: the cluster's IPAM configuration, field by field."""

from typing import Any

import click

from ipamd.ctl.command import command
from ipamd.ctl.errors import UsageError
from ipamd.ctl.target import Target

_CONFIGURE = """\
  ipamctl ipam configure --strictaffinity=true
  ipamctl ipam configure --max-blocks-per-host=4
  ipamctl ipam configure --ip-cooldown-seconds=60
"""

_TITLES = {
    "strictAffinity": "StrictAffinity",
    "maxBlocksPerHost": "MaxBlocksPerHost",
    "ipCooldownSeconds": "IPCooldownSeconds",
    "kubeVirtVMAddressPersistence": "KubeVirtVMAddressPersistence",
}
"""Fields of an IPAMConfiguration, and what calicoctl calls them."""

_WHOLE = click.IntRange(0, 2**31 - 1)


@command("configure", _CONFIGURE)
@click.option(
    "--strictaffinity", "strictAffinity", type=bool, metavar="true|false", help="whether nodes may not borrow addresses"
)
@click.option(
    "--max-blocks-per-host", "maxBlocksPerHost", type=_WHOLE, metavar="NUMBER", help="blocks a node may have; 0 is 20"
)
@click.option(
    "--ip-cooldown-seconds",
    "ipCooldownSeconds",
    type=_WHOLE,
    metavar="SECONDS",
    help="for how long nobody gets an address that was released",
)
@click.option(
    "--kubevirt-ip-persistence",
    "kubeVirtVMAddressPersistence",
    type=click.Choice(["Enabled", "Disabled"]),
    help="whether KubeVirt's machines keep their addresses",
)
async def configure(target: Target, /, **given: Any) -> None:
    """Change the cluster's IPAM configuration; what is not named stays as it is.

    `ipamctl ipam show --show-configuration` shows it; `ipamctl apply` of an IPAMConfiguration changes all of it.
    """
    from ipamd.ctl.changes import commit, prepare
    from ipamd.ctl.resources.ipamconfiguration import IPAM_CONFIGURATION, NAME

    wanted = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        raise UsageError("cannot configure: at least one configuration option must be specified; see --help")
    async with target.records() as records:
        stored = (await IPAM_CONFIGURATION.read(records, ())).resources
        before = stored[0] if stored else {"metadata": {"name": NAME}, "spec": {}}
        spec = IPAM_CONFIGURATION.fill(before["spec"], before["spec"])
        resource = {**before, "spec": {**spec, **wanted}}
        await commit("configure", records, await prepare("configure", records, IPAM_CONFIGURATION, resource))
    for name, value in wanted.items():
        click.echo(f"Successfully set {_TITLES[name]} to: {str(value).lower() if value in (True, False) else value}")
