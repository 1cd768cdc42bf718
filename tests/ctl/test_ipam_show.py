"""``ipam show``: the captured steps of calicoctl replayed, exact figures, and what only ipamd's records have."""

import json
from typing import Any

import pytest
import yaml

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.records import BlockRecord, attribute
from tests.ctl.places import Ctl, capture

STATIC = "192.168.77.5"
"""What basic.json's last steps release, after its ``ipam show``."""


def at_the_time(history: str) -> dict[str, str]:
    """A capture's records as they were at its ``ipam show`` steps."""
    records: dict[str, str] = capture(history)["etcd"]
    if history == "basic":
        key = keys.block_key(parse_cidr("192.168.77.0/26"))
        block = BlockRecord(records[key].encode())
        said = {"namespace": "default", "node": "node-a", "pod": "pod-static"}
        said["timestamp"] = "2026-11-20 23:47:41.465011042 +0000 UTC"
        block.take({5}, attribute("k8s-pod-network.static", said))
        records = {**records, key: block.encode().decode()}
    return records


def captured() -> list[tuple[str, dict[str, Any]]]:
    """Every ``calicoctl ipam show`` of the captures."""
    names = ("basic", "borrow", "limits", "migrate-done", "migrate-midway", "pools", "strict", "validation")
    shown = ["calicoctl", "ipam", "show"]
    return [(name, step) for name in names for step in capture(name)["steps"] if step.get("argv", [])[:3] == shown]


BETTER = {
    "basic": """\
+----------+------------------+----------------------+------------+--------------+-----------------------------+
| GROUPING | CIDR             | IPS TOTAL            | IPS IN USE | IPS RESERVED | IPS FREE                    |
+----------+------------------+----------------------+------------+--------------+-----------------------------+
| IP Pool  | 192.168.0.0/16   |                65536 |    12 (0%) |       0 (0%) |                65524 (100%) |
| IP Pool  | fd00:10:244::/64 | 18446744073709551616 |     2 (0%) |       0 (0%) | 18446744073709551614 (100%) |
+----------+------------------+----------------------+------------+--------------+-----------------------------+
""",
    "basic --show-blocks": """\
+----------+---------------------------------------+----------------------+------------+--------------+-----------------------------+
| GROUPING | CIDR                                  | IPS TOTAL            | IPS IN USE | IPS RESERVED | IPS FREE                    |
+----------+---------------------------------------+----------------------+------------+--------------+-----------------------------+
| IP Pool  | 192.168.0.0/16                        |                65536 |    12 (0%) |       0 (0%) |                65524 (100%) |
| Block    | 192.168.174.128/26                    |                   64 |   10 (16%) |       0 (0%) |                    54 (84%) |
| Block    | 192.168.218.64/26                     |                   64 |     1 (2%) |       0 (0%) |                    63 (98%) |
| Block    | 192.168.77.0/26                       |                   64 |     1 (2%) |       0 (0%) |                    63 (98%) |
| IP Pool  | fd00:10:244::/64                      | 18446744073709551616 |     2 (0%) |       0 (0%) | 18446744073709551614 (100%) |
| Block    | fd00:10:244:0:defe:d3d7:156e:ae80/122 |                   64 |     2 (3%) |       0 (0%) |                    62 (97%) |
+----------+---------------------------------------+----------------------+------------+--------------+-----------------------------+
""",
    "basic --show-configuration": """\
+------------------------------+---------+
| PROPERTY                     | VALUE   |
+------------------------------+---------+
| StrictAffinity               | false   |
| AutoAllocateBlocks           | true    |
| MaxBlocksPerHost             | 0       |
| KubeVirtVMAddressPersistence | Enabled |
| IPCooldownSeconds            | 0       |
+------------------------------+---------+
""",
    "limits --show-configuration": """\
+------------------------------+---------+
| PROPERTY                     | VALUE   |
+------------------------------+---------+
| StrictAffinity               | true    |
| AutoAllocateBlocks           | true    |
| MaxBlocksPerHost             | 2       |
| KubeVirtVMAddressPersistence | Enabled |
| IPCooldownSeconds            | 60      |
+------------------------------+---------+
""",
}
"""Where calicoctl prints a negative number of addresses, or where its value is in memory."""


@pytest.mark.parametrize(("history", "step"), captured(), ids=lambda each: each if isinstance(each, str) else "")
def test_a_captured_step_prints_the_same(ctl: Ctl, history: str, step: dict[str, Any]) -> None:
    """Byte for byte, but where calicoctl's figures are wrong."""
    ctl.load(at_the_time(history))
    done = ctl.run(*step["argv"][1:])
    if step["exit"]:
        assert (done.code, done.out) == (2, "")
        assert "'bogus' is not an IP address; write it as 10.0.0.7 or fd00::7" in done.err
    else:
        name = " ".join((history, *step["argv"][3:]))
        assert (done.code, done.out, done.err) == (0, BETTER.get(name, step["stdout"]), "")


RESERVED = """\
{"cidr":"10.0.0.0/29","affinity":"host:node-a","allocations":[0,0,1,2,3,4,null,null],"unallocated":[6,7],"attributes":[
{"handle_id":"ipamd-reserve-node-a.new","secondary":{"node":"node-a","note":"ipamd reserve","type":"ipipTunnelAddress"}},
{"handle_id":"ipamd-reserve-node-a.lost","secondary":{"node":"node-a","note":"ipamd reserve","type":"ipipTunnelAddress"}},
{"handle_id":"net.c1","secondary":{"node":"node-b","namespace":"shop","pod":"cart"}},
{"handle_id":"ipip-tunnel-addr-node-a","secondary":{"node":"node-a","type":"ipipTunnelAddress"}},
{"releasedAt":"2026-11-20T23:47:55Z"}],"sequenceNumber":7,"sequenceNumberForAllocation":{"3":6},"deleted":false}"""
"""A block with one address of every kind: two in reserve, one in that of a lost state file, pod, tunnel, cooling."""


def reserved() -> dict[str, str]:
    """That block in its pool of /28, with reservations for .1, .6 and, twice, .12 to .15."""
    pool = {"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/28", "blockSize": 29}}
    barred = {"spec": {"reservedCIDRs": ["10.0.0.1", "10.0.0.6", "10.0.0.12/30", "10.0.0.14/31", "10.9.0.0/16"]}}
    return {
        keys.POOLS + "p": json.dumps(pool),
        keys.RESERVATIONS + "r": json.dumps(barred),
        keys.DAEMONS + "node-a": '{"host":"h","machine":"","boot":"b","instance":"new"}',
        keys.block_key(parse_cidr("10.0.0.0/29")): RESERVED,
    }


def test_the_reserve_is_not_in_use(ctl: Ctl) -> None:
    """What ipamd has in reserve counts as free, and is told apart from what is quarantined or cooling."""
    ctl.load(reserved())
    rows = [line.split("|")[2:-1] for line in ctl.ok("ipam show --show-blocks -o wide").splitlines() if "|" in line]
    titles, *figures = [[cell.strip() for cell in row] for row in rows]
    assert titles[4:] == ["IPS FREE", "IN RESERVE", "COOLING", "QUARANTINED", "POOL OR NODE"]
    assert figures == [
        ["10.0.0.0/28", "16", "4 (25%)", "6 (38%)", "6 (38%)", "2 (12%)", "1 (6%)", "1 (6%)", "p"],
        ["10.0.0.0/29", "8", "4 (50%)", "2 (25%)", "2 (25%)", "2 (25%)", "1 (12%)", "1 (12%)", "node-a"],
    ]


def test_without_a_daemon_nothing_is_taken_for_lost(ctl: Ctl) -> None:
    """Which state file is the living one only the record of the daemon says."""
    records = reserved()
    del records[keys.DAEMONS + "node-a"]
    ctl.load(records)
    (pool,) = json.loads(ctl.ok("ipam show -o json"))["items"]
    assert (pool["in_reserve"], pool["quarantined"], pool["in_use"]) == (3, 0, 3)


def test_other_forms(ctl: Ctl) -> None:
    """The same figures as numbers, however large; names; a pool's blocks within it."""
    ctl.load(at_the_time("basic"))
    shown = json.loads(ctl.ok("ipam show --show-blocks -o json"))["items"]
    assert yaml.safe_load(ctl.ok("ipam show --show-blocks -o yaml"))["items"] == shown
    assert [len(pool["blocks"]) for pool in shown] == [3, 1]
    assert shown[1]["free"] == 2**64 - 2
    assert ctl.ok("ipam show -o name") == "".join(
        f"ippool.projectcalico.org/default-ipv{family}-ippool\n" for family in (4, 6)
    )
    assert ctl.ok("ipam show -o 'jsonpath={.items[*].free}'") == f"65524 {2**64 - 2}"
    assert ctl.ok("ipam show -o custom-columns=CIDR,FREE:.free").splitlines()[2].split() == [
        "fd00:10:244::/64",
        str(2**64 - 2),
    ]
    assert json.loads(ctl.ok("ipam show --show-configuration -o json"))["spec"]["maxBlocksPerHost"] == 0


def test_blocks_without_a_pool(ctl: Ctl) -> None:
    """They are told of, and shown after all pools; half way through a move to another pool there is one."""
    ctl.load(capture("migrate-midway")["etcd"])
    done = ctl("ipam show -o name")
    assert done.out == "ippool.projectcalico.org/temporary-pool\n"
    told = "not counted: 1 address in use in 1 block that lie in no pool; --show-blocks shows them"
    assert (done.code, done.err) == (0, f"ipamctl: {told}\n")
    last = ctl.ok("ipam show --show-blocks -o name").splitlines()[-1]
    assert last == "block/192.168.218.64/26"


ADDRESSES = {
    "10.0.0.0": ("reserve", "IP 10.0.0.0 is in reserve of node node-a: no pod has it"),
    "10.0.0.2": (
        "quarantined",
        "IP 10.0.0.2 was in reserve of node node-a under a state file that is lost: nobody gets it for a while",
    ),
    "10.0.0.3": ("pod", "IP 10.0.0.3 is in use"),
    "10.0.0.4": ("tunnel", "IP 10.0.0.4 is in use"),
    "10.0.0.5": ("cooling", "IP 10.0.0.5 was released at 2026-11-20T23:47:55Z and is cooling"),
    "10.0.0.6": ("free", "10.0.0.6 is not assigned"),
    "10.0.0.9": ("free", "10.0.0.9 is not assigned"),
    "fd00::1": ("free", "fd00::1 is not assigned"),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_who_has_an_address(ctl: Ctl, address: str) -> None:
    """A reserve, a lost one and an address that cools are not called in use."""
    ctl.load(reserved())
    assert ctl.ok(f"ipam show --ip {address}").splitlines()[0] == ADDRESSES[address][1]
    assert json.loads(ctl.ok(f"ipam show --ip {address} -o json"))["state"] == ADDRESSES[address][0]


def test_what_an_allocation_says(ctl: Ctl) -> None:
    """Handle, sequence number and attributes of the holder, also of a live migration's other one."""
    records = reserved()
    key = keys.block_key(parse_cidr("10.0.0.0/29"))
    records[key] = RESERVED.replace('"pod":"cart"}', '"pod":"cart"},"alternateOwnerAttrs":{"vmi-name":"vm"}')
    ctl.load(records)
    assert (
        ctl.ok("ipam show --ip=10.0.0.3")
        == """\
IP 10.0.0.3 is in use
Handle ID: net.c1
Active Owner Attributes:
  namespace: shop
  node: node-b
  pod: cart
Alternate Owner Attributes:
  vmi-name: vm
"""
    )
    assert ctl.ok("ipam show --ip=10.0.0.3 -o jsonpath='{.sequence} {.handle} {.block}'") == "6 net.c1 10.0.0.0/29"


def test_borrowed_reserve_is_no_pod(ctl: Ctl) -> None:
    """A block without affinity is nobody's: all in it is borrowed, reserve or not; cooling is nobody's."""
    records = reserved()
    key = keys.block_key(parse_cidr("10.0.0.0/29"))
    records[key] = RESERVED.replace('"host:node-a"', "null")
    ctl.load(records)
    shown = json.loads(ctl.ok("ipam show --show-borrowed -o json"))["items"]
    assert [(row["address"], row["type"], row["allocated_to"]) for row in shown] == [
        ("10.0.0.0", "reserve", ""),
        ("10.0.0.1", "reserve", ""),
        ("10.0.0.2", "quarantined", ""),
        ("10.0.0.3", "pod", "shop/cart"),
        ("10.0.0.4", "ipipTunnelAddress", ""),
    ]
    assert {(row["owner"], row["block"]) for row in shown} == {("", "10.0.0.0/29")}


def test_an_address_of_which_no_node_is_known(ctl: Ctl) -> None:
    """Old allocations name no node: whether they are borrowed cannot be told."""
    records = reserved()
    key = keys.block_key(parse_cidr("10.0.0.0/29"))
    records[key] = RESERVED.replace('"node":"node-b",', "")
    ctl.load(records)
    done = ctl("ipam show --show-borrowed -o name")
    assert done == (0, "", "ipamctl: of 1 address no node is known: borrowed or not\n")


def test_a_block_that_cannot_be_read(ctl: Ctl) -> None:
    """The rest is shown, with exit code 1 and the record's key; a block that is softly deleted is not there."""
    records = reserved()
    bad = keys.block_key(parse_cidr("10.0.0.8/29"))
    gone = RESERVED.replace('"deleted":false', '"deleted":true')
    ctl.load({**records, keys.block_key(parse_cidr("10.0.0.0/29")): gone, bad: "{}", keys.DAEMONS + "x": "1"})
    done = ctl("ipam show -o custom-columns=USED:.in_use")
    assert (done.code, done.out) == (1, "USED\n0\n")
    assert done.err.startswith("ipamctl: cannot read 2 records, so that what they hold is not counted: ")
    assert f"{bad}: not an allocation block: " in done.err
    assert f"{keys.DAEMONS}x: not the record of a daemon: " in done.err


def test_many_blocks_come_in_pages(ctl: Ctl) -> None:
    """More blocks than are read at once are all counted."""
    pool = {"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/20", "blockSize": 29}}
    blocks = {}
    for number in range(250):
        cidr = f"10.0.{number // 32}.{number % 32 * 8}/29"
        blocks[keys.block_key(parse_cidr(cidr))] = RESERVED.replace("10.0.0.0/29", cidr)
    ctl.load({keys.POOLS + "p": json.dumps(pool), **blocks})
    assert ctl.ok("ipam show -o jsonpath='{.items[0].in_use} {.items[0].in_reserve}'") == "750 750"


def test_one_thing_at_a_time(ctl: Ctl) -> None:
    """The flags that say what to show exclude one another, as calicoctl's do."""
    done = ctl("ipam show --show-blocks --ip 10.0.0.1")
    assert done == (2, "", "ipamctl: cannot show --show-blocks and --ip at once; give one of them\n")
