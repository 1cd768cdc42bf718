"""Who has an address: one that is named, and all that nodes have in other nodes' blocks."""

from collections.abc import Iterator, Mapping
from typing import Any

import click
import msgspec

from ipamd.core.address import format_address, parse_address
from ipamd.core.census import State, borrowed, state_of
from ipamd.core.records import BlockRecord, Owner
from ipamd.ctl import output as forms
from ipamd.ctl.output import Column, Output, Sheet
from ipamd.ctl.target import Records


class AddressType(click.ParamType[tuple[int, int]]):
    """An address: its IP version and its integer."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        """Read it; fails, as click does, for what is no address."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IP address; write it as 10.0.0.7 or fd00::7", param, context)


async def show_address(records: Records, address: tuple[int, int], output: Output) -> None:
    """Print who has an address by its block's record: that of its pool, or one of another size from an earlier pool."""
    from ipamd.ctl.freeing import candidates
    from ipamd.ctl.usage import look, seen

    family, value = address
    cluster = await look(records)
    blocks = (await records.read(list(candidates(family, value)))).records
    found = [block for record in blocks if (block := seen(record, cluster)) is not None]
    told = _address(found[0] if found else None, family, value, cluster.serving)
    if output.form in ("table", "wide"):
        click.echo("\n".join(_words(told)))
    else:
        forms.show(output, _ADDRESS, [told], told)
    cluster.complain()


_ADDRESS = Sheet((Column("ADDRESS", lambda told: told["address"]),), lambda told: f"address/{told['address']}")


def _address(block: BlockRecord | None, family: int, value: int, serving: Mapping[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = {"address": format_address(family, value), "block": "", "affinity": "", "state": "free"}
    told |= {"sequence": None, "handle": "", "node": "", "released_at": "", "attributes": {}}
    told["alternate_attributes"] = {}
    if block is None:
        return told
    told |= {"block": str(block.cidr), "affinity": block.affinity or ""}
    ordinal = value - block.cidr.base
    owner, index = block.owner(ordinal), block.allocations[ordinal]
    if owner is None or index is None:
        return told
    raw = msgspec.json.decode(block.attributes[index], type=dict[str, Any])
    return told | {
        "state": state_of(owner, serving),
        "sequence": block.sequences.get(str(ordinal)),
        "handle": owner.handle,
        "node": owner.node,
        "released_at": owner.released_at,
        "attributes": owner.secondary,
        "alternate_attributes": raw.get("alternateOwnerAttrs") or {},
    }


_SAID: dict[State, str] = {
    "cooling": "was released at {released_at} and is cooling",
    "reserve": "is in reserve of node {node}: no pod has it",
    "quarantined": "was in reserve of node {node} under a state file that is lost: nobody gets it for a while",
}
"""What is said of an address that is neither free nor, in Calico's words, in use."""


def _words(told: Mapping[str, Any]) -> Iterator[str]:
    if told["state"] == "free":
        yield f"{told['address']} is not assigned"
        return
    yield f"IP {told['address']} {_SAID.get(told['state'], 'is in use').format_map(told)}"
    yield f"Handle ID: {told['handle'] or '<none>'}"
    if not told["attributes"]:
        yield "No Active Owner attributes defined"
    for title, name in (("Active", "attributes"), ("Alternate", "alternate_attributes")):
        if told[name]:
            yield f"{title} Owner Attributes:"
        yield from (f"  {key}: {value}" for key, value in sorted(told[name].items()))


_BORROWED = Sheet(
    (
        Column("IP", lambda row: row["address"]),
        Column("BORROWING-NODE", lambda row: row["node"]),
        Column("BLOCK", lambda row: row["block"]),
        Column("BLOCK OWNER", lambda row: row["owner"]),
        Column("TYPE", lambda row: row["type"]),
        Column("ALLOCATED-TO", lambda row: row["allocated_to"]),
        Column("HANDLE", lambda row: row["handle"], wide=True),
    ),
    lambda row: f"address/{row['address']}",
    boxed=True,
)


async def show_borrowed(records: Records, output: Output) -> None:
    """Print the addresses that nodes have in blocks of others, or of nobody."""
    from ipamd.ctl.usage import each_block, look

    cluster = await look(records)
    rows: list[dict[str, Any]] = []
    unnamed = 0

    def visit(block: BlockRecord) -> None:
        nonlocal unnamed
        for ordinal, index in enumerate(block.allocations):
            if index is None or block.owners[index].released_at:
                continue
            owner = block.owners[index]
            unnamed += not owner.node
            if borrowed(block, owner):
                rows.append(_row(block, ordinal, owner, state_of(owner, cluster.serving)))

    await each_block(records, cluster, visit)
    forms.show(output, _BORROWED, rows, {"items": rows})
    if unnamed:
        click.echo(f"ipamctl: of {forms.counted(unnamed, 'address')} no node is known: borrowed or not", err=True)
    cluster.complain()


def _row(block: BlockRecord, ordinal: int, owner: Owner, state: State) -> dict[str, Any]:
    said = owner.secondary
    who = said.get("vmi-name") or said.get("pod") or ""
    kind = "vmi" if "vmi-name" in said else "pod" if "pod" in said else said.get("type", "")
    return {
        "address": format_address(block.cidr.family, block.cidr.base + ordinal),
        "node": owner.node,
        "block": str(block.cidr),
        "owner": (block.affinity or "").partition(":")[2],
        "type": state if state in ("reserve", "quarantined") else kind,
        "allocated_to": f"{said.get('namespace', '')}/{who}" if who else "",
        "handle": owner.handle,
    }
