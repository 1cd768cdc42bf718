"""Names of records for the shell's completion: read from where the command line so far would read them, in a moment.

Whatever goes wrong there is nothing to complete, and nothing is said. Imports what it needs when it is asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import click

from ipamd.ctl.command import given_of, target_of
from ipamd.ctl.errors import CommandError
from ipamd.ctl.target import Target

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

SECONDS = 2.0
"""How long a shell waits at most."""


def of_kind(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the kind that the command line names before, without those that it names already."""
    from ipamd.ctl.resources.kind import Kind

    kind = context.params.get("kind")
    if not isinstance(kind, Kind):
        return []
    already = context.params.get(parameter.name or "") or ()
    return [name for name in _names(context, kind.called[-1], "name", incomplete) if name not in already]


def of(called: str, field: str = "name") -> Complete:
    """Complete with the names of a kind, or with a field of its specifications."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return _names(context, called, field, incomplete)

    return complete


def pods(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete with the pods that have addresses of this node, as ``namespace/name``."""

    async def read(target: Target) -> list[str]:
        held = await target.daemon().get("/v1/allocations")
        return [f"{each['namespace']}/{each['pod']}" for each in held if each["pod"]]

    return _in_a_moment(context, read, incomplete)


def _names(context: click.Context, called: str, field: str, incomplete: str) -> list[str]:
    async def read(target: Target) -> list[str]:
        from ipamd.ctl.resources.kinds import CALLED

        async with target.records() as records:
            found = (await CALLED[called].read(records, ())).resources
        return [each["metadata"]["name"] if field == "name" else each["spec"][field] for each in found]

    return _in_a_moment(context, read, incomplete)


def _in_a_moment(context: click.Context, read: Callable[[Target], Any], incomplete: str) -> list[str]:
    import trio

    async def main() -> Sequence[str]:
        with trio.move_on_after(SECONDS):
            return tuple(await read(target_of(given_of(context))))
        return ()

    try:
        found = trio.run(main)
    except CommandError:
        return []
    return sorted({name for name in found if name.startswith(incomplete)})
