"""Counting a block's addresses by state: what is in use, in reserve, kept back, free."""

import pytest

from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.census import PoolUse, barred_in, borrowed, cells, count, state_of
from ipamd.core.records import WINDOWS_HANDLE, Owner, attribute, new_block

POOL = parse_cidr("10.0.0.0/28")
BLOCK = parse_cidr("10.0.0.0/29")
POD = attribute("net.c1", {"node": "node-a", "pod": "web"})
RESERVE = attribute("ipamd-reserve-node-a.x", {"node": "node-a", "type": "ipipTunnelAddress"})


@pytest.mark.parametrize(
    ("owner", "state"),
    [
        (None, "free"),
        (Owner("net.c1", "node-a", {"pod": "web"}), "pod"),
        (Owner("", "", {}), "pod"),
        (Owner("", "", {}, "2026-11-20T23:47:55Z"), "cooling"),
        (Owner("ipip-tunnel-addr-node-a", "node-a", {}), "tunnel"),
        (Owner("x", "node-a", {"type": "vxlanTunnelAddress"}), "tunnel"),
        (Owner(WINDOWS_HANDLE, "", {}), "other"),
        (Owner("ipamd-reserve-node-a.new", "node-a", {"type": "ipipTunnelAddress"}), "reserve"),
        (Owner("ipamd-reserve-node-a.old", "node-a", {}), "quarantined"),
        (Owner("ipamd-reserve-node-a", "node-a", {}), "quarantined"),
        (Owner("ipamd-reserve-node-b.old", "node-b", {}), "reserve"),
    ],
)
def test_what_an_owner_makes_of_an_address(owner: Owner | None, state: str) -> None:
    """A reserve is one although it bears a tunnel's type, and lost only where a daemon serves with another file."""
    assert state_of(owner, {"node-a": "new"}) == state


def test_what_keeps_an_address_from_a_pod() -> None:
    """Who has it or a reservation, counted once where it is both; the reserve does not."""
    record = new_block(BLOCK, "host:node-a", 0)
    record.take({0, 1}, POD)
    record.take({2, 3}, RESERVE)
    used = count(record, 0b0011_0110, {})
    assert (used.in_use, used.states["reserve"], used.barred, used.free) == (2, 2, 4, 3)


def test_a_pool_has_what_no_block_has_yet() -> None:
    """A pool's free addresses are those of its blocks and all outside them that no reservation keeps back."""
    record = new_block(BLOCK, "host:node-a", 0)
    record.take({0, 1}, POD)
    pool = PoolUse("p", POOL, [count(record, 0b0000_0110, {})], barred=5)
    assert (pool.total, pool.in_use, pool.free) == (16, 2, 5 + 8 - 3)


@pytest.mark.parametrize(
    ("reservations", "number"),
    [
        ([], 0),
        (["10.0.0.4/30", "10.0.0.5/32", "10.0.0.4/31", "10.0.0.4/30"], 4),
        (["10.0.0.0/30", "10.0.0.8/32", "10.1.0.0/16", "fd00::/64"], 5),
        (["10.0.0.0/8", "10.0.0.1/32"], 16),
    ],
)
def test_a_reserved_address_is_counted_once(reservations: list[str], number: int) -> None:
    """However many reservations keep it back."""
    cidrs: list[Cidr] = [parse_cidr(text) for text in reservations]
    assert barred_in(POOL, cidrs) == number


def test_who_borrows() -> None:
    """Another node than the block's; a block of nobody, or of a load balancer, lends all that it has."""
    mine, other, nobody = (Owner("h", node, {}) for node in ("node-a", "node-b", ""))
    record = new_block(BLOCK, "host:node-a", 0)
    assert [borrowed(record, owner) for owner in (mine, other, nobody)] == [False, True, False]
    record.affinity = None
    assert [borrowed(record, owner) for owner in (mine, other, nobody)] == [True, True, False]


def test_what_an_address_is_to_a_node() -> None:
    """What another node's pod has is lent by the block's node and borrowed by that one; its reserve is reserve to all."""
    record = new_block(BLOCK, "host:node-b", 0)
    record.take({0}, POD)
    record.take({1}, RESERVE)
    record.take({2}, attribute("net.c2", {"node": "node-b", "pod": "api"}))
    kept = ["reserve", "pod", "reserved", "free"]
    assert cells(record, 0b0000_1001, {})[:5] == ["borrowed out", *kept]
    assert cells(record, 0b0000_1001, {}, "node-a")[:5] == ["borrowed in", *kept]
