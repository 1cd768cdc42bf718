"""``events``: what the daemon answered and did, and what it does from now on."""

import sys
from contextlib import suppress
from typing import Any

import click
import msgspec

from ipamd.ctl.command import command
from ipamd.ctl.errors import UnreachableError
from ipamd.ctl.output import Column, Output, Sheet, output_option, render, show
from ipamd.ctl.target import Target

_EVENTS = """\
  ipamctl events
  ipamctl events --follow
  ipamctl events --pod default/web-1
  ipamctl events -o jsonpath='{range .items[*]}{.at}{" "}{.kind}{"\\n"}{end}'
"""

_WAIT = 20
"""Seconds that the daemon is asked to wait for an event."""


def _who(event: dict[str, Any]) -> str:
    if event["pod"]:
        return f"{event['namespace']}/{event['pod']}"
    return event["container"] or ""


def _said(event: dict[str, Any]) -> str:
    values = " ".join(f"{name}={value}" for name, value in event["values"].items())
    code = f"code {event['code']}:" if event["code"] else ""
    return " ".join(filter(None, (" ".join(event["addresses"]), code, event["what"], values)))


_SHEET = Sheet(
    (
        Column("TIME", lambda event: event["at"]),
        Column("KIND", lambda event: event["kind"]),
        Column("WHO", _who),
        Column("CONTAINER", lambda event: event["container"], wide=True),
        Column("NETWORK", lambda event: event["network"], wide=True),
        Column("WHAT", _said),
    ),
    lambda event: f"event/{event['number']}",
)


@command("events", _EVENTS)
@click.option(
    "-f", "--follow", is_flag=True, help="go on with what happens, until Ctrl-C; with -o json an object a line"
)
@click.option("--pod", metavar="NAMESPACE/NAME", help="only those of a pod")
@output_option
async def events(target: Target, follow: bool, pod: str | None, output: Output) -> None:  # noqa: FBT001 - click passes names
    """Show what the daemon answered and did: the last thousand things, each request with its pod and its answer."""
    daemon = target.daemon()
    told = await daemon.get("/v1/events")
    if not follow:
        found = [event for event in told["events"] if pod in (None, _who(event))]
        show(output, _SHEET, found, {"items": found})
        return
    with suppress(KeyboardInterrupt):
        while True:
            for event in told["events"]:
                if pod in (None, _who(event)):
                    click.echo(_line(output, event))
            if told["lost"]:
                click.echo(f"ipamctl: {told['lost']} events were lost: they came faster than they were read", err=True)
            sys.stdout.flush()
            told = await _following(target, told["last"])


async def _following(target: Target, last: int) -> dict[str, Any]:
    """What comes after the last event, as soon as there is something; a daemon that restarts is waited for."""
    import trio

    away = False
    while True:
        try:
            told: dict[str, Any] = await target.daemon().get(f"/v1/events?after={last}&wait={_WAIT}")
        except UnreachableError as error:
            if not away:
                click.echo(f"ipamctl: {error}; waiting for it", err=True)
            away = True
            await trio.sleep(0.5)
        else:
            return told


def _line(output: Output, event: dict[str, Any]) -> str:
    if output.form == "json":
        return msgspec.json.encode(event).decode()
    if output.form in ("table", "wide"):
        who = f"{_who(event)} " if _who(event) else ""
        wide = f"[{event['network']} {event['container']} {event['interface']}] " if output.form == "wide" else ""
        return f"{event['at']} {event['kind']:<6}{who}{wide}{_said(event)}"
    return render(output, _SHEET, [event], event).rstrip("\n")
