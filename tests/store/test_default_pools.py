"""The pools made at start where there is none: which, in Calico's bytes, each once."""

import json
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.pool import Pool
from ipamd.core.records import new_block
from ipamd.store.default_pools import DefaultPool, create_default_pools
from tests.core.captured import captured
from tests.memory_store import MemoryStore
from tests.nodes import pool_record

FOUR = DefaultPool(
    Pool("default-ipv4-ippool", parse_cidr("192.168.0.0/16"), 26), "all()", "Never", "Never", True, False
)
SIX = DefaultPool(
    Pool("default-ipv6-ippool", parse_cidr("fd00:10:244::/64"), 122), "all()", "Never", "Never", False, False
)
UIDS = ("uid-4", "uid-6")


def spec(store: MemoryStore, name: str) -> dict[str, object]:
    """What a pool's record says of the pool."""
    return dict(json.loads(store.records[keys.POOLS + name].value)["spec"])


async def test_several_nodes_make_the_default_pools_once(autojump_clock: MockClock) -> None:
    """Ten nodes that start at once on an empty store make one pool of each IP version between them."""
    store = MemoryStore(delay=0.001)
    created: list[str] = []

    async def one(node: int) -> None:
        uids: Iterator[str] = (f"{node}-{family}" for family in (4, 6))
        created.extend((await create_default_pools(store, [FOUR, SIX], uids, 1))[0])

    async with trio.open_nursery() as nursery:
        for node in range(10):
            nursery.start_soon(one, node)
    assert sorted(created) == ["default-ipv4-ippool", "default-ipv6-ippool"]
    assert sorted(map(keys.name_of, store.records)) == sorted(created)


async def test_a_version_that_has_a_pool_gets_none(autojump_clock: MockClock) -> None:
    """As with Calico's node agent: a pool of one version, whatever it is called, says nothing of the other."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("mine", "10.0.0.0/16", disabled=True))
    assert await create_default_pools(store, [FOUR, SIX], UIDS, 1) == (["default-ipv6-ippool"], [])
    assert await create_default_pools(store, [FOUR, SIX], UIDS, 1) == ([], [])


async def test_a_default_pool_has_the_bytes_that_calico_writes(autojump_clock: MockClock) -> None:
    """Field by field in Calico's order, what is off left out: as the captured pool of the same settings."""
    store = MemoryStore(delay=0.001)
    (value,) = {
        v for name, key, v in captured(keys.Kind.POOL) if b"default-ipv4-ippool" in v and name == "migrate-done"
    }
    told = json.loads(value)["metadata"]
    default = DefaultPool(
        Pool("default-ipv4-ippool", parse_cidr("192.168.0.0/16"), 27), "all()", "Always", "Never", True, False
    )
    await create_default_pools(store, [default], [told["uid"]], 1_795_218_473_000_000_000)
    assert store.records[keys.POOLS + "default-ipv4-ippool"].value == value


async def test_every_setting_reaches_the_record(autojump_clock: MockClock) -> None:
    """Those that differ from the defaults, of an IPv6 pool."""
    store = MemoryStore(delay=0.001)
    pool = Pool("default-ipv6-ippool", parse_cidr("fd00::/48"), 116)
    await create_default_pools(store, [DefaultPool(pool, "rack == '0'", "Never", "CrossSubnet", True, True)], UIDS, 1)
    assert spec(store, "default-ipv6-ippool") == {
        "cidr": "fd00::/48",
        "vxlanMode": "CrossSubnet",
        "ipipMode": "Never",
        "natOutgoing": True,
        "disableBGPExport": True,
        "blockSize": 116,
        "nodeSelector": "rack == '0'",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }


@pytest.mark.parametrize("block", ["192.168.255.0/27", "192.168.0.0/20"])
async def test_a_block_of_another_size_in_the_range_hinders(autojump_clock: MockClock, block: str) -> None:
    """Left from an earlier pool with other blocks: the pool is made when it is gone, as Calico would allow it."""
    store = MemoryStore(delay=0.001)
    for index in range(1020):
        store.put(keys.block_key(FOUR.pool.block(index)), b"{}")
    key = keys.block_key(parse_cidr(block))
    store.put(key, new_block(parse_cidr(block), "host:n1", 1).encode())
    assert await create_default_pools(store, [FOUR], UIDS, 1) == (
        [],
        [f"cannot create pool default-ipv4-ippool with blocks of /26: {block} is in use"],
    )
    store.put(key, None)
    assert await create_default_pools(store, [FOUR], UIDS, 1) == (["default-ipv4-ippool"], [])
