"""``ipam split``: one pool becomes several, in one transaction, and blocks lie in one of them each."""

import json

import pytest

from ipamd.core import keys
from ipamd.ctl import splitting
from tests.ctl.places import Ctl, capture
from tests.ctl.test_ipam_check import sound
from tests.nodes import pool_record

SPLIT = """\
IP Pool main was successfully split into 4 smaller pools.
Created split-main-0 with CIDR 10.0.0.0/18.
Created split-main-1 with CIDR 10.0.64.0/18.
Created split-main-2 with CIDR 10.0.128.0/18.
Created split-main-3 with CIDR 10.0.192.0/18.
"""
NAMES = "ipamctl: pods and namespaces that name main have to name the new pools\n"


def test_a_pool_becomes_four(ctl: Ctl) -> None:
    """Each has the specification of the old one, a uid of its own and a quarter of the addresses; all else is untouched."""
    ctl.place.load(sound())
    before = json.loads(sound()[keys.POOLS + "main"])
    assert ctl("ipam split 4 --cidr 10.0.0.0/16") == (0, SPLIT, NAMES)
    after = ctl.place.all()
    pools = {
        key.removeprefix(keys.POOLS): json.loads(value) for key, value in after.items() if key.startswith(keys.POOLS)
    }
    assert list(pools) == [f"split-main-{number}" for number in range(4)]
    assert {key for key in after if key not in sound()} == {keys.POOLS + name for name in pools}
    for number, (name, pool) in enumerate(pools.items()):
        assert pool["spec"] == {**before["spec"], "cidr": f"10.0.{64 * number}.0/18"}
        assert pool["metadata"].keys() == {"name", "uid", "creationTimestamp"}
        assert pool["metadata"]["name"] == name
    assert len({pool["metadata"]["uid"] for pool in pools.values()}) == 4
    assert ctl("ipam check").code == 0


def test_ipv6_and_by_name(ctl: Ctl) -> None:
    """Calico's own pool, named by its name; labels, annotations and what ipamd does not know stay."""
    key, value = pool_record("six", "fd00::/64", blockSize=122, later=1)
    record = json.loads(value)
    record["metadata"]["labels"] = {"a": "b"}
    ctl.place.put(key, json.dumps(record).encode())
    assert ctl("ipam split 2 --name six").code == 0
    after = ctl.place.all()
    second = json.loads(after[keys.POOLS + "split-six-1"])
    assert (second["spec"]["cidr"], second["spec"]["later"]) == ("fd00::8000:0:0:0/65", 1)
    assert second["metadata"]["labels"] == {"a": "b"}


def test_a_dry_run(ctl: Ctl) -> None:
    """It says what would be, and changes nothing."""
    ctl.load(capture("basic")["etcd"])
    before = ctl.place.all()
    assert ctl.ok("ipam split 2 --name default-ipv4-ippool --dry-run") == (
        "IP Pool default-ipv4-ippool would be split into 2 smaller pools.\n"
        "Would create split-default-ipv4-ippool-0 with CIDR 192.168.0.0/17.\n"
        "Would create split-default-ipv4-ippool-1 with CIDR 192.168.128.0/17.\n"
    )
    assert ctl.place.all() == before


REFUSED = {
    "3 --name main": "cannot split IPPool main into 3: the number is no power of 2; give 2, 4, 8, ...",
    "1 --name main": "cannot split IPPool main into 1: the number is no power of 2; give 2, 4, 8, ...",
    "128 --name main": "cannot split IPPool main into 128: 64 are the most at once; split the parts again",
    "8 --name small": (
        "cannot split IPPool small into 8: 10.9.0.0/24 is not large enough, each part would be smaller than one of its blocks "
        "(/26); 4 are the most"
    ),
    "2 --cidr 10.5.0.0/16": "cannot split 10.5.0.0/16: no pool has this CIDR; `ipamctl get ippool` lists the pools",
    "2 --name none": "cannot get IPPool none: it does not exist; `ipamctl get ippool` lists those that do",
    "2 --name odd": (
        "cannot split IPPool odd into 2: not an IPPool: 'nowhere' is not a CIDR: it has no prefix length; correct its record"
    ),
    "4 --name plain": (
        "cannot split IPPool plain into 4: 10.6.0.0/25 is not large enough, each part would be smaller than one of its blocks "
        "(/26); 2 are the most"
    ),
    "2 --name taken": "cannot split IPPool taken: split-taken-0 exists already; delete it, or split that one",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_split(ctl: Ctl, line: str) -> None:
    """Exit code 1 with the reason, and nothing is changed."""
    pools = dict([pool_record("small", "10.9.0.0/24", blockSize=26), pool_record("taken", "10.8.0.0/24", blockSize=26)])
    pools |= dict([pool_record("plain", "10.6.0.0/25"), pool_record("odd", "nowhere")])
    ctl.place.load({**sound(), **pools, **dict([pool_record("split-taken-0", "10.7.0.0/24", blockSize=26)])})
    before = ctl.place.all()
    assert ctl(f"ipam split {line}") == (1, "", f"ipamctl: {REFUSED[line]}\n")
    assert ctl.place.all() == before


def test_which_pool(ctl: Ctl) -> None:
    """It is named once."""
    for flags in ("", "--cidr 10.0.0.0/16 --name main"):
        assert ctl(f"ipam split 2 {flags}").code == 2


def test_a_long_name(ctl: Ctl) -> None:
    """The names of the parts are cut to what Kubernetes takes."""
    ctl.place.load(dict([pool_record("n" * 253, "10.0.0.0/16", blockSize=26)]))
    assert ctl(f"ipam split 64 --name {'n' * 253}").code == 0
    names = [key.removeprefix(keys.POOLS) for key in ctl.place.all()]
    assert len(names) == splitting.MOST
    assert max(map(len, names)) == 253
