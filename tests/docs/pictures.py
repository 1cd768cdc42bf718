"""The pictures of docs/concepts.md: drawn of the real ledger, writer and sync as they go through a short story.

``make pages`` writes them. The store is one in memory, time is the test's clock, so a story is the same each time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.census import cells
from ipamd.core.records import BlockRecord
from ipamd.core.reserve import ReservePolicy
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs" / "pictures"
POLICY = ReservePolicy(minimum=4, maximum=8)

LETTERS = {"pod": "P", "reserve": "r", "free": ".", "releasing": "x", "unflushed": "p", "borrowed out": ">"}
"""As ``ipamctl ipam show --map`` has them, and two that only a node's memory knows."""


class Row(NamedTuple):
    """A row of cells: what is shown, and the state of each ordinal."""

    label: str
    cells: Sequence[str]


class Step(NamedTuple):
    """One moment: what happened, and what there is then."""

    title: str
    rows: Sequence[Row]


# --- stories ------------------------------------------------------------------------------------------------------


def stored(store: MemoryStore, cidr: str) -> list[str]:
    """A block's cells by its record in the store; an empty list if it has none."""
    record = store.records.get(keys.block_key(parse_cidr(cidr)))
    return [] if record is None else list(cells(BlockRecord(record.value), 0, {}))


def remembered(node: Node, cidr: str) -> list[str]:
    """A block's cells by the node's memory."""
    block = node.ledger.blocks[cidr]
    states = ["free"] * block.net.size
    for ordinal in block.line():
        states[ordinal] = "reserve"
    for ordinal in block.desired:
        states[ordinal] = "unflushed" if ordinal in block.unflushed else "pod"
    for ordinal in block.releasing:
        states[ordinal] = "releasing"
    return states


async def pool_story() -> list[Step]:
    """A pool of eight blocks of 16, and three nodes with some pods each."""
    store = MemoryStore()
    store.put(*pool_record("pool", "10.0.0.0/25", blockSize=28))
    pods = {"node-a": 13, "node-b": 5, "node-c": 0}
    for name, number in pods.items():
        async with Node(name, store, POLICY).running() as node:
            for each in range(number):
                await node.add(add_request(f"{name}-{each}"))
                await node.flushed()
            await trio.sleep(1)
    rows = []
    for index in range(8):
        cidr = f"10.0.0.{16 * index}/28"
        record = store.records.get(keys.block_key(parse_cidr(cidr)))
        owner = (BlockRecord(record.value).affinity or "").removeprefix("host:") if record else "no node"
        rows.append(Row(f"{cidr}  {owner}", stored(store, cidr) or ["none"] * 16))
    return [Step("Pool 10.0.0.0/25: blocks of 16 addresses, and who has them", rows)]


async def reserve_story() -> list[Step]:
    """One block: claimed, an ADD, the flush, an outage, a crash, the recovery, a DEL."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("pool", "10.0.0.0/28", blockSize=28))
    steps: list[Step] = []

    def show(title: str, node: Node | None) -> None:
        cidr = "10.0.0.0/28"
        memory = ["none"] * 16 if node is None else remembered(node, cidr)
        steps.append(Step(title, [Row("memory", memory), Row("store", stored(store, cidr))]))

    async with Node("node-a", store, POLICY).running() as node:
        await trio.sleep(1)
        show("1  The daemon has claimed a block, with four addresses in reserve", node)
        await node.add(add_request("web-1"))
        show("2  ADD web-1: the head of the reserve, answered at once", node)
        await node.flushed()
        await trio.sleep(1)
        show("3  Flush, one transaction: the pod's own in the store, the reserve topped up", node)
        store.away = True
        for name in ("web-2", "web-3"):
            await node.add(add_request(name))
        show("4  The store is away. ADD web-2, ADD web-3: from the reserve, as before", node)
    show("5  kill -9: memory is gone; the state file has both ADDs", None)
    again = Node("node-a", store, POLICY, node.journal)
    async with again.running(look=False):
        show("6  Restart, the store still away: the state file gives all of it back", again)
        store.away = False
        await trio.sleep(3)
        await again.flushed()
        await trio.sleep(1)
        show("7  The store is back: flushed, and the reserve topped up", again)
        again.delete("web-1")
        show("8  DEL web-1: not handed out again before the store knows", again)
        await again.flushed()
        await trio.sleep(1)
        show("9  Flush: the store knows; the address is free", again)
    return steps


# --- drawing ------------------------------------------------------------------------------------------------------

CELL, LABEL, MARGIN, TITLE, GAP = 26, 190, 16, 24, 14
COLOURS = {
    "pod": ("#1f6f43", "#ffffff"),
    "unflushed": ("#b7dfc8", "#0b3d23"),
    "reserve": ("#cfe0f7", "#123a6b"),
    "releasing": ("#f6cfc3", "#6b2412"),
    "borrowed out": ("#e4d3f2", "#43206b"),
    "free": ("#f2f2f2", "#555555"),
    "none": ("#ffffff", "#999999"),
}
LEGEND = {
    "pod": "a pod's, and the store knows",
    "unflushed": "a pod's, the store does not know yet",
    "reserve": "in reserve",
    "releasing": "given up, the store does not know yet",
    "free": "free",
}


def svg(steps: Sequence[Step]) -> str:
    """A picture of steps, one below the other, on a ground of its own: it is read on light and dark pages."""
    used = {cell for step in steps for row in step.rows for cell in row.cells}
    legend = [(state, what) for state, what in LEGEND.items() if state in used]
    width = LABEL + CELL * max(len(row.cells) for step in steps for row in step.rows) + 2 * MARGIN
    width = max(width, 2 * MARGIN + int(8.7 * max(len(step.title) for step in steps)))
    lines: list[str] = []
    y = MARGIN
    for step in steps:
        lines.append(_text(MARGIN, y + 15, step.title, "600 14px"))
        y += TITLE
        for row in step.rows:
            lines.append(_text(MARGIN, y + 17, row.label, "13px", family="monospace"))
            lines += _row(y, row)
            y += CELL + 2
        y += GAP
    for state, what in legend:
        lines += _cell(MARGIN, y, state)
        lines.append(_text(MARGIN + CELL + 8, y + 17, what, "13px"))
        y += CELL + 2
    height = y + MARGIN - 2
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#cccccc"/>',
    )
    return "\n".join([*head, *lines, "</svg>", ""])


def _row(y: int, row: Row) -> Iterator[str]:
    for index, state in enumerate(row.cells):
        yield from _cell(MARGIN + LABEL + index * CELL, y, state)


def _cell(x: int, y: int, state: str) -> Iterator[str]:
    ground, ink = COLOURS[state]
    dashes = ' stroke-dasharray="3 2"' if state in ("none", "unflushed") else ""
    yield f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="3" fill="{ground}" stroke="#888888"{dashes}/>'
    if state in LETTERS:
        yield _text(x + (CELL - 2) // 2, y + 17, LETTERS[state], "13px", ink, "monospace", "middle")


def _text(
    x: int, y: int, text: str, font: str, ink: str = "#222222", family: str = "sans-serif", anchor: str = "start"
) -> str:
    weight, size = font.split() if " " in font else ("400", font)
    style = f'font-family="{family}" font-size="{size}" font-weight="{weight}" fill="{ink}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style} xml:space="preserve">{text}</text>'


STORIES = {"pool.svg": pool_story, "reserve.svg": reserve_story}


def told(name: str) -> list[Step]:
    """The steps of a story."""
    steps: list[Step] = trio.run(STORIES[name], clock=MockClock(autojump_threshold=0))
    return steps


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in STORIES:
        (FOLDER / name).write_text(svg(told(name)))
