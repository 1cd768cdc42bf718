"""What is refused as a pool, and in which words: each captured case has the verdict of Calico's own program."""

import json
from typing import Any

import pytest

from tests.ctl.places import BehindSocket, Ctl, capture

STEPS: list[dict[str, Any]] = [step for step in capture("validation")["steps"] if "argv" in step]
CIDR = "write it as 10.0.0.0/16 or fd00::/64"
SMALL = "give a larger CIDR, or set spec.blockSize"
FIELDS = (
    "cidr, vxlanMode, ipipMode, natOutgoing, disabled, disableBGPExport, blockSize, nodeSelector, namespaceSelector, "
    "allowedUses, assignmentMode"
)
LISTED = "it does not exist; `ipamctl get ippool` lists those that do"
REFUSALS = f"""\
create IPPool over: spec.cidr 10.0.128.0/17 overlaps 10.0.0.0/16 of IPPool base; choose another
create IPPool super: spec.cidr 10.0.0.0/8 overlaps 10.0.0.0/16 of IPPool base; choose another
create IPPool host: spec.cidr 10.1.0.5/16 has address bits after its prefix; write 10.1.0.0/16
create IPPool bad: spec.cidr 'banana' is not a CIDR; {CIDR}
create IPPool empty: spec.cidr is missing; {CIDR}
create IPPool b19: spec.blockSize 19 is not between 20 and 32, as an IPv4 pool's must be
create IPPool b33: spec.blockSize 33 is not between 20 and 32, as an IPv4 pool's must be
create IPPool big: spec.cidr 10.3.0.0/28 is smaller than one block of /26; {SMALL}
create IPPool defsmall: spec.cidr 10.3.1.0/28 is smaller than one block of /26; {SMALL}
create IPPool v6b115: spec.blockSize 115 is not between 116 and 128, as an IPv6 pool's must be
create IPPool v6b129: spec.blockSize 129 is not between 116 and 128, as an IPv6 pool's must be
create IPPool both: spec.ipipMode and spec.vxlanMode are both on; a pool has one encapsulation: turn one off
create IPPool ipip6: spec.ipipMode is for IPv4 only, IPIP cannot carry IPv6; leave it out, or use vxlanMode
create IPPool sel: spec.nodeSelector (rack = 1) cannot be read: expected ==, !=, in, not in, contains, starts with or ends with at character 6, not "= 1"
create IPPool selg: spec.nodeSelector has global(), which selects no node; write all()
create IPPool linklocal: spec.cidr 169.254.1.0/24 overlaps 169.254.0.0/16, the link-local addresses; choose another
create IPPool ll6: spec.cidr fe80::/64 overlaps fe80::/10, the link-local addresses; choose another
create IPPool use: spec.allowedUses has 'Banana', which is none of Workload, Tunnel, LoadBalancer
create IPPool lbmix: spec.allowedUses has LoadBalancer beside other uses; make a pool for each
create IPPool lbsel: spec.nodeSelector must be all() with the use LoadBalancer, whose addresses are no node's; leave it out
create IPPool mode: spec.assignmentMode 'Sometimes' is none of Automatic, Manual
create IPPool ipipmode: spec.ipipMode 'Maybe' is none of Never, Always, CrossSubnet
create IPPool Upper_Case: metadata.name 'Upper_Case' may have lower case letters, digits, '-' and '.' only, and begins and ends with a letter or digit
create IPPool unknown: spec.bananas is not known; the fields are {FIELDS}
create IPPool nssel: spec.namespaceSelector is for pods only, and spec.allowedUses has Tunnel (also when it is left out); set allowedUses: [Workload]
create IPPool {"x" * 73}: metadata.name is 1 characters too long; 253 are the most
create IPPool base: it exists already; change it with apply or replace
apply IPPool base: spec.cidr cannot be changed from 10.0.0.0/16 to 10.30.0.0/16; make another pool and move to it
apply IPPool base: spec.blockSize cannot be changed from 26 to 27; move the pods to another pool, delete this one and create it anew
patch IPPool nope: {LISTED}
patch IPPool base: the patch is not JSON, at character 1 ('nonsense'): expecting value; write it as '{{"spec": {{"disabled": true}}}}'
patch IPPool base: spec.blockSize cannot be changed from 26 to 24; move the pods to another pool, delete this one and create it anew
delete IPPool nope: {LISTED}
read standard input: an IPPool has no apiVersion; write projectcalico.org/v3
read standard input: it has no resource; give YAML or JSON of at least one
read /nonexistent: no such file or directory; name a file, a folder, or - for standard input
""".splitlines()
"""What we say where Calico's program refuses, in the order of the capture."""


def test_the_captured_verdicts(ctl: Ctl) -> None:
    """The captured commands one after the other: the same accepted with the same output, the same refused, in words."""
    refusals = iter(REFUSALS)
    for step in STEPS:
        done = ctl.run(*step["argv"][1:], stdin=step["stdin"] or "")
        expected = f"ipamctl: cannot {next(refusals)}\n" if step["exit"] else ""
        assert done == (step["exit"], step["stdout"], expected)
    assert list(refusals) == []


def test_the_records_are_calicos(ctl: Ctl) -> None:
    """What the captured commands leave in the store is what Calico's program left, but for ids and times."""
    for step in STEPS:
        ctl.run(*step["argv"][1:], stdin=step["stdin"] or "")
    stored = {key: json.loads(value) for key, value in ctl.place.all().items()}
    captured = {key: json.loads(value) for key, value in capture("validation")["etcd"].items() if "/ippools/" in key}
    for pools in (stored, captured):
        for pool in pools.values():
            assert [*pool["metadata"]] == ["name", "uid", "creationTimestamp"]
            assert len(pool["metadata"].pop("uid")) == 36
            assert len(pool["metadata"].pop("creationTimestamp")) == 20
    assert {key: json.dumps(pool) for key, pool in stored.items()} == {
        key: json.dumps(pool) for key, pool in captured.items()
    }


def pool(spec: object = None, **fields: object) -> str:
    """A manifest of a pool ``p``."""
    given = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"}, "spec": spec}
    return json.dumps({**given, **fields})


OTHERS = {
    pool(
        {"cidr": "10.0.0.0/16", "blocksize": 26}
    ): "apply IPPool p: spec.blocksize is not known; did you mean blockSize?",
    pool({"cidr": "10.0.0.0/16", "disabled": "yes"}): 'apply IPPool p: spec.disabled must be true or false, not "yes"',
    pool({"cidr": "10.0.0.0/16", "blockSize": "26"}): 'apply IPPool p: spec.blockSize must be a whole number, not "26"',
    pool({"cidr": "10.0.0.0/16", "allowedUses": "Tunnel"}): (
        'apply IPPool p: spec.allowedUses must be a list of texts (write numbers in quotes), not "Tunnel"'
    ),
    pool([]): "apply IPPool p: spec must be an object, not []",
    pool(): f"apply IPPool p: spec.cidr is missing; {CIDR}",
    pool({"cidr": "10.0.0.0"}): f"apply IPPool p: spec.cidr '10.0.0.0' is not a CIDR; {CIDR}",
    pool({"cidr": "10.0.0.0/16"}, metadata={}): "apply an IPPool: metadata.name is missing",
    pool(
        {"cidr": "10.0.0.0/16"}, metadata=7
    ): "apply an IPPool:\n  metadata must be an object, not 7\n  metadata.name is",
    pool({"cidr": "10.0.0.0/16"}, metadata={"name": "p", "labels": {"a": 1}}): (
        'apply IPPool p: metadata.labels must be names with texts (write numbers in quotes), not {"a": 1}'
    ),
    pool({"cidr": "10.0.0.0/16"}, spce={}): "apply IPPool p: spce is not known; did you mean spec?",
    pool({"cidr": "10.0.0.0/16"}, apiVersion="v1"): (
        'read standard input: an IPPool has the apiVersion "v1"; write projectcalico.org/v3'
    ),
    pool(
        {}, kind="IPPol"
    ): 'read standard input: there is no kind "IPPol"; did you mean IPPool?; the kinds are IPPool, IPReservation',
    '{"metadata": {}}': "read standard input: a resource has no kind; the kinds are IPPool, IPReservation, IPAMC",
    "just words": 'read standard input: "just words" is no resource; write its apiVersion, kind, ...',
    "a: [": "read standard input: line 1, column 5: expected the node content, but found '<stream end>'; correct the file",
    pool(
        {"cidr": "10.0.0.0/16", "nodeSelector": "a == 'global()' && global()"}
    ): "apply IPPool p: spec.nodeSelector has",
    pool({"cidr": "10.0.0.0/8", "blockSize": 12, "ipipMode": "x"}): (
        "apply IPPool p:\n  spec.ipipMode 'x' is none of Never, Always, CrossSubnet\n"
        "  spec.blockSize 12 is not between 20 and 32, as an IPv4 pool's must be"
    ),
}


@pytest.mark.parametrize("manifest", OTHERS)
def test_what_else_is_refused(ipamctl: Any, daemon: BehindSocket, manifest: str) -> None:
    """Fields that are not known (with the nearest one that is), of another type, missing; all that is wrong at once."""
    done = ipamctl(*daemon.flags, "apply", "-f", "-", stdin=manifest)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"ipamctl: cannot {OTHERS[manifest]}")
    assert not daemon.all()


def test_a_selector_may_speak_of_global(ctl: Ctl) -> None:
    """Only the function is refused, not a text that looks like it."""
    ctl.ok("apply -f -", pool({"cidr": "10.0.0.0/16", "nodeSelector": "a == 'global()'"}))


def test_blocks_of_another_size(ctl: Ctl) -> None:
    """A pool cannot be made over blocks of an earlier one with another size, nor over a part of one."""
    ctl.load(capture("migrate-midway")["etcd"])
    again = {"cidr": "192.168.0.0/16", "blockSize": 27}
    done = ctl("apply -f -", pool(again))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("ipamctl: cannot apply IPPool p: spec.blockSize is 27 and block 192.168.")
    assert done.err.endswith(
        "/26 of an earlier pool still has addresses in it; use 26, or wait until its pods are gone\n"
    )
    ctl.ok("apply -f -", pool({**again, "blockSize": 26}))
