"""host-local's ranges: which addresses a network gives out, and in which order. Pure functions.

The rules are those of the CNI reference plugin host-local 1.1.1, taken from runs of it, with two exceptions. A range
that ends before it starts (IPv4 broadcast address as rangeStart, no rangeEnd) is refused; host-local goes on after the
subnet's end. A subnet whose first byte is zero (``64:ff9b::/96``) is served; host-local fails on it.

A *range set* is a list of ranges of one IP version; an attachment gets one address of each set.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise

from msgspec import Struct

from ipamd.core.address import BITS, format_address

Address = tuple[int, int]
"""IP version and integer."""


class Range(Struct, frozen=True):
    """The addresses from ``first`` to ``last``, both included, but the gateway if it is one of them.

    They are answered with the prefix length of their subnet and with ``gateway``, which host-local lets be any address.
    """

    family: int
    first: int
    last: int
    prefix: int
    gateway: Address

    def contains(self, address: Address) -> bool:
        """Whether the address is in the range, be it the gateway."""
        return address[0] == self.family and self.first <= address[1] <= self.last

    def __str__(self) -> str:
        return f"{format_address(self.family, self.first)}-{format_address(self.family, self.last)}"


RangeSet = tuple[Range, ...]


@lru_cache(maxsize=4096)  # an address is read several times in its life, and ipaddress takes its time
def read_address(text: str) -> Address:
    """Parse an address as Go does: no zone, and an IPv4 address in IPv6 form is an IPv4 address. Raises ValueError."""
    parsed = ipaddress.ip_address(text)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            raise ValueError(f"{text!r} has a zone")
        parsed = parsed.ipv4_mapped or parsed
    return parsed.version, int(parsed)


def read_range(subnet: str, start: str = "", end: str = "", gateway: str = "") -> Range:
    """Make a range of its texts, "" for what is not given. Raises ValueError, in words, for what host-local refuses.

    Without ``gateway`` it is the first address after the subnet's own. Without ``start`` the range begins there,
    without ``end`` it goes to the subnet's last address, in IPv4 to the one before the broadcast address.
    """
    if not subnet.rpartition("/")[2].isdecimal() or "/" not in subnet or "%" in subnet:
        raise ValueError(f"subnet {subnet!r} is not a CIDR")
    network = ipaddress.ip_network(subnet)
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        raise ValueError(f"subnet {subnet} is IPv4 written as IPv6")
    family, base, bits = network.version, int(network.network_address), BITS[network.version]
    if network.prefixlen > bits - 2:
        raise ValueError(f"subnet {subnet} is too small; the longest prefix is /{bits - 2}")
    first = _inside(network, "rangeStart", start) if start else base + 1
    last = _inside(network, "rangeEnd", end) if end else int(network.broadcast_address) - (family == 4)
    if first > last:
        asked = ", ".join(f"{name} {text}" for name, text in (("rangeStart", start), ("rangeEnd", end)) if text)
        raise ValueError(f"the range of {subnet} with {asked} has no address")
    return Range(family, first, last, network.prefixlen, read_address(gateway) if gateway else (family, base + 1))


def _inside(network: ipaddress.IPv4Network | ipaddress.IPv6Network, name: str, text: str) -> int:
    family, value = read_address(text)
    if family != network.version or not int(network.network_address) <= value <= int(network.broadcast_address):
        raise ValueError(f"{name} {text} is not in subnet {network}")
    return value


def check_sets(sets: Sequence[RangeSet]) -> None:
    """Raise ValueError if one set is empty or mixes IP versions, or any two ranges share an address."""
    for index, ranges in enumerate(sets):
        if len({each.family for each in ranges}) != 1:
            raise ValueError(f"range set {index} {'mixes IPv4 and IPv6' if ranges else 'is empty'}")
    ordered = sorted(chain.from_iterable(sets), key=lambda each: (each.family, each.first))
    for one, other in pairwise(ordered):
        if one.family == other.family and other.first <= one.last:
            raise ValueError(f"the ranges {one} and {other} overlap")


def find(ranges: RangeSet, address: Address) -> Range | None:
    """The range of a set that contains an address."""
    return next((each for each in ranges if each.contains(address)), None)


def stretches(ranges: RangeSet, after: Address | None) -> Iterator[tuple[Range, int, int]]:
    """Where to look for a free address, in order: a range, and the first and last address to look at in it.

    It begins after the address that was last given out and goes round until this one; at the beginning if there is
    none, or none in this set.
    """
    here = None if after is None else find(ranges, after)
    if here is None or after is None:
        yield from ((each, each.first, each.last) for each in ranges)
        return
    index = ranges.index(here)
    yield here, after[1] + 1, here.last
    yield from ((each, each.first, each.last) for each in (*ranges[index + 1 :], *ranges[:index]))
    yield here, here.first, after[1]
