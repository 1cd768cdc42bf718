"""The state file is damaged while the daemon is down: it goes on with what the store knows, and promises nothing twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.calico_state import agreed
from tests.daemon_process import POOLS, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start
from tests.runtime.results import cached

pytestmark = pytest.mark.real


def cut(data: bytes) -> bytes:
    """Its end is missing although the machine ran on."""
    return data[:-1]


def flip_record(data: bytes) -> bytes:
    """A bit in the middle of the records is another."""
    middle = (4096 + len(data)) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def flip_header(data: bytes) -> bytes:
    """The header's checksum does not match."""
    return data[:20] + bytes([data[20] ^ 1]) + data[21:]


def empty(_data: bytes) -> bytes:
    """Nothing is left, as some file systems have it after a power cut."""
    return b""


@pytest.mark.parametrize("damage", [cut, flip_record, flip_header, empty])
def test_a_damaged_state_file_costs_no_pod_its_address(
    etcd: EtcdProcess, start: Start, damage: Callable[[bytes], bytes]
) -> None:
    """Set aside as it is; flushed pods keep their addresses, and what was promised unflushed is nobody else's."""
    daemon = start("node-a", *POOLS, "--etcd-timeout", "1")
    flushed = {f"old{number}": daemon.add(f"old{number}") for number in range(3)}
    agreed(etcd, daemon)
    etcd.pause()
    promised = {daemon.add(f"new{number}")[0] for number in range(5)}
    daemon.kill()
    path = daemon.directory / "state" / "state"
    path.write_bytes(damage(path.read_bytes()))
    data = path.read_bytes()
    etcd.resume()
    daemon.start()
    (kept,) = daemon.get("/v1/status")["state_file"]["set_aside"]
    assert (path.parent / kept).read_bytes() == data
    assert daemon.metric("ipamd_state_files_set_aside") == 1
    (line,) = [line for line in daemon.log.read_text().splitlines() if "state file set aside" in line]
    assert kept in line
    for word in ("cannot read the state file", "had not reached the store", "kept from everybody for 3600 s"):
        assert word in line
    allocated = {view["address"] for view in daemon.get("/v1/allocations")}
    before = {address for (address,) in flushed.values()}
    assert before <= allocated <= before | promised  # what the killed daemon had sent to etcd may arrive yet
    assert {container: daemon.add(container) for container in flushed} == flushed
    fresh = {daemon.add(f"fresh{number}")[0] for number in range(30)}
    assert not fresh & promised
    daemon.kill()
    daemon.start()
    assert daemon.get("/v1/status")["state_file"]["set_aside"] == [kept]
    assert {container: daemon.add(container) for container in flushed} == flushed


def test_a_file_of_another_node_is_refused_and_stays(etcd: EtcdProcess, start: Start) -> None:
    """A renamed or re-imaged host ends with the reason and code 1; its state file is where it was."""
    daemon = start("node-a", *POOLS)
    daemon.kill()
    data = (daemon.directory / "state" / "state").read_bytes()
    daemon.node = "node-b"
    assert ended(daemon) == 1
    assert "it belongs to node 'node-a' and this is node 'node-b'" in daemon.log.read_text()
    assert files(daemon.directory / "state") == {"lock", "state", "del.d"}
    assert (daemon.directory / "state" / "state").read_bytes() == data


def ended(daemon: Daemon) -> int:
    """Start it and wait for its end; returns the exit code."""
    daemon.start(ready=False)
    wait_for(lambda: not daemon.lives, 15)
    return daemon.kill()


def files(directory: Path) -> set[str]:
    """What is in a directory."""
    return {path.name for path in directory.iterdir()}


def test_addresses_of_ranges_are_held_as_the_whole_records_say(etcd: EtcdProcess, start: Start) -> None:
    """No store knows them: what the damaged file still tells is kept, so that none is given to a second pod."""
    ranges = network(kind="host-local", subnet="10.9.0.0/28")
    daemon = start("node-a", *POOLS)
    held = {f"c{number}": daemon.add(f"c{number}", ranges, name="host-local") for number in range(8)}
    daemon.delete("c7", ranges, name="host-local")
    del held["c7"]
    daemon.kill()
    path = daemon.directory / "state" / "state"
    path.write_bytes(flip_header(path.read_bytes()))
    daemon.start()
    for _ in range(2):
        assert {container: daemon.add(container, ranges, name="host-local") for container in held} == held
        assert {view["container"] for view in daemon.get("/v1/allocations")} == held.keys()
        daemon.kill()
        daemon.start()
    fresh = [daemon.add(f"fresh{number}", ranges, name="host-local") for number in range(3)]
    assert not [addresses for addresses in fresh if addresses in held.values()]
    daemon.delete("c0", ranges, name="host-local")
    assert "c0" not in {view["container"] for view in daemon.get("/v1/allocations")}


@pytest.mark.parametrize("harm", ["one record", "the file"])
def test_addresses_of_ranges_are_taken_back_from_the_runtime(
    etcd: EtcdProcess, start: Start, tmp_path: Path, harm: str
) -> None:
    """What the file does not tell any more the cache of results does: nobody loses it, and nobody else gets it."""
    ranges = network(kind="host-local", subnet="10.9.0.0/28")
    results = tmp_path / "results"
    daemon = start("node-a", *POOLS, "--runtime-results-dir", str(results))
    held = {f"c{number}": daemon.add(f"c{number}", ranges, name="host-local") for number in range(6)}
    for container, addresses in held.items():
        cached(results, container, addresses, ipam=ranges["ipam"])
    daemon.kill()
    path = daemon.directory / "state" / "state"
    if harm == "the file":
        path.unlink()
    else:
        data = path.read_bytes()
        at = data.index(b"10.9.0.4")
        path.write_bytes(data[:at] + b"9" + data[at + 1 :])
    daemon.start()
    assert daemon.log.read_text().count("took back addresses of a living container") == (6 if harm == "the file" else 1)
    assert {container: daemon.add(container, ranges, name="host-local") for container in held} == held
    fresh = [daemon.add(f"fresh{number}", ranges, name="host-local") for number in range(7)]
    assert not [addresses for addresses in fresh if addresses in held.values()]
    assert daemon.plugin("ADD", "one-more", ranges, name="host-local").json["code"] == 106
