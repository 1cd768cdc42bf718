"""A node that Calico's own plugin served: ipamd takes over its records as captured, and leaves them as Calico would."""

import ipaddress
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.calico_state import IPAM, State, agreed
from tests.daemon_process import Daemon, addresses_of, dual_stack, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

FIXTURES = Path(__file__).parent.parent / "data" / "calico"
OWN = "192.168.174.128/26"
OWN_EMPTY = "192.168.77.0/26"
OWN_V6 = "fd00:10:244:0:defe:d3d7:156e:ae80/122"
FOREIGN = "192.168.218.64/26"


def captured(name: str) -> dict[str, bytes]:
    """All records of a fixture."""
    return {key: value.encode() for key, value in json.loads((FIXTURES / f"{name}.json").read_text())["etcd"].items()}


def block_key(cidr: str) -> str:
    """The key of a block."""
    return f"{IPAM}assignment/ipv{6 if ':' in cidr else 4}/block/{cidr.replace('/', '-')}"


def affinity_key(node: str, cidr: str) -> str:
    """The key of a node's affinity."""
    return f"{IPAM}host/{node}/ipv{6 if ':' in cidr else 4}/block/{cidr.replace('/', '-')}"


def handle_key(container: str) -> str:
    """The key of the handle of a container."""
    return f"{IPAM}handle/k8s-pod-network.{container}"


def put(etcd: EtcdProcess, records: dict[str, bytes]) -> State:
    """Write records as they are; returns what they say."""
    for key, value in records.items():
        etcd.put(key, value)
    return State(records)


def attribute_of(state: State, address: str) -> Any:
    """What etcd says of who holds an address, with its sequence number; None: nobody."""
    for cidr, block in state.blocks.items():
        size = len(block["allocations"])
        for ordinal in range(size):
            if address == _address(cidr, ordinal) and block["allocations"][ordinal] is not None:
                attribute = block["attributes"][block["allocations"][ordinal]]
                return attribute, block["sequenceNumberForAllocation"].get(str(ordinal))
    return None


def _address(cidr: str, ordinal: int) -> str:
    return str(ipaddress.ip_network(cidr).network_address + ordinal)


def reserve_of(daemon: Daemon) -> str:
    """The handle of the daemon's reserve."""
    handle = daemon.get("/v1/status")["reserve_handle"]
    assert isinstance(handle, str)
    return handle


def test_the_node_keeps_its_blocks_and_every_allocation_that_calicos_plugin_made(
    etcd: EtcdProcess, start: Start
) -> None:
    """No block is claimed while there is room, no pod's record changes, each is listed; node-b's stay as they are."""
    records = captured("basic")
    before = put(etcd, records)
    daemon = start("node-a")
    after = agreed(etcd, daemon)
    assert after.blocks.keys() == before.blocks.keys()
    assert {view["cidr"] for view in daemon.get("/v1/blocks")} == {OWN, OWN_EMPTY, OWN_V6}
    assert after.pods() == before.pods()
    assert len(after.pods("node-a")) == 12
    for address in after.pods():
        assert attribute_of(after, address) == attribute_of(before, address)
    unchanged = {key for key in records if key not in {block_key(cidr) for cidr in (OWN, OWN_EMPTY, OWN_V6)}}
    assert {key: after.records[key] for key in unchanged} == {key: records[key] for key in unchanged}
    assert after.records.keys() - records.keys() == {f"{IPAM}handle/{reserve_of(daemon)}"}
    listed = {view["address"]: view for view in daemon.get("/v1/allocations")}
    assert listed["192.168.174.128"]["pod"] == "pod-v100"
    assert listed["192.168.174.128"]["container"] == "v100"
    assert listed["192.168.174.128"]["namespace"] == "default"
    pools = {view["name"]: view for view in daemon.get("/v1/pools")}
    assert pools["default-ipv4-ippool"]["addresses_in_use"] == 10


def test_a_check_knows_what_calicos_plugin_had_added(etcd: EtcdProcess, start: Start) -> None:
    """CHECK of a pod from before the takeover succeeds; of a container that never was, it is code 3."""
    put(etcd, captured("basic"))
    daemon = start("node-a")
    wait_for(lambda: daemon.get("/v1/status")["store"]["synced"])
    assert daemon.plugin("CHECK", "v100").code == 0
    assert daemon.plugin("CHECK", "never").json["code"] == 3


def test_a_del_releases_what_calicos_plugin_had_added(etcd: EtcdProcess, start: Start) -> None:
    """A plain pod, a dual-stack one, the address that a repeated ADD leaked and a pod with the older handle all go."""
    records = captured("basic")
    old = json.loads(records[block_key(OWN)])
    old["unallocated"].remove(40)
    old["allocations"][40] = len(old["attributes"])
    old["attributes"].append({"handle_id": "default.pod-old", "secondary": {"node": "node-a"}})
    old["sequenceNumberForAllocation"]["40"] = old["sequenceNumber"] - 1
    records[block_key(OWN)] = json.dumps(old, separators=(",", ":")).encode()
    records[f"{IPAM}handle/default.pod-old"] = b'{"block":{"%s":1},"deleted":false}' % OWN.encode()
    before = put(etcd, records)
    assert not before.problems()
    daemon = start("node-a")
    gone = {"k8s-pod-network.v100", "k8s-pod-network.dual", "k8s-pod-network.again", "default.pod-old"}
    for container in ("v100", "dual", "again", "old"):
        daemon.delete(container)
    after = agreed(etcd, daemon)
    assert after.pods() == {address: handle for address, handle in before.pods().items() if handle not in gone}
    assert after.pod_handles() == before.pod_handles() - gone
    daemon.delete("v100")
    assert agreed(etcd, daemon).pods() == after.pods()


def test_an_add_of_a_pod_that_calicos_plugin_added_gives_its_address_and_new_pods_get_free_ones(
    etcd: EtcdProcess, start: Start
) -> None:
    """A container keeps its addresses, also after a restart of the daemon; nobody else's is ever given to a new pod."""
    before = put(etcd, captured("basic"))
    daemon = start("node-a", "--reserve-max", "16")
    assert daemon.add("v040") == ["192.168.174.129"]
    assert daemon.add("dual", dual_stack()) == ["192.168.174.133", "fd00:10:244:0:defe:d3d7:156e:ae80"]
    assert daemon.add("v6only", network(assign_ipv4="false", assign_ipv6="true"))[0].endswith("ae81")
    assert daemon.add("again")[0] in ("192.168.174.135", "192.168.174.136")
    ever = before.pods().keys() | {"192.168.174.130", "192.168.77.5"}  # the latter two were released
    new = [address for number in range(40) for address in addresses_of(daemon.post("ADD", f"new{number}")[1])]
    assert len(set(new)) == 40
    assert not set(new) & ever
    after = agreed(etcd, daemon)
    assert after.blocks.keys() == before.blocks.keys()
    for address in before.pods():
        assert attribute_of(after, address) == attribute_of(before, address)
    daemon.kill()
    daemon.start()
    assert daemon.add("v040") == ["192.168.174.129"]
    daemon.delete("again")
    assert "k8s-pod-network.again" not in agreed(etcd, daemon).pods().values()


def test_fields_that_are_not_known_here_survive_every_rewrite(etcd: EtcdProcess, start: Start) -> None:
    """Unknown fields of block, attributes, affinity and handle are still there after ADDs and DELs rewrote them."""
    records = captured("basic")
    extra = {"x": [1, {"y": "<&>"}]}

    def extend(key: str, change: Callable[[Any], None]) -> None:
        value = json.loads(records[key])
        change(value)
        records[key] = json.dumps(value, separators=(",", ":")).encode()

    def in_block(block: Any) -> None:
        block["future"] = extra
        block["attributes"][1]["future"] = extra
        block["attributes"][1]["secondary"]["vm-uid"] = "u<1>"
        block["attributes"][1]["alternateOwnerAttrs"] = {"node": "node-z"}

    extend(block_key(OWN), in_block)
    extend(affinity_key("node-a", OWN), lambda value: value.update(state="pending", future=extra))
    before = put(etcd, records)
    daemon = start("node-a")
    handle = json.loads(agreed(etcd, daemon).records[f"{IPAM}handle/{reserve_of(daemon)}"])
    etcd.put(f"{IPAM}handle/{reserve_of(daemon)}", json.dumps({**handle, "future": extra}).encode())
    for number in range(20):
        assert daemon.post("ADD", f"new{number}")[0] == 200
    daemon.delete("v100")
    daemon.delete("new1")
    after = agreed(etcd, daemon)
    assert after.blocks[OWN]["sequenceNumber"] > before.blocks[OWN]["sequenceNumber"]
    assert after.blocks[OWN]["future"] == extra
    assert attribute_of(after, "192.168.174.129") == attribute_of(before, "192.168.174.129")
    assert after.affinities["node-a", OWN] == {"state": "confirmed", "deleted": False, "future": extra}
    reserve = after.handles[reserve_of(daemon)]
    assert reserve["future"] == extra
    assert reserve["block"]


def test_records_of_older_forms_are_served_from_as_they_are(etcd: EtcdProcess, start: Start) -> None:
    """Affinities without value or state, a block without claim time and sequence numbers: all as good as new."""
    records = captured("basic")
    records[affinity_key("node-a", OWN)] = b""
    records[affinity_key("node-a", OWN_V6)] = b"{}"
    block = json.loads(records[block_key(OWN)])
    del block["sequenceNumberForAllocation"], block["affinity_claim_time"]
    records[block_key(OWN)] = json.dumps(block, separators=(",", ":")).encode()
    before = put(etcd, records)
    daemon = start("node-a", "--reserve-max", "16")  # one that grows, as ADDs wait for etcd, may want another block
    assert daemon.add("v040") == ["192.168.174.129"]
    added = daemon.add("new", dual_stack())
    daemon.delete("v100")
    after = agreed(etcd, daemon)
    assert after.blocks.keys() == before.blocks.keys()
    expected = {**before.pods(), **dict.fromkeys(added, "k8s-pod-network.new")}
    del expected["192.168.174.128"]
    assert after.pods() == expected
    assert "affinity_claim_time" not in after.blocks[OWN]
    assert after.affinities.keys() == before.affinities.keys()


def test_claims_that_were_left_half_done_are_finished_or_dropped(etcd: EtcdProcess, start: Start) -> None:
    """An affinity without a block gets it, an own block's is confirmed, one of another's block or of no pool goes."""
    records = captured("basic")
    pending = b'{"state":"pending","deleted":false}'
    lonely, stale, outside = "192.168.5.0/26", "192.168.9.64/26", "10.99.0.0/26"
    records[affinity_key("node-a", lonely)] = pending
    records[affinity_key("node-a", outside)] = pending
    records[affinity_key("node-a", OWN)] = pending
    records[affinity_key("node-a", FOREIGN)] = pending
    records[affinity_key("node-a", stale)] = b'{"state":"confirmed","deleted":false}'
    records[affinity_key("node-b", stale)] = b'{"state":"confirmed","deleted":false}'
    records[block_key(stale)] = (
        records[block_key(OWN_EMPTY)].replace(b"node-a", b"node-b").replace(b"192.168.77.0", b"192.168.9.64")
    )
    before = put(etcd, records)
    daemon = start("node-a")
    after = agreed(etcd, daemon)
    assert not after.problems()
    mine = {cidr: affinity["state"] for (node, cidr), affinity in after.affinities.items() if node == "node-a"}
    assert mine == dict.fromkeys([lonely, OWN, OWN_EMPTY, OWN_V6], "confirmed")
    assert after.blocks[lonely]["affinity"] == "host:node-a"
    for cidr in (FOREIGN, stale):
        assert after.records[block_key(cidr)] == records[block_key(cidr)]
        assert after.records[affinity_key("node-b", cidr)] == records[affinity_key("node-b", cidr)]
    assert after.pods() == before.pods()


def test_borrowed_addresses_are_released_in_the_other_nodes_block(etcd: EtcdProcess, start: Start) -> None:
    """In a pool that Calico filled up a new pod is refused; a DEL of a pod with a borrowed address frees it there."""
    before = put(etcd, captured("borrow"))
    daemon = start("node-a", ready=False)
    wait_for(lambda: daemon.get("/v1/status", quiet=True).get("store", {}).get("synced"))
    status, body = daemon.post("ADD", "new")
    assert (status, json.loads(body)["code"]) == (409, 101)
    assert State.of(etcd).records == before.records
    daemon.delete("a4")
    wait_for(lambda: "k8s-pod-network.a4" not in State.of(etcd).handles)
    after = State.of(etcd)
    assert not after.problems()
    assert after.pods() == {address: handle for address, handle in before.pods().items() if "a4" not in handle}
    assert after.blocks["10.8.0.0/30"]["affinity"] == "host:node-b"


def test_limits_and_addresses_in_cooldown_are_respected(etcd: EtcdProcess, start: Start) -> None:
    """With all blocks that the limit allows in use, and others' addresses cooling down, ADD and readiness name it."""
    just_now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    records = {
        key: re.sub(rb'(?<="releasedAt":")[^"]+', just_now.encode(), value) for key, value in captured("limits").items()
    }
    before = put(etcd, records)
    daemon = start("node-a", ready=False)
    wait_for(lambda: "this node has 2 blocks, the limit" in daemon.get("/readyz", quiet=True).get("reason", ""))
    assert {view["container"] for view in daemon.get("/v1/allocations")} == {"m0", "m3", "m4", "m5", "m6", "m7"}
    assert daemon.add("m5") == ["10.40.0.237"]
    status, body = daemon.post("ADD", "new")
    assert (status, json.loads(body)["code"]) == (409, 102), body
    assert State.of(etcd).pods() == before.pods()


def test_what_has_cooled_is_used_again(etcd: EtcdProcess, start: Start) -> None:
    """The captured records, long after: the addresses that Calico's plugin released are free, two more pods fit in."""
    put(etcd, captured("limits"))
    daemon = start("node-a")
    assert {*daemon.add("n1"), *daemon.add("n2")} == {"10.40.0.233", "10.40.0.234"}
    daemon.delete("n1")
    wait_for(lambda: b"releasedAt" in State.of(etcd).records[block_key("10.40.0.232/30")])
    status, body = daemon.post("ADD", "n3")
    assert (status, json.loads(body)["code"]) == (409, 102), body
    assert not State.of(etcd).problems()
