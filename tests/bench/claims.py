"""A node's first block and address in clusters of other sizes: our ledger, writer and sync, and the model of Calico's.

Each node is new and has a connection of its own to a real etcd; its parts run in this process, so that what is timed
is the claim and not the start of a program. The clusters take turns.
"""

import json
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from random import Random

import trio

from ipamd.store.base import Change, Store
from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.bench.calico_plugin import Plugin
from tests.bench.figures import MODEL, OWN, Claim, spread
from tests.calico import block as blocks
from tests.calico.releasing import affinity_key, block_key
from tests.etcd_process import EtcdProcess
from tests.nodes import Node, add_request, pool_record

SIZES = (0, 1000, 10_000)
"""Blocks of the cluster; its pool has 16,384."""
PODS = 8
"""In each of the blocks: enough for a record of the usual size."""
_AT_ONCE = 50
"""Blocks in one transaction when a cluster is made."""


def measure(directory: Path, sizes: Sequence[int], repeats: int) -> list[Claim]:
    """The claims of ``repeats`` nodes of each program in each cluster, after one to get warm."""
    with ExitStack() as stack:
        clusters = {size: stack.enter_context(EtcdProcess(directory / f"claims-{size}")) for size in sizes}
        return trio.run(_measure, clusters, repeats)


async def _measure(clusters: dict[int, EtcdProcess], repeats: int) -> list[Claim]:
    for size, etcd in clusters.items():
        etcd.put(*pool_record("bench", "10.64.0.0/12"))
        await _populate(etcd, size)
    programs: dict[str, Callable[[Store, str], Coroutine[None, None, int]]] = {OWN: _ipamd, MODEL: _calico}
    taken: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for number in range(1 + repeats):
        for size, etcd in clusters.items():
            for name, program in programs.items():
                async with AsyncExitStack() as stack:
                    store = EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,)))
                    stack.push_async_callback(store.aclose)
                    began = time.perf_counter_ns()
                    ended = await program(store, f"{name.split()[0]}-{number}")
                    if number:
                        taken.setdefault((name, size), []).append((ended - began, store.calls["commit"]))
    return [
        Claim(name, size, spread([took for took, _ in each]), max(commits for _, commits in each))
        for (name, size), each in taken.items()
    ]


async def _ipamd(store: Store, node: str) -> int:
    """Start the parts of a daemon and give a pod an address; returns when it had it (ns)."""
    async with Node(node, store).running() as parts:
        await parts.add(add_request("first"))
        return time.perf_counter_ns()


async def _calico(store: Store, node: str) -> int:
    """Give a pod an address as Calico's plugin does; returns when it had it (ns)."""
    await Plugin(store, node).add("k8s-pod-network.first", {"namespace": "default", "pod": "first"})
    return time.perf_counter_ns()


async def _populate(etcd: EtcdProcess, count: int) -> None:
    """Put blocks of other nodes, anywhere in the pool."""
    store = EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,)))
    try:
        chosen = Random(count).sample(range(1 << 14), count)  # noqa: S311 - the same cluster in each run
        for first in range(0, count, _AT_ONCE):
            changes = [change for index in chosen[first : first + _AT_ONCE] for change in _block(index)]
            await store.commit(changes)
    finally:
        await store.aclose()


def _block(index: int) -> tuple[Change, Change]:
    """A block with some pods, and the affinity of its node."""
    cidr = f"10.{64 + (index >> 10)}.{index >> 2 & 255}.{(index & 3) << 6}/26"
    node = f"node-{index}"
    block = blocks.new(cidr, f"host:{node}", time.time_ns())
    for ordinal in range(PODS):
        pod = {
            "namespace": "default",
            "node": node,
            "pod": f"pod-{ordinal}",
            "timestamp": "2026-11-20 23:47:40 +0000 UTC",
        }
        blocks.give(block, ordinal, {"handle_id": f"k8s-pod-network.{index:058x}{ordinal:06x}", "secondary": pod})
    affinity = json.dumps({"state": "confirmed", "deleted": False}).encode()
    return Change(block_key(cidr), blocks.finished(block), 0), Change(affinity_key(node, cidr), affinity, 0)
