"""libcni's cache: one file for each attachment whose ADD succeeded and whose DEL has not, written by the runtime.

A file is ``<network>-<container id>-<interface>`` in the results directory, JSON of the kind ``cniCacheV1`` (libcni,
``cachedInfo``), its ``result`` in any version of the CNI specification. The container ids in the names are enough to
tell who lives, so a file that cannot be read still keeps its container alive.

Blocking, for a thread. May import of ipamd only ``core``.
"""

import os
import stat
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
from msgspec import Struct

from ipamd.core.address import parse_address
from ipamd.core.facts import Attachment
from ipamd.core.ranges import Address
from ipamd.core.regain import Living

MAX_FILES = 10_000
"""More than any node has attachments: beyond it nothing is believed to be gone."""
MAX_BYTES = 1 << 20
"""The largest file that is read: a result with its configuration has a few KB."""
_KIND = "cniCacheV1"
_NOTHING = msgspec.Raw(b"null")


class Containers:
    """The containers that the cache knows at one moment, by the names of its files."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self._parts = frozenset(part for name in names for part in name.split("-")[1:-1])
        self._all = "\n".join(names)

    def lives(self, container: str) -> bool:
        """Whether there is a file of this container, whatever the network and the interface.

        A meta-plugin's delegates are cached under the name of its own network.
        """
        return container in self._parts or ("-" in container and f"-{container}-" in self._all)


class _Address(Struct, frozen=True):
    address: str


class _OldAddress(Struct, frozen=True):
    ip: str


class _Result(Struct, frozen=True):
    ips: list[_Address] = []
    ip4: _OldAddress | None = None
    ip6: _OldAddress | None = None


class _Ipam(Struct, frozen=True):
    type: str = ""
    subnet: object = None
    ranges: object = None


class _Plugin(Struct, frozen=True):
    ipam: _Ipam | None = None


class _Config(_Plugin, frozen=True):
    """A network's configuration: of one plugin, or a list of them."""

    plugins: list[_Plugin] = []


class _Cached(Struct, frozen=True):
    kind: str
    containerId: str  # noqa: N815 - libcni's field name
    ifName: str  # noqa: N815 - libcni's field name
    networkName: str  # noqa: N815 - libcni's field name
    cniArgs: list[tuple[str, str]] | None = None  # noqa: N815 - libcni's field name
    result: _Result | None = None
    config: msgspec.Raw = _NOTHING
    capabilityArgs: msgspec.Raw = _NOTHING  # noqa: N815 - libcni's field name


_decode = msgspec.json.Decoder(_Cached).decode


def read_names(directory: Path) -> Containers | None:
    """Who lives; None if the cache says nothing: absent, unreadable, empty, or too large to be one."""
    try:
        names = list(islice((path.name for path in directory.iterdir()), MAX_FILES + 1))
    except OSError:
        return None
    return Containers(names) if 0 < len(names) <= MAX_FILES else None


def read_results(directory: Path) -> dict[str, Living]:
    """What the files of the cache say, by their names; those that cannot be understood are left out."""
    known = read_names(directory)
    names = sorted(known.names) if known is not None else ()
    return {name: living for name in names if (living := _read(directory / name)) is not None}


def _read(path: Path) -> Living | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            cached = _decode(file.read(MAX_BYTES))
        if cached.kind != _KIND or not (cached.containerId and cached.ifName and cached.networkName):
            return None
        addresses = tuple(map(_address, _texts(cached.result or _Result())))
    except (OSError, ValueError, RecursionError):  # a msgspec error is a ValueError
        return None
    attachment = Attachment(cached.networkName, cached.containerId, cached.ifName)
    return Living(attachment, addresses, _labels(dict(cached.cniArgs or ())), _is_of_ranges(cached))


def _is_of_ranges(cached: _Cached) -> bool:
    """Whether the addresses are of host-local ranges, as a request with this configuration is: never of a pool."""
    try:
        config = msgspec.json.decode(msgspec.json.decode(cached.config, type=bytes), type=_Config)
        given = msgspec.json.decode(cached.capabilityArgs, type=dict[str, msgspec.Raw] | None) or {}
    except (ValueError, RecursionError):
        return False
    return any(
        plugin.ipam.type == "host-local"
        or (plugin.ipam.type == "ipamd" and (plugin.ipam.subnet or plugin.ipam.ranges or "ipRanges" in given))
        for plugin in (config, *config.plugins)
        if plugin.ipam is not None
    )


def _texts(result: _Result) -> list[str]:
    old = [each.ip for each in (result.ip4, result.ip6) if each is not None]
    return [each.address for each in result.ips] + old


def _address(text: str) -> Address:
    return parse_address(text.partition("/")[0])


def _labels(args: dict[str, str]) -> dict[str, str]:
    names = {"namespace": "K8S_POD_NAMESPACE", "pod": "K8S_POD_NAME"}
    return {label: args[name] for label, name in names.items() if args.get(name)}
