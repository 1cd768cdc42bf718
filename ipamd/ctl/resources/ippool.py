"""IPPool: the CIDRs that blocks are cut from. Rules and defaults are Calico's."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.pool import BLOCK_SIZES, DEFAULT_BLOCK_SIZE, decode_pool
from ipamd.core.records import RecordError
from ipamd.core.selector import SelectorError, parse_selector, shortened
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Column, Sheet
from ipamd.ctl.resources.fields import BOOLEAN, TEXT, TEXTS, WHOLE, ordered
from ipamd.ctl.resources.kind import Kind, Resource, damaged, field
from ipamd.ctl.resources.release import block_keys, release_pool
from ipamd.ctl.target import Records
from ipamd.store.base import Change

SPEC = {
    "cidr": TEXT,
    "vxlanMode": TEXT,
    "ipipMode": TEXT,
    "natOutgoing": BOOLEAN,
    "disabled": BOOLEAN,
    "disableBGPExport": BOOLEAN,
    "blockSize": WHOLE,
    "nodeSelector": TEXT,
    "namespaceSelector": TEXT,
    "allowedUses": TEXTS,
    "assignmentMode": TEXT,
}
"""The fields, in the order in which Calico writes them."""

_ATTEMPTS = 10
"""How often a pool that others change meanwhile is disabled anew."""
_MODES = ("Never", "Always", "CrossSubnet")
_USES = ("Workload", "Tunnel", "LoadBalancer")
_ASSIGNMENT = ("Automatic", "Manual")
_LINK_LOCAL = {4: parse_cidr("169.254.0.0/16"), 6: parse_cidr("fe80::/10")}
_DEFAULT_USES = ["Workload", "Tunnel"]
_PREFIX = re.compile(r"/[0-9]+$")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_GLOBAL = re.compile(r"\bglobal\s*\(")

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


class IpPoolKind(Kind):
    """See the module."""

    def bad_spec(self, spec: Mapping[str, Any], stored: Mapping[str, Any] | None) -> Iterator[str]:
        """What is wrong with a pool by itself, or as a change of the stored one."""
        yield from _bad_choice(spec, "ipipMode", _MODES)
        yield from _bad_choice(spec, "vxlanMode", _MODES)
        yield from _bad_choice(spec, "assignmentMode", _ASSIGNMENT)
        yield from _bad_selector(spec, "nodeSelector")
        yield from _bad_selector(spec, "namespaceSelector")
        yield from _bad_uses(spec)
        if _on(spec, "ipipMode") and _on(spec, "vxlanMode"):
            yield "spec.ipipMode and spec.vxlanMode are both on; a pool has one encapsulation: turn one off"
        cidr, problem = _cidr(spec.get("cidr"))
        if cidr is None:
            yield problem
            return
        if stored is not None and stored.get("cidr") != str(cidr):
            yield f"spec.cidr cannot be changed from {stored.get('cidr')} to {cidr}; make another pool and move to it"
            return
        yield from _bad_size(spec, cidr, stored)
        if cidr.family == 6 and _on(spec, "ipipMode"):
            yield "spec.ipipMode is for IPv4 only, IPIP cannot carry IPv6; leave it out, or use vxlanMode"
        if cidr.overlaps(_LINK_LOCAL[cidr.family]):
            yield f"spec.cidr {cidr} overlaps {_LINK_LOCAL[cidr.family]}, the link-local addresses; choose another"

    async def conflicts(self, records: Records, wanted: Resource, stored: Resource | None) -> list[str]:
        """Other pools that it overlaps, and blocks of another size that lie in it."""
        if stored is not None:
            return []  # neither CIDR nor block size changes
        name, cidr = wanted["metadata"]["name"], parse_cidr(wanted["spec"]["cidr"])
        found = []
        for record in (await records.read((), (keys.POOLS,))).records:
            try:
                other = decode_pool(record.value)
            except RecordError:  # nobody's addresses come from it
                continue
            if other.name != name and other.cidr.overlaps(cidr):
                found.append(f"spec.cidr {cidr} overlaps {other.cidr} of IPPool {other.name}; choose another")
        size = wanted["spec"]["blockSize"]
        for key in await block_keys(records, cidr):
            if (block := keys.cidr_of(key)).prefix != size:
                found.append(
                    f"spec.blockSize is {size} and block {block} of an earlier pool still has addresses in it; "
                    f"use {block.prefix}, or wait until its pods are gone"
                )
                break
        return found

    def fill(self, spec: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
        """Calico's defaults; false and empty are left out, as Calico does. A block size stays as it is."""
        cidr = parse_cidr(spec["cidr"])
        spec["blockSize"] = spec.get("blockSize") or stored.get("blockSize") or DEFAULT_BLOCK_SIZE[cidr.family]
        spec["vxlanMode"] = spec.get("vxlanMode") or "Never"
        spec["ipipMode"] = spec.get("ipipMode") or "Never"
        spec["nodeSelector"] = spec.get("nodeSelector") or "all()"
        spec["allowedUses"] = spec.get("allowedUses") or _DEFAULT_USES
        spec["assignmentMode"] = spec.get("assignmentMode") or "Automatic"
        return {name: value for name, value in spec.items() if name not in SPEC or value not in (False, "")}

    async def release(self, records: Records, stored: Resource, *, dry_run: bool) -> str:
        """Disable the pool, and take its blocks from the nodes: those with addresses stay until these are gone."""
        name = stored["metadata"]["name"]
        try:
            cidr = parse_cidr(stored["spec"]["cidr"])
        except (ValueError, LookupError, TypeError) as error:
            raise damaged(self.key(name), f"its CIDR: {error}") from error
        if not dry_run:
            await self._disable(records, name)
        return await release_pool(records, name, cidr, dry_run=dry_run)

    async def _disable(self, records: Records, name: str) -> None:
        for _ in range(_ATTEMPTS):
            found = (await records.read([self.key(name)])).records
            if not found or (pool := self.decode(found[0]))["spec"].get("disabled"):
                return
            pool["spec"] = ordered({**pool["spec"], "disabled": True}, SPEC)
            change = Change(self.key(name), self.encode(pool, found[0].value), found[0].revision)
            if (await records.commit([change])).chosen is not None:
                return
        raise CommandError(f"cannot disable IPPool {name}: others change it all the time; try again")


def _cidr(text: Any) -> tuple[Cidr | None, str]:
    """The CIDR, or what is wrong with it."""
    example = "write it as 10.0.0.0/16 or fd00::/64"
    if not text:
        return None, f"spec.cidr is missing; {example}"
    try:
        network = ipaddress.ip_network(text if _PREFIX.search(text) else "", strict=False)
    except ValueError:
        return None, f"spec.cidr {text!r} is not a CIDR; {example}"
    cidr = parse_cidr(str(network))
    if ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
        return None, f"spec.cidr {text} has address bits after its prefix; write {cidr}"
    return cidr, ""


def _on(spec: Mapping[str, Any], mode: str) -> bool:
    return (spec.get(mode) or "Never") != "Never"


def _bad_choice(spec: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> Iterator[str]:
    if spec.get(name) and spec[name] not in choices:
        yield f"spec.{name} {spec[name]!r} is none of {', '.join(choices)}"


def _bad_size(spec: Mapping[str, Any], cidr: Cidr, stored: Mapping[str, Any] | None) -> Iterator[str]:
    sizes = BLOCK_SIZES[cidr.family]
    size = spec.get("blockSize") or (stored or {}).get("blockSize") or DEFAULT_BLOCK_SIZE[cidr.family]
    if stored is not None and stored.get("blockSize") not in (None, size):
        yield (
            f"spec.blockSize cannot be changed from {stored['blockSize']} to {size}; "
            "move the pods to another pool, delete this one and create it anew"
        )
    elif size not in sizes:
        yield f"spec.blockSize {size} is not between {sizes[0]} and {sizes[-1]}, as an IPv{cidr.family} pool's must be"
    elif size < cidr.prefix:
        yield f"spec.cidr {cidr} is smaller than one block of /{size}; give a larger CIDR, or set spec.blockSize"


def _bad_selector(spec: Mapping[str, Any], name: str) -> Iterator[str]:
    text = spec.get(name) or ""
    try:
        parse_selector(text)
    except SelectorError as error:
        yield f"spec.{name} ({shortened(text)}) cannot be read: {error}"
        return
    if _GLOBAL.search(_QUOTED.sub("''", text)):
        yield f"spec.{name} has global(), which selects no {name.removesuffix('Selector')}; write all()"


def _bad_uses(spec: Mapping[str, Any]) -> Iterator[str]:
    uses = spec.get("allowedUses") or _DEFAULT_USES
    unknown = [use for use in uses if use not in _USES]
    if unknown:
        yield f"spec.allowedUses has {unknown[0]!r}, which is none of {', '.join(_USES)}"
    if "LoadBalancer" in uses and set(uses) != {"LoadBalancer"}:
        yield "spec.allowedUses has LoadBalancer beside other uses; make a pool for each"
    if "LoadBalancer" in uses and (spec.get("nodeSelector") or "all()") != "all()":
        yield "spec.nodeSelector must be all() with the use LoadBalancer, whose addresses are no node's; leave it out"
    if "Tunnel" in uses and spec.get("namespaceSelector"):
        yield (
            "spec.namespaceSelector is for pods only, and spec.allowedUses has Tunnel (also when it is left out); "
            "set allowedUses: [Workload]"
        )


def _name(pool: Resource) -> str:
    return f"ippool.projectcalico.org/{field(pool, 'metadata', 'name')}"


IP_POOL = IpPoolKind(
    "IPPool", ("ippools", "ipp", "ipps", "pool", "pools", "ippool"), Sheet(_COLUMNS, _name, calico=True), SPEC
)
