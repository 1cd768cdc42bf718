"""The CNI contract, second half: what the plugin prints. Pure.

Results of an ADD in every version of the specification, and error objects. Answers for ``calico-ipam`` are byte for
byte what Calico's plugin prints.
"""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ipamd.api.cni import VERSIONS, Ipam, NetworkConfig, Route
from ipamd.api.resolv import Dns
from ipamd.core.address import BITS, Cidr, format_address
from ipamd.core.errors import Code, RefusedError
from ipamd.core.ranges import read_address
from ipamd.core.settings import Settings


class Gateway(Struct, frozen=True):
    """A gateway of the ``ipam`` section: IP version, text, and the prefix length to answer addresses with."""

    family: int
    address: str
    prefix: int
    host: Cidr
    """The gateway alone, as a CIDR."""


class ResultAddress(Struct, frozen=True):
    """An address to answer: IP version, text, prefix length of its block."""

    family: int
    address: str
    prefix: int


def result(config: NetworkConfig, addresses: Sequence[ResultAddress]) -> bytes:
    """The success of an ADD, in the configuration's version.

    For ``calico-ipam`` an address has its block's mask and is its own route: Calico's main plugin takes an empty
    list of routes to mean "no host routes". Otherwise it stands alone, with the configured gateway and routes; a
    gateway that is written with a prefix length is on the pod's link, and the address has that mask. (The main plugin
    ``ptp`` needs it for IPv4: it sets routes via the gateway when only the address's own mask can reach it.)
    """
    if config.ipam.type == "calico-ipam":
        return _calico_result(config.cniVersion, tuple(addresses))
    gateways = _gateways(config.ipam)
    ips = []
    for each in addresses:
        gateway = gateways.get(each.family)
        prefix = gateway.prefix if gateway else BITS[each.family]
        ips.append((each.family, f"{each.address}/{prefix}", gateway.address if gateway else ""))
    routes = [read_route(route) for route in config.ipam.routes or ()]
    return encode(config.cniVersion, ips, routes)


@lru_cache(maxsize=1024)
def _calico_result(version: str, addresses: tuple[ResultAddress, ...]) -> bytes:
    """The success of an ADD of ``calico-ipam``; remembered, as a node's addresses come round again and again."""
    texts = [(each.family, f"{each.address}/{each.prefix}") for each in addresses]
    return encode(version, [(*each, "") for each in texts], [(family, Route(text)) for family, text in texts])


def encode(
    version: str,
    ips: Sequence[tuple[int, str, str]],
    routes: Sequence[tuple[int, Route]],
    dns: Dns | None = None,
) -> bytes:
    """A result in a version: ``ips`` as IP version, address with mask, gateway or ""; ``routes`` with IP version.

    Calico's plugin leaves the DNS settings out of new versions (None), host-local has at least empty ones.
    """
    of_version = _by_family if version in ("0.1.0", "0.2.0") else _by_list
    text = msgspec.json.format(msgspec.json.encode(of_version(version, ips, routes, dns)), indent=4)
    # Go's JSON escapes them so that it can stand in HTML; only DNS options can hold them.
    return text if not dns else text.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


def _by_family(
    version: str, ips: Sequence[tuple[int, str, str]], routes: Sequence[tuple[int, Route]], dns: Dns | None
) -> dict[str, object]:
    answer: dict[str, object] = {"cniVersion": version}
    for family, address, gateway in sorted(ips):
        part: dict[str, object] = {"ip": address}
        if gateway:
            part["gateway"] = gateway
        own = [Route(route.dst, route.gw) for its, route in routes if its == family]
        if own:
            part["routes"] = own
        answer[f"ip{family}"] = part
    answer["dns"] = dns or {}
    return answer


def _by_list(
    version: str, ips: Sequence[tuple[int, str, str]], routes: Sequence[tuple[int, Route]], dns: Dns | None
) -> dict[str, object]:
    old = VERSIONS.index(version) < VERSIONS.index("1.0.0")
    listed = []
    for family, address, gateway in ips:
        entry = {"version": str(family)} if old else {}
        entry["address"] = address
        if gateway:
            entry["gateway"] = gateway
        listed.append(entry)
    answer: dict[str, object] = {"cniVersion": version, "ips": listed}
    if routes:
        answer["routes"] = [route if version == "1.1.0" else Route(route.dst, route.gw) for _family, route in routes]
    if old or dns is not None:
        answer["dns"] = dns or {}
    return answer


def _gateways(ipam: Ipam) -> dict[int, Gateway]:
    listed = ipam.gateway if isinstance(ipam.gateway, list) else [ipam.gateway] if ipam.gateway else []
    try:
        return {gateway.family: gateway for gateway in map(_gateway, listed)}
    except ValueError as error:
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot use the network configuration: ipam.gateway: {error}"
        ) from error


@lru_cache(maxsize=64)
def _gateway(text: str) -> Gateway:
    parsed = ipaddress.ip_interface(text)
    host = Cidr(parsed.version, int(parsed.ip), BITS[parsed.version])
    return Gateway(parsed.version, str(parsed.ip), parsed.network.prefixlen, host)


@lru_cache(maxsize=64)
def read_route(route: Route) -> tuple[int, Route]:
    """A route with its addresses as Go prints them, and its IP version; raises ValueError."""
    text, slash, length = route.dst.partition("/")
    family, value = read_address(text)
    bits = BITS[6 if ":" in text else 4]
    if not slash or not length.isdecimal() or int(length) > bits:
        raise ValueError(f"route {route.dst!r} is not a CIDR")
    prefix = int(length) - (bits - BITS[family])
    gateway = format_address(*read_address(route.gw)) if route.gw else ""
    return family, replace(route, dst=f"{format_address(family, value)}/{prefix}", gw=gateway)


def error_object(version: str, error: RefusedError) -> bytes:
    """A CNI error object, indented as CNI's own library prints it."""
    answer: dict[str, object] = {"cniVersion": version, "code": int(error.code), "msg": error.msg}
    if error.details:
        answer["details"] = error.details
    return msgspec.json.format(msgspec.json.encode(answer), indent=4)


def check_answer(config: NetworkConfig, settings: Settings) -> None:
    """Raise RefusedError (7) for a gateway or route that ``result`` could not answer with, before one is assigned.

    Also for a gateway that a pod could be given: two would then answer to one address.
    """
    if config.ipam.type == "calico-ipam":
        return
    try:
        for route in config.ipam.routes or ():
            read_route(route)
    except ValueError as error:
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot use the network configuration: ipam.routes: {error}; correct it"
        ) from error
    for gateway in _gateways(config.ipam).values():
        kept = any(cidr.contains(gateway.host) for cidrs in settings.reservations.values() for cidr in cidrs)
        pool = next((pool for pool in settings.pools.values() if pool.cidr.contains(gateway.host)), None)
        if pool is not None and not kept:
            raise RefusedError(
                Code.INVALID_CONFIGURATION,
                f"cannot use the network configuration: ipam.gateway {gateway.address} is an address of pool "
                f"{pool.name}, which a pod could get; choose one outside of all pools, or reserve it (IPReservation)",
            )
