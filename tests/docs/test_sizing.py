"""docs/sizing.md: what the real ledger, writer and sync take of a pool is what the page says."""

import re
from math import ceil, log2

import pytest
import trio
from trio.testing import MockClock

from ipamd.config.schema import Reserve
from ipamd.core.supply import SPARE, SPARE_FROM
from tests.docs.walk import DOCS, LONG
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record

RESERVE = 16
SIZES = {24: 256, 26: 64, 28: 16}


def blocks(pods: int, size: int) -> int:
    """The page's formula."""
    return max(1, ceil((pods + RESERVE) / (size - SPARE)))


def tables() -> list[list[list[str]]]:
    """The cells of the page's tables, without their heads."""
    found, table = [], []
    for line in [*(DOCS / "sizing.md").read_text().splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        elif table:
            found.append(table[2:])
            table = []
    return found


def test_the_page_has_the_formulas_numbers() -> None:
    """Both tables, and the constants that the text names."""
    assert (Reserve().min, Reserve().max, Reserve().decay) == (RESERVE, 256, 30)
    assert (SPARE, SPARE_FROM) == (2, 8)
    of_node, of_cluster = tables()
    for row in of_node:
        assert [int(cell) for cell in row[1:]] == [blocks(int(row[0]), size) for size in SIZES.values()], row
    for nodes, pods, prefix, number, pool in of_cluster:
        size = SIZES[int(re.sub(r"\D", "", prefix))]
        assert int(number) == int(nodes) * blocks(int(pods), size)
        assert pool == f"`/{32 - ceil(log2(int(number) * size))}`", (nodes, pods, prefix)


async def taken(pods: int, prefix: int, pause: float) -> int:
    """How many blocks a node has of a pool after so many pods came, with a pause (s) after each."""
    store = MemoryStore()
    store.put(*pool_record("pool", "10.0.0.0/16", blockSize=prefix))
    async with Node("node-a", store).running() as node:
        for number in range(pods):
            await node.add(add_request(f"c{number}"))
            await node.flushed()
            await trio.sleep(pause)
        await trio.sleep(600)
        owned = [block for block in node.ledger.blocks.values() if block.owned]
        assert sum(block.available for block in owned) > RESERVE // 2
        return len(owned)


@LONG
@pytest.mark.parametrize("prefix", SIZES)
@pytest.mark.parametrize("pods", [10, 30, 46, 60, 110, 250])
async def test_a_node_takes_as_many_blocks(autojump_clock: MockClock, prefix: int, pods: int) -> None:
    """As the page says when pods come one by one; at most one more, and never less than they need, when at once."""
    size = SIZES[prefix]
    assert await taken(pods, prefix, 5) == blocks(pods, size)
    assert ceil((pods + RESERVE) / size) <= await taken(pods, prefix, 0) <= blocks(pods, size) + 1
