"""A full cluster: 2,000 blocks in which 100,000 addresses are in use, and what it costs to look at them all.

``python -m tests.ctl.crowd ipam show --show-blocks`` makes one on each kind of store, with a daemon on etcd, and prints what
the command took there: CPU seconds of its own, seconds, memory at most.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import click
import trio

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.records import HandleRecord, affinity_record, attribute, go_json, new_block
from ipamd.ctl.target import Target
from ipamd.store.base import Change
from tests.ctl.places import OnFile
from tests.daemon_process import Daemon
from tests.etcd_process import EtcdProcess

POOL = parse_cidr("10.0.0.0/12")
NODES = 200
_AT = 1_790_000_000_000_000_000
_SINCE = "2026-11-20 23:47:41.465011042 +0000 UTC"


def crowd(blocks: int = 2000, used: int = 50, *, handles: bool = True) -> dict[str, bytes]:
    """The records: a pool, blocks of 200 nodes with ``used`` pods each, their affinities and, if wanted, handles."""
    pool = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "pods"}}
    records = {keys.POOLS + "pods": go_json({**pool, "spec": {"cidr": str(POOL), "blockSize": 26}})}
    for number in range(blocks):
        cidr, node = Cidr(4, POOL.base + number * 64, 26), f"node-{number % NODES:03}"
        block = new_block(cidr, keys.host_affinity(node), _AT)
        held = HandleRecord(None)
        held.set(str(cidr), 1)
        for ordinal in range(used):
            handle = f"k8s-pod-network.{number:032x}{ordinal:032x}"
            said = {"namespace": "default", "node": node, "pod": f"web-{number}-{ordinal}", "timestamp": _SINCE}
            block.take({ordinal}, attribute(handle, said))
            if handles:
                records[keys.handle_key(handle)] = held.encode() or b""
        records[keys.block_key(cidr)] = block.encode()
        records[keys.affinity_key(node, cidr)] = affinity_record("confirmed")
    return records


def fill(target: Target, records: Mapping[str, bytes]) -> None:
    """Write records that are not there yet, many at a time."""

    async def write() -> None:
        async with target.records() as store:
            changes = [Change(key, value, 0) for key, value in records.items()]
            for start in range(0, len(changes), 50):
                await store.commit(changes[start : start + 50])

    trio.run(write)


_SELF = """
import sys
from ipamd.ctl.main import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""
"""``ipamctl``, that tells its most memory (KiB) at its end: what ``wait4`` says of it includes who started it."""


class Cost(NamedTuple):
    """What a command printed, and what it took: CPU seconds of its own, seconds, bytes of memory at most."""

    out: str
    user: float
    seconds: float
    memory: int


def cost(flags: Sequence[str], argv: Sequence[str]) -> Cost:
    """Run ``ipamctl`` as a process of its own, which must succeed."""
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    line = [sys.executable, "-c", _SELF, *flags, *argv]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    user = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return Cost(done.stdout, user, time.monotonic() - began, int(done.stderr.splitlines()[-1]) * 1024)


def main(argv: Sequence[str]) -> None:
    """Print what a command takes on each kind of store, and through the socket of a daemon."""
    records = crowd()
    click.echo(f"{len(records)} records, {sum(map(len, records.values())) >> 20} MiB; ipamctl {' '.join(argv)}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = OnFile(folder / "store.db")
        fill(Target(db=file.flags[-1]), records)
        _tell("embedded", file.flags, argv)
        etcd = stack.enter_context(EtcdProcess(folder / "etcd"))
        fill(Target(etcd={"etcd.endpoints": etcd.endpoint}), records)
        _tell("etcd", ("--etcd-endpoints", etcd.endpoint), argv)
        daemon = stack.enter_context(Daemon(folder / "d", "node-000", "--etcd-endpoints", etcd.endpoint))
        _tell("daemon", ("--socket", str(daemon.socket)), argv)


def _tell(kind: str, flags: Sequence[str], argv: Sequence[str]) -> None:
    took = min((cost(flags, argv) for _ in range(3)), key=lambda each: each.user)
    click.echo(f"{kind:<10}{took.user:6.2f} s user{took.seconds:8.2f} s{took.memory >> 20:6} MiB")


if __name__ == "__main__":
    main(sys.argv[1:] or ["ipam", "show", "--show-blocks"])
