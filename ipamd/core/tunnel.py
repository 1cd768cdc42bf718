"""Tunnel addresses: what Calico calls them in its records, and the requests for them.

Calico's node agent takes its own out of this node's blocks, whenever it likes, by compare-and-swap. Handles and types
are its: a tunnel address that is asked for here looks in the store as if the agent had taken it, and is found again.
A tunnel is an attachment without a network: its handle is all there is to it.
"""

from collections.abc import Sequence

from ipamd.core.facts import Attachment
from ipamd.core.request import AddRequest

HANDLES = {
    "ipipTunnelAddress": (4, "ipip-tunnel-addr-"),
    "vxlanTunnelAddress": (4, "vxlan-tunnel-addr-"),
    "vxlanV6TunnelAddress": (6, "vxlan-v6-tunnel-addr-"),
    "wireguardTunnelAddress": (4, "wireguard-tunnel-addr-"),
    "wireguardV6TunnelAddress": (6, "wireguard-v6-tunnel-addr-"),
}
"""Type -> IP version, and the handle but for the node's name at its end."""

_PREFIXES = frozenset(prefix for _family, prefix in HANDLES.values())


def attachment(node: str, kind: str) -> Attachment:
    """What holds a node's tunnel address of a type."""
    return Attachment("", HANDLES[kind][1] + node, kind)


def request(node: str, kind: str, pools: Sequence[str], started: int) -> AddRequest:
    """A request for a node's tunnel address of a type, from ``pools`` (by name or CIDR) or any that allows the use."""
    family = HANDLES[kind][0]
    who, named = attachment(node, kind), {family: tuple(pools)}
    return AddRequest(who, (family,), {"type": kind}, started, named, use="Tunnel")


def is_handle(handle: str, node: str) -> bool:
    """Whether a handle is that of a tunnel address of this node."""
    return handle.endswith(node) and handle.removesuffix(node) in _PREFIXES
