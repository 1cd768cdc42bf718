"""IPPool: the CIDRs that blocks are cut from."""

from ipamd.ctl.output import Column, Sheet
from ipamd.ctl.resources.kind import Kind, Resource, field

_COLUMNS = (
    Column("NAME", lambda pool: field(pool, "metadata", "name")),
    Column("CIDR", lambda pool: field(pool, "spec", "cidr")),
    Column("NAT", lambda pool: field(pool, "spec", "natOutgoing", default="false"), wide=True),
    Column("IPIPMODE", lambda pool: field(pool, "spec", "ipipMode", default="Never"), wide=True),
    Column("VXLANMODE", lambda pool: field(pool, "spec", "vxlanMode", default="Never"), wide=True),
    Column("DISABLED", lambda pool: field(pool, "spec", "disabled", default="false"), wide=True),
    Column("DISABLEBGPEXPORT", lambda pool: field(pool, "spec", "disableBGPExport", default="false"), wide=True),
    Column("SELECTOR", lambda pool: field(pool, "spec", "nodeSelector", default="all()")),
    Column("ASSIGNMENTMODE", lambda pool: field(pool, "spec", "assignmentMode", default="Automatic"), wide=True),
)
"""calicoctl's columns."""


def _name(pool: Resource) -> str:
    return f"ippool.projectcalico.org/{field(pool, 'metadata', 'name')}"


IP_POOL = Kind("IPPool", ("ippools", "ipp", "pool", "pools", "ippool"), Sheet(_COLUMNS, _name, calico=True))
