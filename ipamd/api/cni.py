"""The CNI contract, first half: what the plugin sends. Pure; what it prints is ``api.result``.

A request carries the plugin's environment as header fields (``Cni-Command`` and so on) and its standard input as the
body; see ``cni/ipamd-cni.c``. Rules are those of the CNI specification 1.1.0 and, for configurations, those of 0.1.0
to 1.0.0; the answer is in the version that the configuration names.
"""

import re
from functools import lru_cache
from itertools import repeat

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from ipamd.api.http import Request
from ipamd.core.address import parse_address
from ipamd.core.clock import THIS_BOOT
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Attachment
from ipamd.core.keys import RESERVE
from ipamd.core.records import MALFORMED

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that are spoken, oldest first."""

_VERSIONS_OF = {
    verb: VERSIONS[VERSIONS.index(since) :]
    for verb, since in (("ADD", "0.1.0"), ("DEL", "0.1.0"), ("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0"))
}

_REQUIRED = {
    "ADD": ("cni-containerid", "cni-netns", "cni-ifname"),
    "DEL": ("cni-containerid", "cni-ifname"),
    "CHECK": ("cni-containerid", "cni-netns", "cni-ifname"),
    "STATUS": (),
    "GC": ("cni-path",),
}
"""The variables that each verb must find set and not empty (specification, "Parameters" of each operation)."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_INTERFACE = re.compile(r"[^/:\s\ud800-\udfff]{1,15}")
_NOT_TEXT = re.compile(r"[\ud800-\udfff]")  # bytes of the environment that are not UTF-8: no record could hold them
_MAX_NAME = 1024  # a handle id becomes part of a key; no runtime's ids come near this


class Route(Struct, frozen=True, omit_defaults=True):
    """A route as configurations and results write it; the last five since 1.1.0."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class RangeConfig(Struct, frozen=True):
    """A range of host-local's configuration."""

    subnet: str
    rangeStart: str | None = None  # noqa: N815 - host-local's field name
    rangeEnd: str | None = None  # noqa: N815 - host-local's field name
    gateway: str | None = None


class Ipam(Struct, frozen=True):
    """The ``ipam`` section, as far as it concerns us; unknown keys are ignored, as Calico's plugin does."""

    type: str = ""
    assign_ipv4: str | bool | None = None
    assign_ipv6: str | bool | None = None
    ipv4_pools: list[str] | None = None
    ipv6_pools: list[str] | None = None
    gateway: str | list[str] | None = None
    routes: list[Route] | None = None
    subnet: str | None = None
    rangeStart: str | None = None  # noqa: N815 - host-local's field name
    rangeEnd: str | None = None  # noqa: N815 - host-local's field name
    ranges: list[tuple[RangeConfig, ...]] | None = None
    resolvConf: str | None = None  # noqa: N815 - host-local's field name


class _Args(Struct, frozen=True):
    cni: dict[str, Raw] = {}


class _ValidAttachment(Struct, frozen=True, rename={"container": "containerID", "interface": "ifname"}):
    container: str
    interface: str


class _PreviousAddress(Struct, frozen=True):
    address: str


class _PreviousResult(Struct, frozen=True):
    ips: list[_PreviousAddress] | None = None


class NetworkConfig(Struct, frozen=True):
    """The network configuration on the plugin's standard input."""

    name: str = ""
    type: str = ""
    cniVersion: str = "0.1.0"  # noqa: N815 - CNI's field name; its absence means the first version
    ipam: Ipam = Ipam()
    nodename: str | None = None
    """Calico's key: the node that the configuration was written for."""
    args: _Args | None = None
    runtimeConfig: dict[str, Raw] | None = None  # noqa: N815 - CNI's field name
    prevResult: Raw = Raw()  # noqa: N815 - CNI's field name; not Raw | None, which msgspec takes for None alone
    valid: Raw = msgspec.field(default=Raw(), name="cni.dev/valid-attachments")
    attachments: Raw = msgspec.field(default=Raw(), name="cni.dev/attachments")
    """What older runtimes call the valid attachments."""


class Invocation(Struct, frozen=True):
    """One call of the plugin, checked. ``started`` is CLOCK_BOOTTIME in ns; ``args`` are those of CNI_ARGS."""

    command: str
    attachment: Attachment
    args: dict[str, str]
    config: NetworkConfig
    started: int


_decode = msgspec.json.Decoder(NetworkConfig).decode
_USUAL = 4096
"""Bytes of a configuration that is remembered with its meaning: a node has few, and all its pods come with them."""


def read_config(request: Request) -> NetworkConfig:
    """The configuration in a request's body, which others may share; raises RefusedError (6, 7 or 1)."""
    body = request.body
    return _read_usual(body) if len(body) <= _USUAL else _read_config(body)


def _read_config(body: bytes) -> NetworkConfig:
    try:
        config = _decode(body)
    except msgspec.ValidationError as error:
        config = _without_nulls(body, error)
    except MALFORMED as error:
        raise RefusedError(
            Code.UNDECODABLE, f"cannot read the network configuration: it is not JSON ({error}); correct it"
        ) from error
    if not config.cniVersion:  # what a runtime makes of a list of configurations that names none
        return replace(config, cniVersion=VERSIONS[0])
    if config.cniVersion not in VERSIONS:
        raise RefusedError(
            Code.INCOMPATIBLE_VERSION,
            f"cannot answer in CNI version {config.cniVersion}: the versions spoken are {', '.join(VERSIONS)}; "
            "correct cniVersion in the network configuration",
        )
    return config


def _without_nulls(body: bytes, error: msgspec.ValidationError) -> NetworkConfig:
    """The configuration without the keys that are null: as absent, to every plugin in Go. Raises RefusedError (7)."""
    try:
        return _decode(msgspec.json.encode(_pruned(msgspec.json.decode(body))))
    except MALFORMED:
        raise RefusedError(
            Code.INVALID_CONFIGURATION, f"cannot use the network configuration: {error}; correct the CNI configuration"
        ) from error


def _pruned(value: object) -> object:
    if isinstance(value, dict):
        return {key: _pruned(each) for key, each in value.items() if each is not None}
    return [_pruned(each) for each in value] if isinstance(value, list) else value


_read_usual = lru_cache(maxsize=32)(_read_config)


def read_invocation(request: Request, config: NetworkConfig, arrival: int) -> Invocation:
    """The call that a request and its configuration make; ``arrival`` is CLOCK_BOOTTIME (ns).

    Raises RefusedError: 4 for the environment, 7 for the configuration, 1 for a verb the version does not have.
    """
    headers = request.headers
    command = headers.get("cni-command", "")
    if command not in _REQUIRED:
        raise _environment(f"CNI_COMMAND is {command!r}, not one of {', '.join(_REQUIRED)}")
    if config.cniVersion not in _VERSIONS_OF[command]:
        raise RefusedError(Code.INCOMPATIBLE_VERSION, f"plugin version does not allow {command}")
    if not all(map(headers.get, _REQUIRED[command])):
        missing = [name for name in _REQUIRED[command] if not headers.get(name)]
        raise _environment(f"{', '.join(_variable(name) for name in missing)} must be set for {command}")
    container, interface = headers.get("cni-containerid", ""), headers.get("cni-ifname", "")
    if container and (not _NAME.fullmatch(container) or len(container) > _MAX_NAME):
        raise _environment(f"CNI_CONTAINERID {container[:80]!r} is not a container id")
    if interface and (not _INTERFACE.fullmatch(interface) or interface in (".", "..")):
        raise _environment(f"CNI_IFNAME {interface[:80]!r} is not an interface's name")
    _check_network(config.name)
    started = headers.get("ipamd-started", "")
    known = started.isascii() and started.isdecimal() and len(started) < 20
    return Invocation(
        command,
        Attachment(config.name, container, interface),
        read_args(headers.get("cni-args", "")),
        config,
        max(min(int(started), arrival), THIS_BOOT) if known else arrival,
    )


@lru_cache(maxsize=32)
def _check_network(name: str) -> None:
    """Raise RefusedError (7) for what is no network's name; remembered, as a node has few."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot use the network configuration: its name {name[:80]!r} is not a network's name; "
            "it must begin with a letter or digit, followed by letters, digits, '_', '.', '-'",
        )
    if name.startswith(RESERVE):  # a pod's handle would be taken for a reserve's
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot use the network configuration: its name {name[:80]!r} begins with {RESERVE}, as the "
            "handles of ipamd's reserves do; give the network another name",
        )


def check_node(config: NetworkConfig, node: str) -> None:
    """Raise RefusedError (7) if the configuration was written for another node than the daemon's.

    Calico's main plugin and Felix go by ``nodename``: they would not route what is recorded under another name.
    """
    if config.nodename and config.nodename != node:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot assign an address: the CNI configuration is for node {config.nodename[:80]} (nodename), and this "
            f"daemon serves node {node}; correct nodename, or the daemon's setting node",
        )


def _environment(problem: str) -> RefusedError:
    return RefusedError(Code.INVALID_ENVIRONMENT, f"cannot use the plugin's environment: {problem}")


def _variable(header: str) -> str:
    return header.upper().replace("-", "_")


def read_args(text: str) -> dict[str, str]:
    """CNI_ARGS by key; raises RefusedError (4)."""
    if _NOT_TEXT.search(text):
        raise _environment("CNI_ARGS is not UTF-8")
    pairs = [*filter(None, text.split(";"))]
    try:
        return dict(map(str.split, pairs, repeat("="), repeat(1)))
    except ValueError as error:
        wrong = next(pair for pair in pairs if "=" not in pair)
        raise _environment(f"CNI_ARGS has {wrong[:80]!r}, which is not KEY=VALUE") from error


def labels_of(invocation: Invocation) -> dict[str, str]:
    """The pod's name and namespace, as far as the runtime says them."""
    args, labels = invocation.args, {}
    for label, name in (("namespace", "K8S_POD_NAMESPACE"), ("pod", "K8S_POD_NAME")):
        if args.get(name):
            labels[label] = args[name]
    return labels


def pod_of(invocation: Invocation) -> tuple[str, str, str] | None:
    """Namespace, name and uid of the pod that an ADD is for; None if the runtime names none. An old one has no uid."""
    args = invocation.args
    namespace, name = args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME")
    return (namespace, name, args.get("K8S_POD_UID", "")) if namespace and name else None


def valid_attachments(config: NetworkConfig) -> set[tuple[str, str]]:
    """What the runtime of a GC considers valid, as container id and interface; null is what Go makes of an empty list.

    Raises RefusedError (7) if it does not say: then nothing may be released.
    """
    raw = config.valid or config.attachments
    try:
        listed = msgspec.json.decode(raw, type=list[_ValidAttachment] | None) or ()
    except MALFORMED as error:
        problem = str(error) if raw else "it is not there"
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot collect garbage: cni.dev/valid-attachments is no list of attachments ({problem}); nothing was "
            "released; correct the runtime's call",
        ) from error
    return {(each.container, each.interface) for each in listed}


def previous_addresses(config: NetworkConfig) -> set[tuple[int, int]] | None:
    """The addresses in the prevResult of a CHECK, as IP version and integer; None if there is no prevResult.

    Raises RefusedError (7) if it is no result.
    """
    if not config.prevResult:
        return None
    try:
        result = msgspec.json.decode(config.prevResult, type=_PreviousResult | None)
        return {parse_address(each.address.partition("/")[0]) for each in (result.ips if result else None) or ()}
    except MALFORMED as error:
        raise RefusedError(
            Code.INVALID_CONFIGURATION,
            f"cannot confirm the container's address: prevResult is no result of a plugin ({error}); correct it",
        ) from error


def told_addresses(config: NetworkConfig) -> set[tuple[int, int]]:
    """The same of a DEL, which must succeed whatever is in it: none if it is no result."""
    try:
        return previous_addresses(config) or set()
    except RefusedError:
        return set()


def older_handle(invocation: Invocation) -> str:
    """The handle under which old versions of Calico's plugin kept the pod's address; "" without a pod."""
    namespace, pod = invocation.args.get("K8S_POD_NAMESPACE"), invocation.args.get("K8S_POD_NAME")
    return f"{namespace}.{pod}" if namespace and pod else ""
