"""``ipam``: the addresses of the cluster, in calicoctl's words."""

from ipamd.ctl.command import Group
from ipamd.ctl.commands.ipam.check import check
from ipamd.ctl.commands.ipam.release import release
from ipamd.ctl.commands.ipam.show import show

_EXAMPLES = """\
  ipamctl ipam show
  ipamctl ipam show --show-blocks
  ipamctl ipam show --ip 192.168.0.7
  ipamctl ipam check
  ipamctl ipam release --ip 192.168.0.7
"""

ipam = Group("ipam", [show, check, release], epilog=_EXAMPLES, help="See and steer the addresses of the cluster.")
