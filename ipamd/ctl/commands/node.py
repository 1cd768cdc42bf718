"""``status``, ``reserve``, ``drain``, ``undrain``: a node at a glance, and taking ipamd off it."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import Column, Output, Sheet, age, counted, output_option, render, show, tell
from ipamd.ctl.target import Target

_STATUS = """\
  ipamctl status
  ipamctl status -o yaml
  ipamctl status -o jsonpath='{.flush.unflushed}'
"""


@command("status", _STATUS)
@output_option
async def status(target: Target, output: Output) -> None:
    """Show on one screen how the daemon is: ready, store, what is not flushed, pools, requests, the last errors.

    The exit code is 1 if no ADD could be served now.
    """
    told = await target.daemon().get("/v1/status")
    if output.form in ("table", "wide"):
        tell(screen(told))
    else:
        show(output, Sheet((Column("NODE", lambda each: each["node"]),), lambda e: f"node/{e['node']}"), [told], told)
    if not told["ready"]:
        raise CommandError(f"node {told['node']} is not ready: {told['reason']}")


def screen(told: dict[str, Any]) -> Iterator[str]:
    """The status as lines."""
    ready = "ready" if told["ready"] else "not ready"
    yield f"ipamd {told['version']} on node {told['node']}, up {age(told['uptime_seconds'])}: {ready}"
    if told["reason"]:
        yield f"  {told['reason']}"
    if told["draining"]:
        yield "  the node is being drained"
    store, flush, file = told["store"], told["flush"], told["state_file"]
    words = ["connected" if store["connected"] else "not connected"]
    words += [] if store["synced"] else ["never read yet"]
    words += ["locked"] if store["locked"] else []
    yield _line("store", f"{store['kind']}, {', '.join(words)}")
    for error in filter(None, (store["last_read_error"], flush["last_error"])):
        yield _line("", error)
    for key, why in store["damaged_records"].items():
        yield _line("", f"record {key}: {why}")
    oldest = f" (for {age(flush['unflushed_age_seconds'])})" if flush["unflushed"] else ""
    done = (counted(flush[f"{thing}s"], thing) for thing in ("transaction", "conflict", "failure"))
    yield _line("flush", f"{flush['unflushed']} unflushed{oldest}; {', '.join(done)}")
    yield _line("state file", f"{file['path']}, {file['bytes']:,} bytes")
    for why in filter(None, (file["error"], *(f"set aside: {name}" for name in file["set_aside"]))):
        yield _line("", why)
    if told["kubernetes"] is not None:
        seen = told["kubernetes"]
        how = "connected" if seen["connected"] else f"not connected: {seen['error']}"
        yield _line("kubernetes", f"{how}; {counted(seen['pods'], 'pod')}, {counted(seen['namespaces'], 'namespace')}")
    yield _line("requests", "; ".join(requests(told["requests"])) or "none yet")
    yield _line("addresses", f"{counted(told['attachments'], 'attachment')}, {counted(told['blocks'], 'block')}")
    yield ""
    yield from pools(told["pools"])
    if told["errors"]:
        yield ""
        yield "last errors"
    for error in told["errors"][:5]:
        who = f"{error['namespace']}/{error['pod']}" if error["pod"] else f"container {error['container']}"
        yield f"  {error['at']} {error['kind'].upper()} {who}: code {error['code']}"
        yield f"    {error['what']}"


def _line(title: str, text: str) -> str:
    return f"{title:<12}{text}"


def requests(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """Of each verb how many there were, and how many failed."""
    for verb, by_code in sorted(counts.items()):
        failed = sum(by_code.values()) - by_code.get("0", 0)
        yield f"{verb} {sum(by_code.values())}" + (f" ({failed} failed)" if failed else "")


_SHARE = Sheet(
    (
        Column("POOL", lambda row: row[0]),
        Column("BLOCKS", lambda row: str(row[1]["blocks"])),
        Column("IN USE", lambda row: str(row[1]["in_use"])),
        Column("RESERVE", lambda row: str(row[1]["in_reserve"])),
        Column("WANTED", lambda row: str(row[1]["target"])),
        Column("WAITING", lambda row: str(row[1]["waiting"])),
    ),
    lambda row: str(row[0]),
)


def pools(shares: dict[str, dict[str, int]]) -> Iterator[str]:
    """This node's share of each pool, as a table."""
    if not shares:
        yield "no pool gives this node addresses yet"
        return
    yield from render(Output(), _SHARE, list(shares.items()), None).splitlines()


_RESERVE = """\
  ipamctl reserve
  ipamctl reserve -o wide
  ipamctl reserve -o jsonpath='{.items[*].addresses[0]}'
"""


def _why(each: dict[str, Any]) -> str:
    small = [word for word in ("tight", "pressed") if each[word]]
    return each["refusal"] or each["closed"] or ", ".join(small)


_RESERVES = Sheet(
    (
        Column("POOL", lambda each: each["pool"]),
        Column("AVAILABLE", lambda each: str(each["available"])),
        Column("WANTED", lambda each: str(each["target"])),
        Column("MISSING", lambda each: str(each["missing"])),
        Column("WAITING", lambda each: str(each["waiting"])),
        Column("NEXT", lambda each: each["addresses"][0] if each["addresses"] else ""),
        Column("ADDRESSES", lambda each: ",".join(each["addresses"]), wide=True),
        Column("WHY", _why),
    ),
    lambda each: f"pool/{each['pool']}",
)


@command("reserve", _RESERVE)
@output_option
async def reserve(target: Target, output: Output) -> None:
    """Show the addresses that this node can hand out at once, by pool, and why there are few."""
    told = await target.daemon().get("/v1/reserve")
    show(output, _RESERVES, told, {"items": told})


_DRAIN = """\
  ipamctl drain
  ipamctl drain --wait 60
"""


@command("drain", _DRAIN)
@click.option("--wait", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="wait until it is done")
@output_option
async def drain(target: Target, wait: float, output: Output) -> None:
    """Give back all that no pod holds, and assign nothing from now on: the first step to take ipamd off a node.

    With --wait the exit code is 1 if it is not done in time. `ipamctl undrain` ends it, a restart does not.
    """
    import trio

    daemon = target.daemon()
    told = await daemon.post("/v1/drain")
    until = trio.current_time() + wait
    while not told["drained"] and trio.current_time() < until:
        if sys.stderr.isatty():
            click.echo(f"\r{_left(told)}\x1b[K", err=True, nl=False)
        await trio.sleep(0.2)
        told = await daemon.post("/v1/drain")
    if wait and sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    _show_drain(output, told)
    if wait and not told["drained"]:
        raise CommandError(f"cannot drain the node in {wait:g} s: {_left(told)}; look at `ipamctl status`")


_UNDRAIN = """\
  ipamctl undrain
"""


@command("undrain", _UNDRAIN)
@output_option
async def undrain(target: Target, output: Output) -> None:
    """End a drain: the node assigns addresses again."""
    _show_drain(output, await target.daemon().post("/v1/undrain"))


def _show_drain(output: Output, told: dict[str, Any]) -> None:
    if output.form in ("table", "wide"):
        words = "drained" if told["drained"] else f"draining: {_left(told)}" if told["draining"] else "not draining"
        click.echo(words)
    else:
        show(output, Sheet((Column("DRAINED", lambda e: str(e["drained"])),), lambda _: "drain"), [told], told)


def _left(told: dict[str, Any]) -> str:
    return (
        f"{told['reserve']} addresses in reserve, {told['empty_blocks']} empty blocks and {told['unflushed']} changes "
        "to write are left"
    )
