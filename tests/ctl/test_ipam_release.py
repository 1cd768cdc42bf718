"""``ipam release``: block and handle at once, only what still is as it was seen, never a living pod's unasked."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.records import BlockRecord, attribute
from ipamd.ctl import freeing
from ipamd.ctl.target import Records
from ipamd.store.base import Change, ChangeSet, Outcome
from ipamd.store.embedded import EmbeddedStore
from tests.ctl.places import BehindSocket, Ctl, Done, OnFile, capture
from tests.ctl.test_ipam_check import BLOCK, CONFIRMED, GHOST, KEY, block, counting, sound
from tests.ctl.test_ipam_show import at_the_time

STATIC_KEY = keys.block_key(parse_cidr("192.168.77.0/26"))
CONFIG = b'{"strict_affinity":false,"auto_allocate_blocks":true,"ipCooldownSeconds":60}'


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks wrong is looked at again at once."""
    monkeypatch.setattr("ipamd.ctl.examination.PAUSE", 0.0)


@pytest.fixture
def file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """``ipamctl`` on a file."""
    return Ctl(OnFile(tmp_path / "store.db"), capsys, monkeypatch)


def test_as_calico_does(ctl: Ctl) -> None:
    """The captured steps: released with Calico's words, the second time refused; block and handle are as Calico left them."""
    steps = [step for step in capture("basic")["steps"] if step.get("argv", [])[1:3] == ["ipam", "release"]]
    ctl.load(at_the_time("basic"))
    ctl.place.put(keys.handle_key("k8s-pod-network.static"), counting("192.168.77.0/26", 1))
    for step in steps:
        done = ctl.run(*step["argv"][1:], "--yes")
        assert (done.code, done.out) == (step["exit"], step["stdout"])
        assert step["stderr"].strip() in done.err
    after = ctl.place.all()
    left = json.loads(capture("basic")["etcd"][STATIC_KEY])
    ours = json.loads(after[STATIC_KEY])
    assert {**ours, "sequenceNumber": 0} == {**left, "sequenceNumber": 0}
    assert after.keys() == capture("basic")["etcd"].keys()


def test_asks_first(ctl: Ctl) -> None:
    """Where nobody can be asked, --yes has to be said; nothing is released before."""
    ctl.place.load(sound())
    done = ctl("ipam release --ip 10.0.0.3")
    assert (done.code, done.out) == (2, "")
    assert done.err == "ipamctl: cannot ask whether to release them: standard input is no terminal; say --yes\n"
    assert ctl.place.all() == sound()


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1)])
def test_the_question(tmp_path: Path, answer: bytes, code: int) -> None:
    """On a terminal it says who has the address, and a no changes nothing."""
    place = OnFile(tmp_path / "store.db")
    place.load(sound())
    keyboard, stdin = pty.openpty()
    os.write(keyboard, answer)
    command = (sys.executable, "-m", "ipamd.ctl", *place.flags, "ipam", "release", "--ip", "10.0.0.3")
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False, timeout=60)
    os.close(keyboard)
    os.close(stdin)
    who = "handle net.cart has (namespace shop, node a, pod cart)"
    assert done.stderr.startswith(f"Release 10.0.0.3, which {who}? [y/N]: ")
    assert (done.returncode, "nothing was released" in done.stderr) == (code, code == 1)
    assert (keys.handle_key("net.cart") in place.all()) == (code == 1)


def test_a_node_that_ipamd_serves_is_asked_itself(file: Ctl) -> None:
    """Its daemon knows whether the pod lives; it would write the address again, or another pod would have it as well."""
    file.place.load({**sound(), keys.DAEMONS + "a": b"{}"})
    done = file("ipam release --ip 10.0.0.3 --yes")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "ipamctl: cannot release 10.0.0.3: ipamd serves node a and would write it again if its pod lives; delete the "
        "pod, or release it by the daemon there, or say --force\n"
    )
    assert file.ok("ipam release --ip 10.0.0.3 --yes --force") == "Successfully released IP address 10.0.0.3\n"


LINES = {
    "ipam release": "name an address with --ip, or reports with --from-report",
    "ipam release --ip 10.0.0.1 --from-report r": "name an address with --ip, or reports with --from-report",
    "ipam release --ip bogus": "'bogus' is not an IP address",
    "ipam release --from-report /none --yes": "cannot read the report /none: No such file or directory",
}


@pytest.mark.parametrize("line", LINES)
def test_what_is_no_release(file: Ctl, line: str) -> None:
    """One address or reports, and what can be read."""
    done = file(line)
    assert done.code == 2
    assert LINES[line] in done.err


def test_several_addresses_of_a_handle(file: Ctl) -> None:
    """The handle keeps what else it holds, the block its other addresses; unknown fields survive."""
    pod = {"namespace": "shop", "node": "a", "pod": "cart"}
    image = block({3: ("net.cart", pod), 4: ("net.cart", pod)}).replace(b'"deleted"', b'"later":1,"deleted"')
    file.place.load({**sound(), KEY: image, keys.handle_key("net.cart"): counting(BLOCK, 2)})
    file.ok("ipam release --ip 10.0.0.4 --yes")
    after = file.place.all()
    assert json.loads(after[keys.handle_key("net.cart")])["block"] == {BLOCK: 1}
    record = BlockRecord(after[KEY])
    assert (record.owner(4), record.unallocated[-1]) == (None, 4)
    assert record.owner(3) is not None
    assert b'"later":1' in after[KEY]
    assert file("ipam check").code == 0


def test_a_cooldown(file: Ctl) -> None:
    """With a cooldown set the address cools, and is then nobody's to release."""
    file.place.load({**sound(), keys.CONFIG: CONFIG})
    file.ok("ipam release --ip 10.0.0.3 --yes")
    owner = BlockRecord(file.place.all()[KEY]).owner(3)
    assert owner is not None
    assert owner.released_at
    assert keys.handle_key("net.cart") not in file.place.all()
    assert "10.0.0.3 is not assigned" in file("ipam release --ip 10.0.0.3 --yes").err


def test_the_last_address_of_nobodys_block(file: Ctl) -> None:
    """The block goes with it, as with Calico."""
    file.place.load({**sound(), KEY: block({3: ("net.cart", {})}, affinity=None)})
    file.ok("ipam release --ip 10.0.0.3 --yes")
    assert KEY not in file.place.all()


def test_a_reserve(file: Ctl) -> None:
    """What a node has in reserve it may give to a pod at any moment: refused, unless one insists."""
    handle = "ipamd-reserve-a.1"
    file.place.load({**sound(), KEY: block({3: (handle, {"node": "a"})}), keys.handle_key(handle): counting(BLOCK, 1)})
    done = file("ipam release --ip 10.0.0.3 --yes")
    assert done.code == 1
    assert "cannot release 10.0.0.3: it is in reserve of node a, whose daemon may give it to a pod" in done.err
    assert file("ipam release --ip 10.0.0.3 --yes --force").code == 0


HELD = {"address": "10.0.0.3", "namespace": "shop", "pod": "cart", "container": "c1"}


def test_a_living_pod(daemon: BehindSocket, ipamctl: Callable[..., Done]) -> None:
    """What the daemon knows to be in use is refused with the pod's name, unless one insists."""
    daemon.load(sound())
    daemon.said["/v1/allocations"] = [HELD]
    daemon.said["/v1/tunnel-addresses"] = [{"address": "10.0.0.9", "type": "ipipTunnelAddress"}]
    flags = (*daemon.flags, "ipam", "release", "--yes", "--ip")
    done = ipamctl(*flags, "10.0.0.3")
    told = "pod shop/cart of this node has it, for container c1; delete the pod, or say --force"
    assert done == (1, "", f"ipamctl: cannot release 10.0.0.3: {told}\n")
    daemon.put(KEY, block({3: ("net.cart", {}), 9: ("ipip-tunnel-addr-a", {"node": "a"})}))
    assert "it is this node's ipipTunnelAddress" in ipamctl(*flags, "10.0.0.9").err
    assert ipamctl(*flags, "10.0.0.3", "--force").code == 0


def test_somebody_is_quicker(file: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is another's by the time of the answer is left alone."""
    file.place.load(sound())
    real = freeing.free

    async def free(records: Records, wanted: Any) -> Any:
        (block_record,) = (await records.read([KEY])).records
        record = BlockRecord(block_record.value)
        record.free(3)
        record.sequence += 1
        record.take({3}, attribute("net.other", {"node": "a"}))
        await records.commit([Change(KEY, record.encode(), block_record.revision)])
        return await real(records, wanted)

    monkeypatch.setattr(freeing, "free", free)
    done = file("ipam release --ip 10.0.0.3 --yes")
    assert done.code == 1
    assert "cannot release 10.0.0.3: it was freed and assigned anew since; handle net.other has it now" in done.err


# --- reports ------------------------------------------------------------------------------------------------------

OLD = keys.handle_key("net.old")
OLDER = keys.handle_key("net.older\r1")
STALE = keys.affinity_key("b", parse_cidr(BLOCK))
CLAIMED = keys.affinity_key("b", parse_cidr("10.0.7.0/26"))
LOOSE = keys.block_key(parse_cidr("10.0.8.0/26"))
HALF = keys.block_key(parse_cidr("10.0.9.0/26"))


def littered() -> dict[str, bytes]:
    """Sound records, and all that a report has something released of."""
    cart = {"namespace": "shop", "node": "a", "pod": "cart"}
    owners = {3: ("net.cart", cart), **{number: (f"net.ghost{number}", GHOST) for number in range(4, 60)}}
    return {
        **sound(),
        KEY: block(owners),
        **{keys.handle_key(f"net.ghost{number}"): counting(BLOCK, 1) for number in range(4, 60)},
        OLD: counting(BLOCK, 1),
        OLDER: counting(BLOCK, 1),
        STALE: CONFIRMED,
        CLAIMED: CONFIRMED,
        LOOSE: block({}, "10.0.8.0/26"),
        HALF: block({1: ("", {})}, "10.0.9.0/26", "host:b"),
    }


def report_of(ctl: Ctl, path: Path) -> Path:
    """The report of a check."""
    assert ctl(f"ipam check --report {path}").code == 1
    return path


def test_from_a_report(ctl: Ctl, tmp_path: Path) -> None:
    """All that is leaked goes, with its handles; leftover handles, affinities and blocks too; then all is in order."""
    ctl.place.load(littered())
    report = report_of(ctl, tmp_path / "report.json")
    done = ctl(f"ipam release --from-report {report} --yes")
    assert (done.code, done.out) == (
        0,
        "Released 2 blocks; 0 skipped.\nReleased 56 IPs successfully\n"
        + "".join(f"Released {what}; 0 skipped.\n" for what in ("2 handles", "2 affinities")),
    )
    assert done.err.endswith("  and 46 more\n")
    after = ctl.place.all()
    expected = {*sound(), HALF}
    assert after.keys() == expected
    assert json.loads(after[HALF])["affinity"] is None
    assert ctl("ipam check").code == 0
    again = ctl(f"ipam release --from-report {report} --yes")
    assert "56 addresses marked as leaked in the report had already been cleaned up.\n" in again.out


def test_what_changed_since_the_report(ctl: Ctl, tmp_path: Path) -> None:
    """Each thing that is not as the report says is left alone, with the reason; exit code 1."""
    ctl.place.load(littered())
    report = report_of(ctl, tmp_path / "report.json")
    record = BlockRecord(ctl.place.all()[KEY])
    record.free(4)
    record.take({4}, attribute("net.new", GHOST))
    ctl.place.put(KEY, record.encode())
    ctl.place.put(OLD, counting(BLOCK, 7))
    ctl.place.put(STALE, CONFIRMED + b" ")
    ctl.place.put(LOOSE, block({}, "10.0.8.0/26") + b" ")
    done = ctl(f"ipam release --from-report {report} --yes")
    assert done.code == 1
    assert "\nReleased 55 IPs successfully\nReleased 1 handles; 1 skipped.\n" in done.out
    told = done.err[done.err.index("ipamctl: ") :]
    assert told == (
        "ipamctl: left alone 4 things of the report; make a new one:\n"
        f"  {LOOSE}: it changed since\n  {STALE}: it changed since\n"
        "  10.0.0.4: it was freed and assigned anew since; handle net.new has it now\n"
        "  net.old: it changed since\n"
    )
    assert BlockRecord(ctl.place.all()[KEY]).owner(4) is not None


def test_what_looks_the_same_and_is_not(file: Ctl, tmp_path: Path) -> None:
    """Its handle has an address again under another sequence number; a handle and an affinity are in use, and unchanged."""
    file.place.load(littered())
    report = report_of(file, tmp_path / "report.json")
    record = BlockRecord(file.place.all()[KEY])
    record.free(4)
    record.sequence += 1
    record.take({4}, attribute("net.ghost4", GHOST))
    record.take({60}, attribute("net.old", GHOST))
    record.affinity = "host:b"
    file.place.put(KEY, record.encode())
    done = file(f"ipam release --from-report {report} --yes")
    assert done.code == 1
    assert done.err.endswith(
        "left alone 3 things of the report; make a new one:\n"
        f"  {STALE}: it changed since\n"
        "  10.0.0.4: it was freed and assigned anew since; handle net.ghost4 has it now\n"
        "  net.old: an address is under it now\n"
    )
    assert file.place.all().keys() >= {STALE, OLD, keys.handle_key("net.ghost4")}


MEANWHILE = {
    "a node comes back": (keys.NODES + "gone", "10.0.0.4: node gone is back"),
    "a block is claimed": (keys.affinity_key("a", parse_cidr("10.0.8.0/26")), f"{LOOSE}: it changed at this moment"),
    "a block of a load balancer is claimed": (
        keys.IPAM + "virtual/lb/ipv4/block/10.0.6.0-26",
        f"{keys.block_key(parse_cidr('10.0.6.0/26'))}: it changed at this moment",
    ),
    "a block is made": (keys.block_key(parse_cidr("10.0.7.0/26")), f"{CLAIMED}: it changed at this moment"),
}


@pytest.mark.parametrize("case", MEANWHILE)
def test_at_the_same_moment(file: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """What comes between the last look and the change keeps the change from being made."""
    key, told = MEANWHILE[case]
    virtual = {keys.block_key(parse_cidr("10.0.6.0/26")): block({}, "10.0.6.0/26", "virtual:lb")}
    file.place.load({**littered(), **virtual})
    report = report_of(file, tmp_path / "report.json")
    real, made = EmbeddedStore.commit, list[str]()

    async def commit(store: EmbeddedStore, *alternatives: ChangeSet, **options: Any) -> Outcome:
        asked = {change.key for changes in alternatives for change in changes}
        if key in asked and not made:
            made.append(key)
            await real(store, [Change(key, b"{}", 0)])
        return await real(store, *alternatives, **options)

    monkeypatch.setattr(EmbeddedStore, "commit", commit)
    done = file(f"ipam release --from-report {report} --yes")
    assert made == [key]
    assert done.code == 1
    assert f"\n  {told}\n" in done.err


def test_living_pods_in_a_report(daemon: BehindSocket, ipamctl: Callable[..., Done], tmp_path: Path) -> None:
    """What the daemon knows to be in use is left alone although a report calls it leaked, unless one insists."""
    daemon.load(littered())
    report = tmp_path / "report.json"
    assert ipamctl(*daemon.flags, "ipam", "check", "--report", str(report)).code == 1
    daemon.said["/v1/allocations"] = [{**HELD, "address": "10.0.0.4", "block": BLOCK, "flushed": False}]
    line = (*daemon.flags, "ipam", "release", "--yes", "--from-report", str(report))
    done = ipamctl(*line)
    assert (done.code, "Released 55 IPs successfully\n" in done.out) == (1, True)
    assert "\n  10.0.0.4: pod shop/cart of this node has it, for container c1; delete the pod\n" in done.err
    assert "Released 1 IPs successfully\n" in ipamctl(*line, "--force").out


def test_a_node_that_is_back(file: Ctl, tmp_path: Path) -> None:
    """What was leaked because its node was gone is needed again."""
    file.place.load(littered())
    report = report_of(file, tmp_path / "report.json")
    file.place.put(keys.DAEMONS + "gone", b"{}")
    before = file.place.all()
    done = file(f"ipam release --from-report {report} --yes")
    assert done.code == 1
    assert "\n  10.0.0.4: node gone is back\n" in done.err
    assert file.place.all()[KEY] == before[KEY]


def test_of_several_reports_what_all_have(file: Ctl, tmp_path: Path) -> None:
    """What is leaked by one report alone may be a pod that is being made."""
    file.place.load(littered())
    first = report_of(file, tmp_path / "first.json")
    file.ok("ipam release --ip 10.0.0.4 --yes")
    second = report_of(file, tmp_path / "second.json")
    file.place.load(littered())
    done = file(f"ipam release --from-report {first} --from-report {second} --yes")
    assert "Released 55 IPs successfully\n" in done.out
    assert BlockRecord(file.place.all()[KEY]).owner(4) is not None


def test_a_report_of_calicoctl(file: Ctl, tmp_path: Path) -> None:
    """In its form: what is not in use is released if handle and sequence number are as it says, on whatever node."""
    file.place.load({**sound(), OLD: counting(BLOCK, 1)})
    (three, *_) = BlockRecord(sound()[KEY]).sequences.items()
    allocation = {
        "ip": "10.0.0.3",
        "handle": "net.cart",
        "sequenceNumber": three[1],
        "node": "a",
        "inUse": False,
        "owners": None,
    }
    used = {**allocation, "ip": "10.0.0.9", "inUse": True, "owners": ["Node(a)"]}
    revision = json.loads(file("ipam check -o json").out)["leakedHandles"][0]["Revision"]
    report = {
        "version": "v3.31.0", "clusterGUID": "", "datastoreLocked": True, "clusterInformationRevision": "9", "clusterType": "typha",
        "allocations": {"10.0.0.3": [allocation], "10.0.0.9": [used]},
        "leakedHandles": [{"ID": "net.old", "UID": None, "Revision": revision}],
    }  # fmt: skip
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    done = file(f"ipam release --from-report {path} --yes")
    assert (done.code, done.out) == (0, "Released 1 IPs successfully\nReleased 1 handles; 0 skipped.\n")
    assert keys.handle_key("net.cart") not in file.place.all()
    path.write_text(json.dumps({**report, "allocations": {}, "leakedHandles": None}))
    assert file.ok(f"ipam release --from-report {path}") == "Report didn't contain any leaked IPs to clean up.\n"


def test_the_blocks_of_a_node_that_is_gone(file: Ctl, tmp_path: Path) -> None:
    """A block of a node that neither claims it nor lives goes with its leaked addresses, in one run."""
    ghosts = {number: (f"net.ghost{number}", GHOST) for number in range(3)}
    handles = {keys.handle_key(f"net.ghost{number}"): counting("10.0.5.0/26", 1) for number in range(3)}
    gone = keys.block_key(parse_cidr("10.0.5.0/26"))
    file.place.load({**sound(), gone: block(ghosts, "10.0.5.0/26", "host:gone"), **handles})
    report = report_of(file, tmp_path / "report.json")
    done = file(f"ipam release --from-report {report} --yes")
    assert (done.code, done.out) == (0, "Released 1 blocks; 0 skipped.\nReleased 3 IPs successfully\n")
    assert file.place.all() == sound()


REFUSED = {
    "another cluster": (
        {"clusterGUID": "x"},
        "it is of cluster x, and this is one without a name; make a report of this one",
    ),
    "other records": (
        {"staleAffinities": [{"key": keys.POOLS + "main", "revision": 1}]},
        f"{keys.POOLS}main is no affinity and no block",
    ),
    "no block": ({"unclaimedBlocks": [{"key": OLD, "revision": 1}]}, f"{OLD} is no affinity and no block"),
    "no report": ([], "it is no report of `ipam check`: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reports_that_cannot_be_used(file: Ctl, tmp_path: Path, case: str) -> None:
    """A report of another cluster, or one that names what is not to be released, changes nothing."""
    report, told = REFUSED[case]
    file.place.load(sound())
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    done = file(f"ipam release --from-report {path} --yes --force")
    assert done.code == 1
    assert told in done.err
    assert file.place.all() == sound()
