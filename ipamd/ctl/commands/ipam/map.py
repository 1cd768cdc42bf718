"""``ipam show --map``: every address of every block as a cell, once or again and again."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from ipamd.core.census import cells
from ipamd.core.keys import host_affinity
from ipamd.core.records import BlockRecord
from ipamd.ctl import output as forms
from ipamd.ctl.commands.ipam.drawing import Drawn, legend, picture
from ipamd.ctl.errors import UnreachableError
from ipamd.ctl.output import Column, Output, Sheet, counted, folded
from ipamd.ctl.target import Records, Target
from ipamd.ctl.usage import Cluster, each_block, look, pool_of

_HOME, _CLEAR, _CLEAR_LINE = "\x1b[H", "\x1b[J", "\x1b[K"

Found = dict[str, list[Drawn]]
"""The blocks of each pool, by address, in the order of the pools' names; under "" those that lie in none."""


async def show_map(records: Records, node: str, output: Output) -> None:
    """Print the blocks: all of the cluster, or those that belong to ``node`` or in which it has addresses."""
    cluster = await look(records)
    found = await _read(records, cluster, node)
    if output.form in ("table", "wide"):
        click.echo("\n".join(_lines(cluster, found, node, shutil.get_terminal_size().columns)))
    else:
        items = [_item(pool, block) for pool, blocks in found.items() for block in blocks]
        forms.show(output, _SHEET, items, {"items": items})
    cluster.complain()


async def watch_map(target: Target, node: str, interval: float) -> None:
    """Draw them every ``interval`` seconds until Ctrl-C, on a terminal in place. A store that goes away is waited for.

    Raises UnreachableError if it is away at first.
    """
    import trio

    shown: list[str] = []
    told = ""
    with suppress(KeyboardInterrupt):
        while True:
            size, first, away = shutil.get_terminal_size(), not shown, ""
            try:
                shown = await _frame(target, node, size.columns, progress=first)
            except UnreachableError as error:
                if first:
                    raise
                away = str(error)
            if sys.stdout.isatty():
                head = [*folded(f"{away}; waiting for it. This is how it was:", size.columns), ""] if away else []
                _redraw([*head, *shown], size.lines - 1, anew=first)
            elif not away:
                click.echo("\n".join([*shown, ""]))
            elif not told:
                click.echo(f"ipamctl: {away}; waiting for it", err=True)
            told = away
            sys.stdout.flush()
            await trio.sleep(interval)


async def _frame(target: Target, node: str, width: int, *, progress: bool) -> list[str]:
    async with target.records() as records:
        cluster = await look(records)
        lines = list(_lines(cluster, await _read(records, cluster, node, progress=progress), node, width))
    if cluster.damaged:
        lines.append(f"{counted(len(cluster.damaged), 'record')} cannot be read: leave out --watch to see which")
    return lines


def _redraw(lines: list[str], height: int, *, anew: bool) -> None:
    shown = "\n".join(f"{line}{_CLEAR_LINE}" for line in _cut(lines, height))
    click.echo(f"{_HOME}{_CLEAR if anew else ''}{shown}\n{_CLEAR}", nl=False)


def _cut(lines: list[str], height: int) -> list[str]:
    """As many of the lines as a screen has, with a word on the others."""
    if len(lines) <= height:
        return lines
    return [*lines[: height - 1], f"{counted(len(lines) - height + 1, 'line')} more: name a node with --node"]


async def _read(records: Records, cluster: Cluster, node: str, *, progress: bool = True) -> Found:
    found: Found = {name: [] for name in (*cluster.settings.pools, "")}

    def visit(record: BlockRecord) -> None:
        if node and record.affinity != host_affinity(node) and all(owner.node != node for owner in record.owners):
            return
        here = cells(record, cluster.settings.barred_in(record.cidr), cluster.serving, node)
        found[pool_of(cluster, record.cidr) or ""].append(_drawn(record, here))

    await each_block(records, cluster, visit, progress=progress)
    return {pool: sorted(blocks, key=lambda block: block.cidr) for pool, blocks in found.items() if blocks}


def _drawn(record: BlockRecord, here: list[Any]) -> Drawn:
    borrowers: Counter[str] = Counter()
    for index, cell in zip(record.allocations, here, strict=True):
        if index is not None and cell in ("borrowed in", "borrowed out"):
            borrowers[record.owners[index].node] += 1
    return Drawn(record.cidr, record.affinity or "", here, borrowers)


def _lines(cluster: Cluster, found: Found, node: str, width: int) -> Iterator[str]:
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not found:
        yield f"no block belongs to {node}, nor has it an address in another" if node else "no node has claimed a block"
        return
    for pool, blocks in found.items():
        yield f"Pool {pool} {cluster.settings.pools[pool].cidr}" if pool else "In no pool"
        yield ""
        yield from picture(blocks, width, colours=colours)
    yield from legend(width, colours=colours)


def _item(pool: str, block: Drawn) -> dict[str, Any]:
    return {"cidr": str(block.cidr), "pool": pool, "affinity": block.affinity, "cells": block.cells}


_SHEET = Sheet((Column("CIDR", lambda row: row["cidr"]),), lambda row: f"block/{row['cidr']}")
