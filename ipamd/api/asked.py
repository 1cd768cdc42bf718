"""What an ADD from pools asks the core for: of the CNI configuration, of CNI_ARGS, and of the pod's annotations. Pure.

The parsed call is ``api.cni``. The requested addresses in it are those of an ADD from host-local ranges too.
"""

import ipaddress
from collections.abc import Mapping

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from ipamd.api.cni import Invocation, NetworkConfig, labels_of
from ipamd.core.address import FAMILIES, format_address
from ipamd.core.errors import Code, RefusedError
from ipamd.core.pod import ADDRESSES, PodFacts
from ipamd.core.records import MALFORMED
from ipamd.core.request import AddRequest

_NAMED_BY = {family: f"ipam.ipv{family}_pools of the CNI configuration" for family in FAMILIES}


def add_request(invocation: Invocation) -> AddRequest:
    """What an ADD asks the core for; raises RefusedError (4, 7)."""
    config, args = invocation.config, invocation.args
    addresses = _requested(config, args)
    families = families_of(config)
    if not families and not addresses:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            'cannot assign an address: both assign_ipv4 and assign_ipv6 are false; set one of them to "true"',
        )
    named = {4: tuple(config.ipam.ipv4_pools or ()), 6: tuple(config.ipam.ipv6_pools or ())}
    return AddRequest(
        invocation.attachment, families, labels_of(invocation), invocation.started, named, _NAMED_BY, None, addresses
    )


def families_of(config: NetworkConfig) -> tuple[int, ...]:
    """The IP versions of which an ADD wants an address; raises RefusedError (7)."""
    wanted = {4: _flag(config, "assign_ipv4", default=True), 6: _flag(config, "assign_ipv6", default=False)}
    return tuple(family for family, wants in wanted.items() if wants)


def for_pod(asked: AddRequest, config: NetworkConfig, pod: PodFacts) -> AddRequest:
    """The request, completed by what Kubernetes says of the pod: its annotations come before the CNI configuration.

    Raises RefusedError (7) for an annotation that cannot be used or asks for another address than the configuration.
    """
    # Calico's main plugin reads the annotations itself and passes them on, as ipam.ipv4_pools and IP=.
    passed_on = config.type == "calico" and config.ipam.type == "calico-ipam"
    if passed_on or not (pod.pools or pod.addresses or pod.problem):
        return replace(asked, namespace_labels=pod.namespace_labels)
    if pod.problem:
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot assign an address to {asked.subject}: {pod.problem}; correct it"
        )
    named = {**asked.named, **pod.pools}
    named_by = {**asked.named_by, **pod.pools_by}
    addresses = {**asked.addresses, **pod.addresses}
    for family, value in asked.addresses.items():
        if addresses[family] != value:
            raise _contradiction(
                family, value, "the CNI configuration or CNI_ARGS", addresses[family], f"annotation {ADDRESSES}"
            )
    return replace(asked, namespace_labels=pod.namespace_labels, named=named, named_by=named_by, addresses=addresses)


def _flag(config: NetworkConfig, name: str, *, default: bool) -> bool:
    value = getattr(config.ipam, name)
    if value is None:
        return default
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise RefusedError(
        Code.INVALID_CONFIGURATION,
        f'cannot use the network configuration: ipam.{name} is {value!r}; write "true" or "false"',
    )


def _requested(config: NetworkConfig, args: Mapping[str, str]) -> dict[int, int]:
    """The addresses asked for, as integers by IP version; raises RefusedError (4, 7).

    Sources may repeat each other, not contradict.
    """
    addresses: dict[int, int] = {}
    found = requested_addresses(config, args)
    if not found:
        return addresses
    sources: dict[int, str] = {}
    for (family, value), source in found:
        if addresses.setdefault(family, value) != value:
            raise _contradiction(family, addresses[family], sources[family], value, source)
        sources.setdefault(family, source)
    return addresses


def requested_addresses(config: NetworkConfig, args: Mapping[str, str]) -> list[tuple[tuple[int, int], str]]:
    """The addresses asked for, as IP version and integer, each with where it is; raises RefusedError (4, 7).

    ``IP=`` is a list separated by commas, ``args.cni.ips`` and the capability ``ips`` are JSON lists; each address may
    have a prefix length, which is ignored.
    """
    ips, arguments = (config.runtimeConfig or {}).get("ips"), config.args.cni.get("ips") if config.args else None
    if not args.get("IP") and ips is None and arguments is None:
        return _NONE_REQUESTED
    addresses = []
    texts = [(text, "IP in CNI_ARGS") for text in filter(None, args.get("IP", "").split(","))]
    texts += [(text, "args.cni.ips") for text in _texts(arguments, "args.cni.ips")]
    texts += [(text, "runtimeConfig.ips") for text in _texts(ips, "runtimeConfig.ips")]
    for text, source in texts:
        try:
            addresses.append((_address(text.strip()), source))
        except ValueError as error:
            code = Code.INVALID_ENVIRONMENT if source == "IP in CNI_ARGS" else Code.INVALID_CONFIGURATION
            raise RefusedError(code, f"cannot assign the requested address: {source}: {error}; correct it") from error
    return addresses


def _contradiction(family: int, one: int, source: str, other: int, other_source: str) -> RefusedError:
    return RefusedError(
        Code.INVALID_CONFIGURATION,
        f"cannot assign the requested addresses: {format_address(family, one)} ({source}) and "
        f"{format_address(family, other)} ({other_source}) are both IPv{family}, and an interface gets one address of "
        "an IP version; ask for one",
    )


_NONE_REQUESTED: list[tuple[tuple[int, int], str]] = []


def _texts(raw: Raw | None, name: str) -> list[str]:
    try:
        return (msgspec.json.decode(raw, type=list[str] | None) or []) if raw is not None else []
    except MALFORMED as error:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot assign the requested address: {name} is no list of addresses ({error}); correct it",
        ) from error


def _address(text: str) -> tuple[int, int]:
    """Parse an address with or without a prefix length; raises ValueError in words."""
    try:
        address = ipaddress.ip_interface(text).ip
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address") from error
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which no address of a pool has")
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # as Go's net.IP takes it
    return address.version, int(address)
