"""``ipam show --map``: every address a cell, whatever the width; in place on a terminal."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import IO

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.census import Cell
from ipamd.ctl.commands.ipam.drawing import LOOKS, Drawn, legend, picture
from tests.ctl.places import BehindSocket, Ctl, Done
from tests.ctl.terminal import INTERRUPTIBLE, Screen, on_terminal
from tests.ctl.test_ipam_show import RESERVED, at_the_time, reserved
from tests.daemon_process import wait_for

BLOCK = keys.block_key(parse_cidr("10.0.0.0/29"))

NARROW = """\
Pool default-ipv4-ippool 192.168.0.0/16

192.168.77.0/26 of node-a: 1 pod, 63 free
192.168.77.0    .....P.. ........ ........ ........
192.168.77.32   ........ ........ ........ ........

192.168.174.128/26 of node-a: 10 pods, 54 free
192.168.174.128 PP.PPPPP PPP..... ........ ........
192.168.174.160 ........ ........ ........ ........

192.168.218.64/26 of node-b: 1 pod, 63 free
192.168.218.64  P....... ........ ........ ........
192.168.218.96  ........ ........ ........ ........

Pool default-ipv6-ippool fd00:10:244::/64

fd00:10:244:0:defe:d3d7:156e:ae80/122 of node-a: 2 pods, 62 free
fd00:10:244:0:defe:d3d7:156e:ae80 PP...... ........ ........ ........
fd00:10:244:0:defe:d3d7:156e:aea0 ........ ........ ........ ........

Pool p 10.0.0.0/28

10.0.0.0/29 of node-a: 1 tunnel, 1 borrowed out, 2 in reserve, 1 cooling,
  1 quarantined, 1 reserved, 1 free; borrowed by node-b 1
10.0.0.0 rrq>Tcx.

P pod   T tunnel   < borrowed in   > borrowed out   r in reserve   c cooling
q quarantined   x reserved   w set aside for Windows   . free
"""
"""As in a pipe, and on a terminal of 80 columns."""

WIDE = """\
192.168.77.0/26 of node-a: 1 pod, 63 free                                                            192.168.174.128/26 of node-a: 10 pods, 54 free
192.168.77.0    .....P.. ........ ........ ........ ........ ........ ........ ........              192.168.174.128 PP.PPPPP PPP..... ........ ........ ........ ........ ........ ........
"""
"""Of the same on a terminal of 200 columns: two blocks beside one another, each address range in one row."""


def everything() -> dict[str, str]:
    """Blocks of both IP versions, and one that has a cell of every kind."""
    return {**at_the_time("basic"), **reserved()}


def test_the_map_in_a_pipe(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colours, 80 columns wide unless COLUMNS says otherwise."""
    monkeypatch.delenv("COLUMNS", raising=False)
    ctl.load(everything())
    assert ctl.ok("ipam show --map") == NARROW
    monkeypatch.setenv("COLUMNS", "200")
    assert WIDE in ctl.ok("ipam show --map")


@pytest.mark.parametrize("columns", [80, 200])
def test_the_map_on_a_terminal(daemon: BehindSocket, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the terminal; the same with colours as without."""
    daemon.load({key: value.encode() for key, value in everything().items()})
    shown, _ = on_terminal([*daemon.flags, "ipam", "show", "--map"], columns)
    assert "\x1b[32mP\x1b[0m" in shown
    plain = click.unstyle(shown)
    assert plain == NARROW if columns == 80 else WIDE in plain
    assert max(map(len, plain.splitlines())) <= columns
    monkeypatch.setenv("NO_COLOR", "1")
    assert on_terminal([*daemon.flags, "ipam", "show", "--map"], columns) == (plain, "")


def test_a_node_s_view(ctl: Ctl) -> None:
    """With ``--node`` there are only its blocks and those it borrows from: what it has there is borrowed in."""
    ctl.load(everything())
    items = json.loads(ctl.ok("ipam show --map --node node-b -o json"))["items"]
    assert [item["cidr"] for item in items] == ["192.168.218.64/26", "10.0.0.0/29"]
    assert items[1] == {
        "cidr": "10.0.0.0/29",
        "pool": "p",
        "affinity": "host:node-a",
        "cells": ["reserve", "reserve", "quarantined", "borrowed in", "tunnel", "cooling", "reserved", "free"],
    }
    assert "10.0.0.0 rrq<Tcx.\n" in ctl.ok("ipam show --map --node node-b")
    assert ctl.ok("ipam show --map --node node-c").splitlines()[0] == (
        "no block belongs to node-c, nor has it an address in another"
    )


def test_blocks_of_nobody(ctl: Ctl) -> None:
    """Those without affinity and those in no pool are drawn too; without any block there is a word."""
    assert ctl.ok("ipam show --map") == "no node has claimed a block\n"
    ctl.load({BLOCK: RESERVED.replace('"host:node-a"', "null")})
    lines = ctl.ok("ipam show --map").splitlines()
    assert lines[0] == "In no pool"
    assert lines[2].startswith("10.0.0.0/29 of no node: ")
    assert lines[4] == "10.0.0.0 rrr>>c.."


MISTAKES = {
    "--watch": "cannot take --watch without --map; add it",
    "--node a": "cannot take --node without --map; add it",
    "--map --watch -o json": "cannot watch as json; leave out -o or --watch",
    "--map --watch 0": "Invalid value for '--watch': 0.0 is not in the range x>=0.1.",
    "--map --show-blocks": "cannot show --show-blocks and --map at once; give one of them",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_what_does_not_go_together(ipamctl: Callable[..., Done], flags: str) -> None:
    """It is refused, with what to do."""
    done = ipamctl("--db", "/none", "ipam", "show", *flags.split())
    assert (done.code, done.out, done.err) == (2, "", f"ipamctl: {MISTAKES[flags]}\n")


def test_watching_on_a_terminal(daemon: BehindSocket) -> None:
    """The map is drawn again in place, with what changed; Ctrl-C ends it as a success."""
    daemon.load({key: value.encode() for key, value in reserved().items()})
    with Screen([*daemon.flags, "ipam", "show", "--map", "--watch", "0.1"], 80) as screen:
        first = screen.until("free\x1b[K\r\n\x1b[J")
        assert first.startswith("\x1b[H\x1b[J")
        assert "rrq>Tcx." in click.unstyle(first)
        daemon.put(
            BLOCK, RESERVED.replace("[0,0,1,2,3,4,null,null]", "[0,0,1,2,3,4,null,2]").replace("[6,7]", "[6]").encode()
        )
        later = screen.until("rrq>Tcx>", plain=True)
        assert "\x1b[H\x1b[J" not in later
        screen.type("\x03")
        screen.to_the_end()
        assert screen.process.wait(20) == 0


def test_watching_a_store_that_goes_away(daemon: BehindSocket) -> None:
    """The last map stays, with the reason, until the store is back; a record that cannot be read is told of."""
    daemon.load({key: value.encode() for key, value in reserved().items()})
    with Screen([*daemon.flags, "ipam", "show", "--map", "--watch", "0.1"], 80) as screen:
        screen.until("rrq>Tcx.", plain=True)
        daemon.store.away = True
        away = screen.until("This is how it was:")
        assert "cannot read the store: memory: away; waiting for it." in away
        screen.until("rrq>Tcx.", plain=True)
        daemon.put(BLOCK, b"{}")
        daemon.store.away = False
        assert "no node has claimed a block" in screen.until("1 record cannot be read: leave out --watch to see which")


def test_watching_a_store_that_is_away(ipamctl: Callable[..., Done], daemon: BehindSocket) -> None:
    """Nothing to show yet: it ends with exit code 3."""
    daemon.store.away = True
    done = ipamctl(*daemon.flags, "ipam", "show", "--map", "--watch")
    assert done == (3, "", "ipamctl: cannot read the store: memory: away\n")


def test_watching_more_than_a_screen(daemon: BehindSocket) -> None:
    """What does not fit the screen's height is cut, with a word on the rest."""
    blocks = {}
    for number in range(60):
        cidr = f"10.0.0.{number * 4}/30"
        record = {"cidr": cidr, "affinity": None, "allocations": [None] * 4, "unallocated": [0, 1, 2, 3]}
        blocks[keys.block_key(parse_cidr(cidr))] = json.dumps({**record, "attributes": []}).encode()
    daemon.load(blocks)
    with Screen([*daemon.flags, "ipam", "show", "--map", "--watch"], 80) as screen:
        shown = screen.until("name a node with --node\x1b[K")
        assert shown.count("\n") == 49  # of 50 rows the last is the cursor's
        assert re.search(r"\d+ lines more: name a node with --node", shown)


def test_watching_in_a_pipe(daemon: BehindSocket) -> None:
    """One map after the other, without control characters; that the store is away is said once."""
    daemon.load({key: value.encode() for key, value in reserved().items()})
    line = [*INTERRUPTIBLE, sys.executable, "-m", "ipamd.ctl", *daemon.flags, "ipam", "show", "--map", "--watch=0.1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            seen = maps(process.stdout, 2)
            daemon.store.away = True
            assert process.stderr.readline() == "ipamctl: cannot read the store: memory: away; waiting for it\n"
            asked = daemon.store.calls["list"]
            wait_for(lambda: daemon.store.calls["list"] >= asked + 3)
            daemon.store.away = False
            seen += maps(process.stdout, 2)  # one may have been on its way
            process.send_signal(signal.SIGINT)
            assert "\x1b" not in seen + process.stdout.read()
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert process.returncode == 0


def maps(output: IO[str], number: int) -> str:
    """What is printed up to so many maps."""
    seen = ""
    for line in output:
        seen += line
        if seen.count("rrq>Tcx.") == number:
            return seen
    raise AssertionError(f"it ended after {seen!r}")


def test_symbols_differ_without_a_colour() -> None:
    """No two states look alike, and the legend names all."""
    assert len({look.symbol for look in LOOKS.values()}) == len(LOOKS)
    shown = " ".join(legend(80, colours=False))
    assert all(f"{look.symbol} {look.words}" in shown for look in LOOKS.values())


@st.composite
def drawn(draw: st.DrawFn) -> list[Drawn]:
    """Some blocks of a pool, of any legal size."""
    family, prefix, base = draw(st.sampled_from([(4, p, 10 << 24) for p in range(20, 33)] + [(6, 122, 0xFD << 120)]))
    size = 1 << ((32 if family == 4 else 128) - prefix)
    blocks = []
    for number in range(draw(st.integers(1, 5))):
        cells: list[Cell] = [*LOOKS] * (size // len(LOOKS)) + ["free"] * (size % len(LOOKS))
        blocks.append(Drawn(Cidr(family, base + number * size, prefix), "host:node-a", cells, Counter({"node-b": 1})))
    return blocks


@given(drawn(), st.integers(44, 250), st.booleans())
def test_every_cell_is_drawn_whatever_the_width(blocks: list[Drawn], width: int, colours: bool) -> None:
    """No line is wider than the terminal, and each address has its cell, in order."""
    lines = [click.unstyle(line) for line in picture(blocks, width, colours=colours)]
    assert max(map(len, lines)) <= width
    rows: dict[str, str] = {}
    for line in lines:
        for address, cells in re.findall(r"(\S+) +((?:[PT<>rcqxw.]{1,8} ?)+)(?= {2}|$)", line):
            if re.fullmatch(r"[0-9a-f:.]*[0-9a-f:]", address):
                rows[address] = cells.replace(" ", "")
    for block in blocks:
        first = str(block.cidr).partition("/")[0]
        assert rows[first].startswith(LOOKS[block.cells[0]].symbol)
    symbols = Counter("".join(rows.values()))
    assert symbols == Counter(LOOKS[cell].symbol for block in blocks for cell in block.cells)
