"""What a node's daemon says of itself, as findings: memory, state file, runtime; and whether the store says the same.

May import of ipamd only ``core`` and ``ctl``.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_address, parse_cidr
from ipamd.ctl.client import Client
from ipamd.ctl.consistency import Finding, holder
from ipamd.ctl.image import Allocation, Image
from ipamd.ctl.output import age

LATE = 60.0
"""From this age on (s), what is not in the store yet is a finding."""

_SOON = "look again in a minute; if it is still so, restart ipamd, and report it with `ipamctl bundle`"


class View(Struct, frozen=True):
    """The daemon's answers, by route without ``/v1/``."""

    status: dict[str, Any]
    check: dict[str, list[str]]
    gc: dict[str, Any]
    allocations: list[dict[str, Any]]
    reserve: list[dict[str, Any]]

    @property
    def node(self) -> str:
        """The node that it serves."""
        return str(self.status["node"])

    @property
    def keys(self) -> frozenset[str]:
        """The blocks in which its pods have addresses."""
        return frozenset(keys.block_key(parse_cidr(each["block"])) for each in self.allocations if each.get("block"))


async def ask(daemon: Client) -> View:
    """Ask the daemon for all that a check needs. Raises UnreachableError, CommandError."""
    return View(*[await daemon.get(f"/v1/{name}") for name in View.__struct_fields__])


def problems(view: View, image: Image) -> Iterator[Finding]:
    """All that is wrong by the daemon's word, or between it and the store."""
    for what in view.check["memory"]:
        cure = "restart ipamd, which reads its state anew; if it is still so, report it with `ipamctl bundle`"
        yield Finding("memory", f"node {view.node}", what, cure)
    for text in view.check["findings"]:
        yield _told("disagreement", f"node {view.node}", text)
    yield from _state_file(view.status["state_file"])
    yield from _flush(view)
    for leak in view.gc["leaks"]:
        what = f"{', '.join(leak['addresses'])}: the runtime does not know its container, and {leak['why']}"
        cure = f"`ipamctl gc --release` frees it now; the daemon does so by itself in {age(leak['seconds_left'])}"
        yield Finding("leaked-container", f"handle {leak['handle']}", what, cure)
    yield from _beside_the_store(view, image)


def _told(problem: str, about: str, text: str) -> Finding:
    """A text of the daemon, which ends with what to do."""
    what, _, cure = text.rpartition("; ")
    return Finding(problem, about, what or text, cure if what else "see the daemon's log")


def _state_file(file: dict[str, Any]) -> Iterator[Finding]:
    if file["error"]:
        yield _told("state-file", f"state file {file['path']}", file["error"])
    for name in file["set_aside"]:
        what = "it was damaged, and set aside: what the daemon knew only from it is lost"
        yield Finding("state-file", f"state file {name}", what, "send it with a bug report, or delete it")


def _flush(view: View) -> Iterator[Finding]:
    flush, store = view.status["flush"], view.status["store"]
    if not store["connected"]:
        why = store["last_read_error"] or "no answer yet"
        yield Finding(
            "store", f"node {view.node}", f"the daemon does not reach its store: {why}", "see `ipamctl status`"
        )
    if flush["unflushed"] and flush["unflushed_age_seconds"] > LATE:
        error = f": {flush['last_error']}" if flush["last_error"] else ""
        what = f"what the daemon did has not been written to the store for over {age(LATE)}{error}"
        yield Finding("unflushed", f"node {view.node}", what, "see `ipamctl status`")


def _beside_the_store(view: View, image: Image) -> Iterator[Finding]:
    """Addresses of pods, and of the reserve, that the store gives to somebody else."""
    ours = view.status["reserve_handle"]
    for held in view.allocations:
        if held.get("flushed") and held["block"]:
            who = f"{held['namespace']}/{held['pod']}" if held["pod"] else f"container {held['container']}"
            yield from _compare(image, held["address"], parse_cidr(held["block"]), held["handle"], f"{who} has it")
    for reserve in view.reserve:
        for address in reserve["addresses"]:
            cidr = _block_of(image, address)
            if cidr is not None:
                yield from _compare(image, address, cidr, ours, "it is in reserve")


def _compare(image: Image, address: str, cidr: Cidr, handle: str, said: str) -> Iterator[Finding]:
    key = keys.block_key(cidr)
    found = find(image, address, cidr)
    if key not in image.damaged and (found is None or found.handle != handle):
        stored = "free" if found is None else f"{holder(found)}'s"
        what = f"the daemon says that {said}, and the store that it is {stored}"
        yield Finding("memory-differs", f"address {address}", what, _SOON, frozenset({key}))


def find(image: Image, address: str, cidr: Cidr) -> Allocation | None:
    """The allocation of an address of a block; None if it is free."""
    block = image.blocks.get(keys.block_key(cidr))
    ordinal = parse_address(address)[1] - cidr.base
    return next((each for each in block.allocations if each.ordinal == ordinal), None) if block else None


def _block_of(image: Image, address: str) -> Cidr | None:
    family, value = parse_address(address)
    return next((block.cidr for block in image.blocks.values() if block.cidr.has(family, value)), None)
