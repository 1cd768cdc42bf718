"""``top``: what the daemon does a second, from two looks at its status."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import click

from ipamd.ctl.command import command
from ipamd.ctl.commands.node import pools
from ipamd.ctl.errors import UnreachableError
from ipamd.ctl.output import age, folded
from ipamd.ctl.target import Target

_TOP = """\
  ipamctl top
  ipamctl top --interval 0.5 --count 3
"""

_HOME, _CLEAR = "\x1b[H", "\x1b[J"


@command("top", _TOP)
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, metavar="SECONDS", help="between looks (2)")
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="end after so many (default: 1 unless on a terminal)"
)
async def top(target: Target, interval: float, count: int | None) -> None:
    """Show what happens a second: requests, transactions, pools. On a terminal live, until Ctrl-C."""
    import trio

    daemon, live = target.daemon(), sys.stdout.isatty()
    before = await daemon.get("/v1/status")
    shown = 0
    with suppress(KeyboardInterrupt):
        while shown == 0 or shown != (count or (0 if live else 1)):
            await trio.sleep(interval)
            try:
                after = await daemon.get("/v1/status")
            except UnreachableError as error:  # one who watches a restart wants to see its end
                if not live:
                    raise
                _draw([str(error)], first=not shown)
            else:
                if live:
                    _draw(rates(before, after), first=not shown)
                else:
                    click.echo("\n".join(rates(before, after)))
                before = after
            shown += 1


def _draw(lines: Iterable[str], *, first: bool) -> None:
    """Draw over what stands on the terminal."""
    width = shutil.get_terminal_size().columns
    parts = (f"{part}\x1b[K" for line in lines for part in folded(line, width))
    click.echo(f"{_HOME + _CLEAR if first else _HOME}{chr(10).join(parts)}{chr(10)}{_CLEAR}", nl=False)


def rates(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What happened between two looks, a second; a daemon that was started between them counts from its start."""
    span = after["uptime_seconds"] - before["uptime_seconds"]
    if span <= 0:
        before, span = {"requests": {}, "flush": {}}, after["uptime_seconds"]
    ready = "ready" if after["ready"] else f"not ready: {after['reason']}"
    yield f"{after['at']}  node {after['node']}, up {age(after['uptime_seconds'])}: {ready}"
    yield ""
    for verb in sorted({"ADD", "DEL", *after["requests"]}):
        new, old = after["requests"].get(verb, {}), before["requests"].get(verb, {})
        done = sum(new.values()) - sum(old.values())
        failed = done - new.get("0", 0) + old.get("0", 0)
        yield f"{verb + '/s':<14}{done / span:10.1f}   failed {failed / span:.1f}"
    flush = after["flush"]
    for name in ("transactions", "operations", "conflicts", "failures", "claims"):
        yield f"{name + '/s':<14}{(flush[name] - before['flush'].get(name, 0)) / span:10.1f}"
    oldest = f", the oldest for {flush['unflushed_age_seconds']:.1f} s" if flush["unflushed"] else ""
    yield f"{'unflushed':<14}{flush['unflushed']:10d}{oldest}"
    if not after["store"]["connected"]:
        yield f"{'store':<14}not connected: {after['store']['last_read_error']}"
    yield ""
    yield from pools(after["pools"])
