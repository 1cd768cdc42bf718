"""Upgrades: the state file of an earlier version is used, that of a later one spared; versions share a cluster."""

import json
import time
import zlib
from pathlib import Path

import pytest

from ipamd.core import keys
from ipamd.core.records import rfc3339
from ipamd.journal.format import decode_header
from release.archives import unpack
from tests.daemon_process import POOLS, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

CAPTURES = Path(__file__).resolve().parent.parent / "data" / "versions"
RANGES = network(kind="host-local", ranges=[[{"subnet": "10.9.0.0/24"}]]) | {"name": "ranges"}
HELD = {"c0": "192.168.67.64", "c1": "192.168.67.65", "c2": "192.168.67.66", "c4": "192.168.67.68"}
UNFLUSHED = {"c5": "192.168.67.69"}
"""What pods of the captured daemons had: c3 was released, and of c5 nothing but the state file knows."""


def unpacked(name: str, directory: Path) -> Path:
    """A captured state directory as ``kill -9`` left it: state file and embedded store."""
    state = directory / "state"
    unpack(CAPTURES / f"{name}.tar.gz", state)
    return state / "state"


def held(daemon: Daemon) -> dict[str, str]:
    """Container and address of everything held."""
    return {each["container"]: each["address"] for each in daemon.get("/v1/allocations")}


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        pytest.param("first", {}, id="first: before state files had names and knew of ranges"),
        pytest.param("present", {"r1": "10.9.0.3"}, id="present"),
    ],
)
def test_a_captured_state_file_is_used(tmp_path: Path, name: str, ranges: dict[str, str]) -> None:
    """Every pod keeps its address, also one that no store knows; a repeated ADD repeats, a new one takes nobody's."""
    header = decode_header(unpacked(name, tmp_path).read_bytes())
    assert (header.instance == "") is (name == "first")
    with Daemon(tmp_path, "node-a", *POOLS) as daemon:
        assert held(daemon) == {**HELD, **UNFLUSHED, **ranges}
        for container, address in {**HELD, **UNFLUSHED}.items():
            assert daemon.add(container) == [address]
        for container, address in ranges.items():
            assert daemon.add(container, RANGES, name="host-local") == [address]
        (new,) = daemon.add("c6")
        assert new not in {*HELD.values(), *UNFLUSHED.values()}
        wait_for(lambda: daemon.get("/v1/status")["flush"]["unflushed"] == 0)
        daemon.delete("c5")
        assert daemon.stop() == 0
        daemon.start()
        assert held(daemon) == {**HELD, **ranges, "c6": new}


def test_a_state_file_of_a_later_version_is_spared(tmp_path: Path) -> None:
    """The daemon ends, says which format it found and what to do, and has changed nothing."""
    path = unpacked("present", tmp_path)
    data = bytearray(path.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    data[508:512] = zlib.crc32(data[:508]).to_bytes(4, "little")
    path.write_bytes(data)
    with Daemon(tmp_path, "node-a", *POOLS, ready=False) as daemon:
        assert daemon.wait_end() == 1
        assert (
            f"cannot read the state file {path}: its format is version 2, and this ipamd knows version 1; start the ipamd"
            " that wrote it, or drain the node with that one and move the file away"
        ) in daemon.log.read_text()
    assert path.read_bytes() == data
    assert {each.name for each in path.parent.iterdir()} - {"lock", "del.d"} == {"state", "ipamd.db", "ipamd.db-wal"}


def test_what_a_later_version_adds_to_records_survives(etcd: EtcdProcess, start: Start) -> None:
    """A field that this version does not know stays in blocks, handles and affinities which it writes."""
    one, two = start("node-a", *POOLS), start("node-b", *POOLS)
    for daemon, container in ((one, "a"), (two, "b")):
        daemon.add(container)
        wait_for(lambda daemon=daemon: daemon.get("/v1/status")["flush"]["unflushed"] == 0)
    told = {key: json.loads(value) for key, value in etcd.get_prefix(keys.IPAM).items() if value}
    later = {key: value | {"zone": {"rack": 7}} for key, value in told.items() if isinstance(value, dict)}
    assert {keys.kind_of(key) for key in later} >= {keys.Kind.BLOCK, keys.Kind.HANDLE, keys.Kind.AFFINITY}
    for key, value in later.items():
        etcd.put(key, json.dumps(value, separators=(",", ":")).encode())
    for daemon, container in ((one, "a2"), (two, "b2")):
        daemon.add(container)
        wait_for(lambda daemon=daemon: daemon.get("/v1/status")["flush"]["unflushed"] == 0)
        assert daemon.get("/v1/status")["store"]["damaged_records"] == {}
    written = {key: json.loads(value) for key, value in etcd.get_prefix(keys.IPAM).items() if value}
    changed = [key for key in later if written.get(key) not in (None, later[key])]
    assert changed
    for key in later.keys() & written.keys():
        assert written[key]["zone"] == {"rack": 7}, key


def test_records_of_our_own_may_grow(etcd: EtcdProcess, start: Start) -> None:
    """Who serves a node, who cleans, which pool is exhausted: told by a later version, understood by this one."""
    one = start("node-a", *POOLS)
    one.add("a")
    wait_for(lambda: etcd.get_prefix(keys.DAEMONS))
    (host,) = (json.loads(value) for value in etcd.get_prefix(keys.DAEMONS + "node-a").values())
    other = host | {"host": "elsewhere", "machine": "m", "boot": "x", "instance": "0badcafe", "zone": {"rack": 7}}
    etcd.put(keys.DAEMONS + "node-b", json.dumps(other).encode())
    two = start("node-b", *POOLS, ready=False)
    wait_for(lambda: "elsewhere" in two.get("/v1/status", quiet=True).get("yields_to", ""), 20)
    reserve = one.metric("ipamd_reserve_addresses")
    pressed = {"node": "node-b", "time": rfc3339(time.time_ns()), "zone": {"rack": 7}}
    etcd.put(keys.pressure_key("default-ipv4-ippool"), json.dumps(pressed).encode())
    wait_for(lambda: one.metric("ipamd_reserve_addresses") < reserve)
    assert one.get("/v1/status")["store"]["damaged_records"] == {}
