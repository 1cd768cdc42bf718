"""The report of a consistency check: made for people and for ``ipam release --from-report``, in the fields of Calico's.

What Calico's own ``ipam check -o`` writes can be read too: addresses with their sequence numbers, handles with their
revisions. ``staleAffinities`` and ``unclaimedBlocks`` are ours.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ipamd import __version__
from ipamd.core import keys
from ipamd.ctl.consistency import Finding, handle_id, leaked
from ipamd.ctl.errors import CommandError, UsageError
from ipamd.ctl.image import Allocation, BlockImage, Image


class Address(Struct, frozen=True):
    """An allocated address; ``inUse`` is false only if it is leaked."""

    ip: str
    handle: str = ""
    sequenceNumber: int = 0  # noqa: N815 - Calico's field name
    pod: str = ""
    namespace: str = ""
    node: str = ""
    type: str = ""
    creationTimestamp: str = ""  # noqa: N815 - Calico's field name
    inUse: bool = False  # noqa: N815 - Calico's field name
    borrowed: bool = False


class Named(Struct, frozen=True):
    """A handle as it was at a revision, in Calico's field names."""

    ID: str
    Revision: str


class Dated(Struct, frozen=True):
    """Another record as it was at a revision."""

    key: str
    revision: int


class Report(Struct, frozen=True):
    """See the module."""

    version: str = ""
    at: str = ""
    clusterGUID: str = ""  # noqa: N815 - Calico's field name
    datastoreLocked: bool = False  # noqa: N815 - Calico's field name
    clusterInformationRevision: str = ""  # noqa: N815 - Calico's field name
    node: str = ""
    """The node whose daemon was asked; "" if none was."""
    counts: dict[str, int] = {}
    findings: list[dict[str, str]] = []
    allocations: dict[str, list[Address]] | None = {}
    leakedHandles: list[Named] | None = []  # noqa: N815 - Calico's field name
    staleAffinities: list[Dated] = []  # noqa: N815 - as the others
    unclaimedBlocks: list[Dated] = []  # noqa: N815 - as the others


def made(image: Image, findings: Sequence[Finding], at: str, node: str, *, all_addresses: bool) -> Report:
    """The report of a check; of addresses only those that are leaked, unless all are asked for."""
    told = _about(findings, "leaked-address")
    gone = {f"address {block.address(allocation)}" for block, allocation in leaked(image)} & told.keys()
    allocations = {}
    for block, allocation in image.allocations:
        address = block.address(allocation)
        in_use = f"address {address}" not in gone
        if all_addresses or not in_use:
            allocations[address] = [_address(block, allocation, address, in_use=in_use)]
    handles, stale, unclaimed = (
        _about(findings, problem) for problem in ("leaked-handle", "stale-affinity", "unclaimed-block")
    )
    stale_keys = {key for concerned in stale.values() for key in concerned}
    return Report(
        f"ipamctl {__version__}",
        at,
        image.guid,
        image.locked,
        str(image.information_revision),
        node,
        counts(image),
        [{"problem": f.problem, "object": f.object, "what": f.what, "cure": f.cure} for f in findings],
        allocations,
        [
            Named(key.removeprefix(keys.HANDLES), str(handle.revision))
            for key, handle in image.handles.items()
            if f"handle {handle_id(key)}" in handles
        ],
        [Dated(key, each.revision) for key, each in image.affinities.items() if key in stale_keys],
        [Dated(key, each.revision) for key, each in image.blocks.items() if f"block {each.cidr}" in unclaimed],
    )


def _about(findings: Iterable[Finding], problem: str) -> dict[str, frozenset[str]]:
    """What the findings of a rule are about, each with its records."""
    return {finding.object: finding.keys for finding in findings if finding.problem == problem}


def _address(block: BlockImage, allocation: Allocation, address: str, *, in_use: bool) -> Address:
    return Address(
        address,
        allocation.handle,
        allocation.sequence,
        allocation.pod,
        allocation.namespace,
        allocation.node,
        allocation.type,
        allocation.timestamp,
        in_use,
        bool(allocation.node) and keys.host_affinity(allocation.node) != block.affinity,
    )


def counts(image: Image) -> dict[str, int]:
    """How much was looked at."""
    return {
        "blocks": len(image.blocks),
        "allocations": sum(len(block.allocations) for block in image.blocks.values()),
        "pools": len(image.pools),
        "handles": len(image.handles),
        "affinities": len(image.affinities),
        "nodes": len(image.registered),
    }


def document(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return msgspec.convert(msgspec.to_builtins(report), dict[str, Any])


def load(file: str) -> Report:
    """Read a report. Raises UsageError, and CommandError for what is none."""
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=Report)
    except OSError as error:
        raise UsageError(f"cannot read the report {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(
            f"cannot use {file}: it is no report of `ipam check`: {error}; make one with `ipamctl ipam check --report`"
        ) from error
