"""``ipam check``: Calico's own records are in order; each thing that can be wrong is told, with its cure."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.records import BlockRecord, attribute, new_block
from ipamd.ctl import image
from ipamd.store.base import Change
from ipamd.store.sqlite import SqliteFile
from tests.ctl.places import BehindSocket, Ctl, Done, OnFile, capture
from tests.nodes import pool_record

HISTORIES = ("basic", "borrow", "limits", "migrate-done", "migrate-midway", "pools", "strict", "validation")
HEAD = """\
Found {} IPAM blocks.
IPAM blocks record {} allocations.
Found {} IP pools, {} handles and {} block affinities.
"""
FOUND = {
    "basic": (4, 13, 2, 11, 4),
    "borrow": (2, 8, 1, 8, 2),
    "limits": (2, 8, 1, 6, 2),
    "migrate-done": (1, 1, 1, 1, 1),
    "migrate-midway": (2, 2, 1, 2, 1),
    "pools": (8, 9, 6, 9, 8),
    "strict": (2, 4, 1, 4, 2),
    "validation": (0, 0, 9, 0, 0),
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks wrong is looked at again at once."""
    monkeypatch.setattr("ipamd.ctl.examination.PAUSE", 0.0)


@pytest.mark.parametrize("history", HISTORIES)
def test_calicos_own_records_are_in_order(ctl: Ctl, history: str) -> None:
    """After every captured history nothing is wrong: Calico's ``ipam check`` needs Kubernetes to say so, ours does not."""
    ctl.load(capture(history)["etcd"])
    told = ctl.ok("ipam check --show-problem-ips")
    assert told.startswith(HEAD.format(*FOUND[history]))
    assert told.endswith("\n\nCheck complete; found 0 problems.\n")
    asked = "Asked the daemon of node node-a.\n"
    assert (asked in told) == ("--socket" in ctl.place.flags)


BLOCK = "10.0.0.0/26"
KEY = keys.block_key(parse_cidr(BLOCK))
AFFINITY = keys.affinity_key("a", parse_cidr(BLOCK))
CONFIRMED = b'{"state":"confirmed","deleted":false}'


def block(owners: dict[int, tuple[str, dict[str, str]]], cidr: str = BLOCK, affinity: str | None = "host:a") -> bytes:
    """A block whose ordinals are held by handles with attributes."""
    record = new_block(parse_cidr(cidr), affinity or "", 1000)
    record.affinity = affinity
    for ordinal, (handle, secondary) in owners.items():
        record.take({ordinal}, attribute(handle, secondary))
    return record.encode()


def sound() -> dict[str, bytes]:
    """A pool, and a block of node a in which a pod has an address; nodes a and b are registered."""
    pod = {"namespace": "shop", "node": "a", "pod": "cart"}
    return {
        **dict([pool_record("main", "10.0.0.0/16", blockSize=26)]),
        KEY: block({3: ("net.cart", pod)}),
        AFFINITY: CONFIRMED,
        keys.handle_key("net.cart"): counting(BLOCK, 1),
        keys.NODES + "a": b'{"metadata":{"name":"a"}}',
        keys.NODES + "b": b'{"metadata":{"name":"b"}}',
    }


def counting(cidr: str, count: int) -> bytes:
    """A handle's record."""
    return json.dumps({"block": {cidr: count}, "deleted": False}).encode()


GHOST = {"namespace": "shop", "node": "gone", "pod": "ghost"}
WRONG: dict[str, tuple[dict[str, bytes], str, str]] = {
    "damaged-record": ({keys.POOLS + "odd": b"{"}, f"record {keys.POOLS}odd", "it cannot be understood: not an IPPool: "),
    "damaged-record of a block": ({KEY: block({}, "10.0.0.64/26")}, f"record {KEY}", "it cannot be understood: it says that it is block 10.0.0.64/26"),
    "unreadable-selector": (
        dict([pool_record("odd", "10.9.0.0/16", nodeSelector="has(")]),
        "pool odd",
        "its nodeSelector (has() cannot be read: ",
    ),
    "overlapping-pools": (
        dict([pool_record("other", "10.0.128.0/17")]),
        "pool main",
        "its 10.0.0.0/16 overlaps 10.0.128.0/17 of pool other: one address can be given out twice",
    ),
    "overlapping-blocks": (
        {keys.block_key(parse_cidr("10.0.0.0/28")): block({}, "10.0.0.0/28", None)},
        "block 10.0.0.0/28",
        f"it overlaps block {BLOCK}: one address can be given out twice",
    ),
    "foreign-block": (
        {keys.block_key(parse_cidr("10.0.1.0/28")): block({}, "10.0.1.0/28", None)},
        "block 10.0.1.0/28",
        "pool main (10.0.0.0/16) is cut into blocks of /26, and this is none of them",
    ),
    "block-without-pool": (
        {
            keys.block_key(parse_cidr("10.7.0.0/26")): block({}, "10.7.0.0/26"),
            keys.affinity_key("a", parse_cidr("10.7.0.0/26")): CONFIRMED,
        },
        "block 10.7.0.0/26",
        "it is in no pool, and still node a's",
    ),
    "stale-affinity": (
        {keys.affinity_key("b", parse_cidr(BLOCK)): CONFIRMED},
        f"affinity of node b to {BLOCK}",
        "it is confirmed, and the block is node a's",
    ),
    "stale-affinity of no block": (
        {keys.affinity_key("b", parse_cidr("10.0.2.0/26")): b'{"state":"pending","deleted":false}'},
        "affinity of node b to 10.0.2.0/26",
        "it is pending, and there is no such block",
    ),
    "unfinished-claim": (
        {AFFINITY: b'{"state":"pendingDeletion","deleted":false}'},
        f"affinity of node a to {BLOCK}",
        "it is pendingDeletion: a claim or its end was not completed",
    ),
    "unclaimed-block": (
        {AFFINITY: b'{"state":"confirmed","deleted":true}'},
        f"block {BLOCK}",
        "it is node a's, which has no affinity to it and does not use it",
    ),
    "unclaimed-block of a load balancer": (
        {keys.block_key(parse_cidr("10.0.1.0/26")): block({}, "10.0.1.0/26", "virtual:lb")},
        "block 10.0.1.0/26",
        "it is virtual lb's, which has no affinity to it and does not use it",
    ),
    "leaked-handle with a trailer": (
        {keys.handle_key("net.old\r1"): counting(BLOCK, 1)}, "handle net.old", f"no address is under it, and it counts some of {BLOCK}",
    ),
    "leaked-handle": (
        {keys.handle_key("net.old"): counting(BLOCK, 1)},
        "handle net.old",
        f"no address is under it, and it counts some of {BLOCK}",
    ),
    "wrong-count": (
        {keys.handle_key("net.cart"): counting(BLOCK, 2)},
        "handle net.cart",
        f"it counts 2 addresses of block {BLOCK}, which has 1 under it",
    ),
    "missing-handle": (
        {keys.handle_key("net.cart"): b'{"block":{"10.0.0.0/26":1},"deleted":true}'},
        "handle net.cart",
        f"1 addresses of block {BLOCK} are under it, and it has no record",
    ),
    "leaked-address": (
        {KEY: block({3: ("net.cart", {"node": "a"}), 9: ("net.ghost", GHOST)}), keys.handle_key("net.ghost"): counting(BLOCK, 1)},
        "address 10.0.0.9",
        "pod shop/ghost of node gone has it, and there is no node gone any more",
    ),
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """``ipamctl`` on a file: the rules are the same wherever the records are."""
    return Ctl(OnFile(tmp_path / "store.db"), capsys, monkeypatch)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(file: Ctl, case: str) -> None:
    """One finding for one fault: the rule, what it is about, what is wrong and the cure; exit code 1."""
    records, about, what = WRONG[case]
    file.place.load({**sound(), **records})
    done = file("ipam check -o json")
    assert (done.code, done.err) == (1, "")
    (found,) = json.loads(done.out)["findings"]
    assert (found["problem"], found["object"]) == (case.partition(" ")[0], about)
    assert found["what"].startswith(what)
    assert found["cure"]
    told = file("ipam check").out
    assert f"\n{about}: {found['problem']}\n  {found['what']}\n  cure: {found['cure']}\n" in told
    assert told.endswith("\n\nCheck complete; found 1 problem.\n")


def test_sound_records(ctl: Ctl) -> None:
    """The records that the faults are put into are sound."""
    ctl.place.load(sound())
    assert json.loads(ctl.ok("ipam check -o json"))["findings"] == []


SOUND_TOO = {
    "a block of a deleted pool that is no node's": {
        keys.block_key(parse_cidr("10.7.0.0/26")): block({1: ("net.x", {"node": "b"})}, "10.7.0.0/26", None),
        keys.handle_key("net.x"): counting("10.7.0.0/26", 1),
    },
    "what a node without a record has, that a daemon serves": {
        KEY: block({3: ("net.cart", {"node": "c"})}),
        keys.DAEMONS + "c": b"{}",
    },
    "what a node without a record has, that has blocks": {
        KEY: block({3: ("net.cart", {"node": "c"})}),
        keys.affinity_key("c", parse_cidr("10.0.1.0/26")): CONFIRMED,
        keys.block_key(parse_cidr("10.0.1.0/26")): block({}, "10.0.1.0/26", "host:c"),
    },
    "what a node without a record has, where a living node has none either": {
        KEY: block({3: ("net.cart", {"node": "c"})}),
        keys.DAEMONS + "d": b"{}",
    },
    "a block of a load balancer": {
        keys.block_key(parse_cidr("10.0.1.0/26")): block({}, "10.0.1.0/26", "virtual:lb"),
        keys.IPAM + "virtual/lb/ipv4/block/10.0.1.0-26": CONFIRMED,
    },
    "a softly deleted block": {
        keys.block_key(parse_cidr("10.0.0.0/28")): block({}, "10.0.0.0/28").replace(b'"deleted":false', b'"deleted":true')
    },
    "addresses set aside for Windows": {
        KEY: block({0: ("windows-reserved-ipam-handle", {}), 3: ("net.cart", {"node": "a"})})
    },
    "an allocation without a handle": {
        KEY: block({0: ("", {}), 3: ("net.cart", {"node": "a"})}),
    },
    "a handle with a trailer": {KEY: block({3: ("net.cart\r1", {"node": "a"})})},
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND_TOO)
def test_what_only_looks_wrong(file: Ctl, case: str) -> None:
    """What Calico leaves so on purpose is no finding."""
    file.place.load({**sound(), **SOUND_TOO[case]})
    assert json.loads(file.ok("ipam check -o json"))["findings"] == []


def test_what_is_being_written_does_not_count(
    daemon: BehindSocket, ipamctl: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calico's plugin writes a handle before the block: by the second look it is complete, and nothing is told."""
    daemon.load({**sound(), keys.handle_key("net.new"): counting(BLOCK, 1)})
    real, looks = image.look_again, 0

    async def look_again(*args: Any) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            record = BlockRecord(sound()[KEY])
            record.take({5}, attribute("net.new", {"node": "a"}))
            await trio.to_thread.run_sync(daemon.put, KEY, record.encode())
        await real(*args)

    monkeypatch.setattr(image, "look_again", look_again)
    assert ipamctl(*daemon.flags, "ipam", "check", "-o", "name") == (0, "", "")
    assert looks == 1


def test_what_never_stands_still(
    daemon: BehindSocket, ipamctl: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finding that is another at each look does not count, and that there was one is said."""
    daemon.load(sound())
    daemon.put(keys.handle_key("net.cart"), counting(BLOCK, 100))
    real, count = image.look_again, 2

    async def look_again(*args: Any) -> None:
        nonlocal count
        count += 1
        await trio.to_thread.run_sync(daemon.put, keys.handle_key("net.cart"), counting(BLOCK, count))
        await real(*args)

    monkeypatch.setattr(image, "look_again", look_again)
    told = "ipamctl: not counted: 1 problem that came and went while it was looked at\n"
    assert ipamctl(*daemon.flags, "ipam", "check", "-o", "name") == (0, "", told)
    assert count == 7


def test_the_report(ctl: Ctl, tmp_path: Path) -> None:
    """It is written to a file as ``-o json`` prints it: in Calico's fields what is leaked, with sequence number and revision."""
    ctl.place.load({**sound(), **WRONG["leaked-address"][0], **WRONG["leaked-handle"][0], **WRONG["stale-affinity"][0]})
    ctl.load({keys.CLUSTER_INFORMATION: capture("basic")["etcd"][keys.CLUSTER_INFORMATION]})
    file = tmp_path / "report.json"
    assert ctl(f"ipam check --report {file}").code == 1
    report = json.loads(file.read_text())
    again = json.loads(ctl("ipam check -o json").out)
    assert {**again, "at": ""} == {**report, "at": ""}
    information = json.loads(capture("basic")["etcd"][keys.CLUSTER_INFORMATION])
    assert report["clusterGUID"] == information["spec"]["clusterGUID"]
    assert report["allocations"] == {
        "10.0.0.9": [
            {
                "ip": "10.0.0.9", "handle": "net.ghost", "sequenceNumber": 1000, "pod": "ghost", "namespace": "shop",
                "node": "gone", "type": "", "creationTimestamp": "", "inUse": False, "borrowed": True,
            }
        ]
    }  # fmt: skip
    assert [each["ID"] for each in report["leakedHandles"]] == ["net.old"]
    assert [each["key"] for each in report["staleAffinities"]] == [keys.affinity_key("b", parse_cidr(BLOCK))]
    assert report["counts"]["allocations"] == 2
    everything = json.loads(ctl("ipam check --show-all-ips -o json").out)["allocations"]
    assert {ip: each["inUse"] for ip, (each,) in everything.items()} == {"10.0.0.3": True, "10.0.0.9": False}
    shown = ctl("ipam check --show-all-ips").out
    assert "\n  10.0.0.9 leaked; handle=net.ghost, namespace=shop, pod=ghost, node=gone\n" in shown
    assert "\n  10.0.0.3 allocated; handle=net.cart, node=a\n" in shown
    assert ctl(f"ipam check --report {tmp_path}/none/r").code == 1


@pytest.fixture
def local(daemon: BehindSocket) -> BehindSocket:
    """A daemon of node a whose pod has an address, and another in reserve."""
    record = BlockRecord(sound()[KEY])
    record.take({4}, attribute("ipamd-reserve-node-a.0", {"node": "a"}))
    daemon.load({**sound(), KEY: record.encode(), keys.handle_key("ipamd-reserve-node-a.0"): counting(BLOCK, 1)})
    daemon.said["/v1/allocations"] = [held("10.0.0.3")]
    daemon.said["/v1/reserve"] = [{"addresses": ["10.0.0.4"]}]
    return daemon


def held(address: str, **other: object) -> dict[str, object]:
    """An allocation as the daemon shows it."""
    pod = {"namespace": "shop", "pod": "cart", "container": "cart"}
    return {"address": address, "block": BLOCK, "handle": "net.cart", "flushed": True, **pod, **other}


def test_a_daemon_in_order(local: BehindSocket, ipamctl: Callable[..., Done]) -> None:
    """What it says agrees with the store: also what is not flushed yet, and addresses of host-local ranges."""
    ranged = {"address": "10.1.0.3", "namespace": "", "pod": "", "container": "c"}
    local.said["/v1/allocations"] += [held("10.0.0.5", flushed=False), ranged]
    done = ipamctl(*local.flags, "ipam", "check")
    assert (done.code, done.err) == (0, "")


LEAK = {"handle": "net.x", "addresses": ["10.0.0.8"], "why": "it was started before this boot", "seconds_left": 90.0}
SAID: dict[str, tuple[str, Callable[[dict[str, Any]], object], str, str, str]] = {
    "a pod's address is free": (
        "memory-differs", lambda said: said["/v1/allocations"].append(held("10.0.0.7")), "address 10.0.0.7",
        "the daemon says that shop/cart has it, and the store that it is free", "look again in a minute",
    ),
    "a pod's address is another's": (
        "memory-differs", lambda said: said["/v1/allocations"].append(held("10.0.0.3", handle="net.y")), "address 10.0.0.3",
        "the daemon says that shop/cart has it, and the store that it is pod shop/cart of node a's", "look again in a minute",
    ),
    "the reserve is a pod's": (
        "memory-differs", lambda said: said["/v1/reserve"][0]["addresses"].append("10.0.0.3"), "address 10.0.0.3",
        "the daemon says that it is in reserve, and the store that it is pod shop/cart of node a's", "look again in a minute",
    ),
    "memory": (
        "memory", lambda said: said["/v1/check"]["memory"].append("block x: odd"), "node node-a", "block x: odd", "restart ipamd",
    ),
    "two holders": (
        "disagreement", lambda said: said["/v1/check"]["findings"].append("address x has two holders: y; z; delete one"),
        "node node-a", "address x has two holders: y; z", "delete one",
    ),
    "state file": (
        "state-file", lambda said: said["/v1/status"]["state_file"].update(error="cannot write it: full; make room"),
        "state file /s/state", "cannot write it: full", "make room",
    ),
    "set aside": (
        "state-file", lambda said: said["/v1/status"]["state_file"]["set_aside"].append("state.1"), "state file state.1",
        "it was damaged, and set aside", "send it",
    ),
    "store": (
        "store", lambda said: said["/v1/status"]["store"].update(connected=False), "node node-a",
        "the daemon does not reach its store: no answer yet", "see `ipamctl status`",
    ),
    "unflushed": (
        "unflushed", lambda said: said["/v1/status"]["flush"].update(unflushed=3, unflushed_age_seconds=61.0, last_error="no"),
        "node node-a", "what the daemon did has not been written to the store for over 60s: no", "see `ipamctl status`",
    ),
    "leaked": (
        "leaked-container", lambda said: said["/v1/gc"]["leaks"].append(LEAK), "handle net.x",
        "10.0.0.8: the runtime does not know its container, and it was started before this boot",
        "`ipamctl gc --release` frees it now; the daemon does so by itself in 90s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_the_daemon_says(local: BehindSocket, ipamctl: Callable[..., Done], case: str) -> None:
    """Its memory, state file, runtime and store, and whether its pods and reserve are in the store as it says."""
    problem, say, about, what, cure = SAID[case]
    say(local.said)
    done = ipamctl(*local.flags, "ipam", "check", "-o", "json")
    assert (done.code, done.err) == (1, "")
    (found,) = json.loads(done.out)["findings"]
    assert (found["problem"], found["object"]) == (problem, about)
    assert found["what"].startswith(what)
    assert found["cure"].startswith(cure)


def test_a_runtime_that_says_nothing(local: BehindSocket, ipamctl: Callable[..., Done]) -> None:
    """Without the runtime's word nothing is leaked; that it was not asked is said."""
    local.said["/v1/gc"]["problem"] = "its cache is empty"
    done = ipamctl(*local.flags, "ipam", "check")
    assert (done.code, done.err) == (0, "ipamctl: the container runtime was not asked: its cache is empty\n")


def test_forms_of_output(local: BehindSocket, ipamctl: Callable[..., Done]) -> None:
    """Findings as columns and as names; where nobody answers the exit code is 3."""
    local.said["/v1/check"]["memory"].append("block x: odd")
    flags = (*local.flags, "ipam", "check", "-o")
    assert ipamctl(*flags, "name") == (1, "memory/node node-a\n", "")
    assert ipamctl(*flags, "custom-columns=PROBLEM,WHAT") == (1, "PROBLEM   WHAT\nmemory    block x: odd\n", "")
    assert ipamctl(*flags, "jsonpath={.counts.blocks}").out == "1"
    assert ipamctl("--socket", "/none", "ipam", "check").code == 3


def test_a_terminal_sees_what_is_being_done(tmp_path: Path) -> None:
    """On standard error, each in place of the one before, and in the end nothing is left of it; a pipe sees none of it."""
    place = OnFile(tmp_path / "store.db")
    place.load({**sound(), keys.handle_key("net.old"): counting(BLOCK, 1)})
    screen, stderr = pty.openpty()
    command = (sys.executable, "-m", "ipamd.ctl", *place.flags, "ipam", "check", "-o", "name")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, timeout=60)
    os.close(stderr)
    shown = os.read(screen, 4096).decode()
    os.close(screen)
    assert (done.returncode, done.stdout) == (1, "leaked-handle/handle net.old\n")
    assert "\rreading handles ...\x1b[K\rlooking again at 1 problem ...\x1b[K" in shown
    assert shown.endswith("\r\x1b[K")


def test_a_large_cluster_fits_into_memory(tmp_path: Path) -> None:
    """100,000 addresses in 2,000 blocks are checked within 300 MB: a fifth of them, two thousand leaked, within 110."""
    place, records = OnFile(tmp_path / "store.db"), dict([pool_record("main", "10.0.0.0/12", blockSize=26)])
    for number in range(400):
        node, cidr = f"node-{number // 4}", f"10.0.{number // 4}.{number % 4 * 64}/26"
        pods = {
            o: (f"k8s-pod-network.{number:060x}{o:04}", {**GHOST, "node": node, "pod": f"pod-{number}-{o}"})
            for o in range(50)
        }
        records[keys.block_key(parse_cidr(cidr))] = block(pods, cidr, f"host:{node}")
        records.update((keys.handle_key(name), counting(cidr, 1)) for name, _attributes in pods.values())
        if number >= 40:
            records[keys.affinity_key(node, parse_cidr(cidr))] = CONFIRMED
            records[keys.NODES + node] = b"{}"
    file = SqliteFile(tmp_path / "store.db", 1000)
    file.commit([[Change(key, value, 0) for key, value in records.items()]], None)
    file.close()
    # Not ru_maxrss, which begins with that of the process that started it: this one, after however many tests.
    measure = "print(int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) // 1024)"
    script = f"from ipamd.ctl import examination, main; examination.PAUSE = 0\nprint(main.main({[*place.flags]} + ['ipam', 'check']))\n{measure}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    *_told, summary, code, megabytes = done.stdout.splitlines()
    assert (summary, code) == ("Check complete; found 2040 problems.", "1")
    assert int(megabytes) < 110
