"""Node: Calico's record of a node, whose labels choose pools. What else it says is its other programs' affair."""

from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Column, Sheet
from ipamd.ctl.resources.kind import Kind, Resource, field
from ipamd.ctl.target import Records


class _NodeKind(Kind):
    async def release(self, records: Records, stored: Resource, *, dry_run: bool) -> str:
        """Refuse: more than one record would have to go."""
        raise CommandError(
            f"cannot delete Node {stored['metadata']['name']}: what belongs to a node is in more records than this; "
            "use `calicoctl delete node`, or delete the node in Kubernetes"
        )


_COLUMNS = (
    Column("NAME", lambda node: field(node, "metadata", "name")),
    Column("ASN", lambda node: field(node, "spec", "bgp", "asNumber", default="(default)"), wide=True),
    Column("IPV4", lambda node: field(node, "spec", "bgp", "ipv4Address"), wide=True),
    Column("IPV6", lambda node: field(node, "spec", "bgp", "ipv6Address"), wide=True),
)

NODE = _NodeKind(
    "Node",
    ("nodes", "no", "nos", "node"),
    Sheet(_COLUMNS, lambda node: f"node.projectcalico.org/{field(node, 'metadata', 'name')}", calico=True),
)
