"""host-local's half of the CNI contract: configurations with ranges, and what is answered for them. Pure.

The same verdicts on a configuration and, byte for byte, the same answers as the reference plugin (1.1.1, by runs of
it); the words of errors and their codes are ours. Pools, and what belongs to them, have no part in it. ``dataDir`` is
not used: what is held is in the daemon's state file.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ipamd.api.asked import requested_addresses
from ipamd.api.cni import Invocation, NetworkConfig, RangeConfig, Route, labels_of
from ipamd.api.resolv import Dns
from ipamd.api.result import encode, read_route
from ipamd.core.address import format_address
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import RangeAssigned
from ipamd.core.ranges import Range, RangeSet, check_sets, find, read_address, read_range
from ipamd.core.records import MALFORMED
from ipamd.core.request import RangeRequest

AskCidrs = Callable[[], Sequence[str] | None]
"""Asks for ``spec.podCIDRs`` of this node: empty while they are not known, None if nobody asks Kubernetes."""

_POD_CIDR = {"usepodcidr": 4, "usepodcidripv6": 6}
"""What Calico's plugin replaces in ``subnet``, in any case, by the node's CIDR of this IP version."""

_ONE_OF_EACH = ("0.1.0", "0.2.0")
"""The versions whose results have room for one address of each IP version."""


class UnknownCidrsError(RefusedError):
    """The node's CIDRs are not known yet: worth a wait."""


class Plan(Struct, frozen=True):
    """What a configuration asks for: the range sets, and the routes to answer, each with its IP version."""

    sets: tuple[RangeSet, ...]
    routes: tuple[tuple[int, Route], ...]


def serves(config: NetworkConfig) -> bool:
    """Whether a configuration is host-local's. For ``calico-ipam`` ranges are unknown keys, as for Calico's plugin."""
    ipam = config.ipam
    if ipam.type == "host-local":
        return True
    given = ipam.subnet is not None or ipam.ranges is not None or "ipRanges" in (config.runtimeConfig or ())
    return given and ipam.type != "calico-ipam"


def read_plan(config: NetworkConfig, ask: AskCidrs) -> Plan:
    """The ranges and routes of a configuration; raises RefusedError (7, or 11 while the node's CIDR is not known)."""
    given = tuple(tuple(_resolved(each, ask) for each in ranges) for ranges in _given(config))
    try:
        sets, routes = _sets(given), tuple(map(read_route, config.ipam.routes or ()))
    except ValueError as error:
        raise _unusable(str(error)) from error
    families = [ranges[0].family for ranges in sets]
    if config.cniVersion in _ONE_OF_EACH and len(families) != len(set(families)):
        raise _unusable(f"a result of CNI version {config.cniVersion} has one address of each IP version at most")
    return Plan(sets, routes)


def _given(config: NetworkConfig) -> list[tuple[RangeConfig, ...]]:
    ipam = config.ipam
    given = list(ipam.ranges or ())
    if ipam.subnet is not None:
        if isinstance(ipam.gateway, list):
            raise _unusable("ipam.gateway is a list; a range has one gateway")
        given.insert(0, (RangeConfig(ipam.subnet, ipam.rangeStart, ipam.rangeEnd, ipam.gateway),))
    raw = (config.runtimeConfig or {}).get("ipRanges")
    if raw is not None:
        try:
            given = [*(msgspec.json.decode(raw, type=list[tuple[RangeConfig, ...]] | None) or ()), *given]
        except MALFORMED as error:
            raise _unusable(f"runtimeConfig.ipRanges: {error}") from error
    if not given:
        raise _unusable("there is neither ipam.subnet nor ipam.ranges")
    return given


def _resolved(each: RangeConfig, ask: AskCidrs) -> RangeConfig:
    family = _POD_CIDR.get(each.subnet.lower())
    if family is None:
        return each
    known = ask()
    if known is None:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot use the network configuration: subnet {each.subnet} is what Kubernetes says, which is not asked; "
            "set kubernetes.config, or name the subnet",
        )
    if not known:
        raise UnknownCidrsError(
            Code.TRY_AGAIN_LATER,
            f"cannot assign an address: subnet is {each.subnet}, and Kubernetes has not told this node's podCIDRs yet; "
            "the runtime will try again",
        )
    found = next((cidr for cidr in known if (6 if ":" in cidr else 4) == family), None)
    if found is None:
        raise _unusable(f"subnet is {each.subnet}, and this node's podCIDRs are {', '.join(known)}")
    return replace(each, subnet=found)


@lru_cache(maxsize=64)
def _sets(given: tuple[tuple[RangeConfig, ...], ...]) -> tuple[RangeSet, ...]:
    """Raises ValueError."""
    sets = tuple(tuple(map(_range, ranges)) for ranges in given)
    check_sets(sets)
    return sets


def _range(each: RangeConfig) -> Range:
    return read_range(each.subnet, each.rangeStart or "", each.rangeEnd or "", each.gateway or "")


def range_request(invocation: Invocation, plan: Plan) -> RangeRequest:
    """What an ADD asks the core for; raises RefusedError (4, 7) for requested addresses that are none."""
    requested = requested_addresses(invocation.config, invocation.args)
    wanted = tuple(dict.fromkeys(address for address, _source in requested))
    return RangeRequest(invocation.attachment, plan.sets, labels_of(invocation), invocation.started, wanted)


def answer(config: NetworkConfig, plan: Plan, assigned: RangeAssigned, dns: Dns) -> bytes:
    """The success of an ADD: of each range set the address held, with the mask and gateway of its range."""
    held = [read_address(text) for text in assigned.addresses]
    ips = []
    for ranges in plan.sets:
        for address in held:
            within = find(ranges, address)
            if within is not None:
                text = f"{format_address(*address)}/{within.prefix}"
                ips.append((within.family, text, format_address(*within.gateway)))
                break
    return encode(config.cniVersion, ips, plan.routes, dns)


def _unusable(why: str) -> RefusedError:
    return RefusedError(
        Code.INVALID_CONFIGURATION, f"cannot use the network configuration: {why}; correct the CNI configuration"
    )
