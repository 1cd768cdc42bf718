"""``ipam check``: whether the records, and what the daemon of this node knows, agree with one another."""

from collections.abc import Iterator
from pathlib import Path
from time import time_ns
from typing import Any

import click

from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Column, Output, Sheet, counted, output_option, show, tell
from ipamd.ctl.target import Target

_CHECK = """\
  ipamctl ipam check
  ipamctl ipam check --report report.json
  ipamctl ipam check -o json
  ipamctl ipam check --show-all-ips
"""

_SHEET = Sheet(
    (
        Column("PROBLEM", lambda found: found["problem"]),
        Column("OBJECT", lambda found: found["object"]),
        Column("WHAT", lambda found: found["what"]),
        Column("CURE", lambda found: found["cure"]),
    ),
    lambda found: f"{found['problem']}/{found['object']}",
)


@command("check", _CHECK)
@click.option("--show-all-ips", is_flag=True, help="print all addresses that are allocated, and put them in the report")
@click.option("--show-problem-ips", is_flag=True, help="the same as without it: problems are always shown")
@click.option("--report", type=click.Path(), metavar="FILE", help="write a report, for `ipam release --from-report`")
@output_option
async def check(
    target: Target, /, *, show_all_ips: bool, show_problem_ips: bool, report: str | None, output: Output
) -> None:
    """Check that blocks, handles, affinities and pools agree; through the daemon, also its memory, files and runtime.

    Nothing is changed, and nothing has to be locked: what looks wrong is looked at again, and counts only if it still
    is as it was. Each problem is shown with its cure. The exit code is 1 if there is any.
    """
    from ipamd.core.records import rfc3339
    from ipamd.ctl.examination import look
    from ipamd.ctl.report import document, made

    seen = await look(target)
    result = made(seen.image, seen.findings, rfc3339(time_ns()), seen.node, all_addresses=show_all_ips)
    told = document(result)
    if report:
        _write(Path(report), told)
    if output.form in ("table", "wide"):
        tell(_words(told, show_all=show_all_ips))
    else:
        show(output, _SHEET, told["findings"], told)
    for note in seen.notes:
        click.echo(f"ipamctl: {note}", err=True)
    if seen.findings:
        raise click.exceptions.Exit(1)


def _words(told: dict[str, Any], *, show_all: bool) -> Iterator[str]:
    """The result in calicoctl's words."""
    counts = told["counts"]
    yield f"Found {counts['blocks']} IPAM blocks."
    yield f"IPAM blocks record {counts['allocations']} allocations."
    yield f"Found {counts['pools']} IP pools, {counts['handles']} handles and {counts['affinities']} block affinities."
    yield (
        f"Asked the daemon of node {told['node']}."
        if told["node"]
        else "No daemon was asked: these are the records alone."
    )
    if show_all:
        yield ""
        for allocations in told["allocations"].values():
            yield from map(_address, allocations)
    for found in told["findings"]:
        yield ""
        yield f"{found['object']}: {found['problem']}"
        yield f"  {found['what']}"
        yield f"  cure: {found['cure']}"
    yield ""
    yield f"Check complete; found {counted(len(told['findings']), 'problem')}."


def _address(allocation: dict[str, Any]) -> str:
    attributes = ", ".join(f"{name}={allocation[name]}" for name in _ATTRIBUTES if allocation[name])
    return f"  {allocation['ip']} {'allocated' if allocation['inUse'] else 'leaked'}; {attributes}"


_ATTRIBUTES = ("handle", "namespace", "pod", "node", "type", "creationTimestamp")


def _write(path: Path, told: dict[str, Any]) -> None:
    from ipamd.ctl.output import json_of

    try:
        path.write_text(json_of(told))
    except OSError as error:
        raise CommandError(f"cannot write the report {path}: {error.strerror}; name another file") from error
