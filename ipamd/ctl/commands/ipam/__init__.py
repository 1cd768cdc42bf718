"""``ipam``: the addresses of the cluster, in calicoctl's words."""

from ipamd.ctl.command import Group
from ipamd.ctl.commands.ipam.check import check
from ipamd.ctl.commands.ipam.configure import configure
from ipamd.ctl.commands.ipam.release import release
from ipamd.ctl.commands.ipam.show import show
from ipamd.ctl.commands.ipam.split import split

_EXAMPLES = """\
  ipamctl ipam show
  ipamctl ipam show --show-blocks
  ipamctl ipam show --ip 192.168.0.7
  ipamctl ipam check
  ipamctl ipam release --ip 192.168.0.7
  ipamctl ipam configure --strictaffinity=true
  ipamctl ipam split 2 --name default-ipv4-ippool
"""

ipam = Group(
    "ipam",
    [show, check, release, configure, split],
    epilog=_EXAMPLES,
    help="See and steer the addresses of the cluster.",
)
