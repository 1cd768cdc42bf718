"""``get``: every form of output, compared with what Calico's own programs printed for the same records."""

import json
import re

import pytest
import yaml

from tests.ctl.places import Ctl, capture

VERSIONS = re.compile(r'(resourceVersion"?: )"\d+"')


def steps(name: str, *argv: str) -> list[str]:
    """What ``calicoctl`` printed each time it was called so."""
    return [step["stdout"] for step in capture(name)["steps"] if step.get("argv") == ["calicoctl", *argv]]


@pytest.mark.parametrize("name", ["basic", "pools", "validation", "migrate-done"])
def test_the_wide_table_is_calicos(ctl: Ctl, name: str) -> None:
    """``get ippool -o wide`` prints the captured table, byte for byte."""
    history = capture(name)
    ctl.load(history["etcd"])
    assert ctl.ok("get ippool -o wide") == steps(name, "get", "ippool", "-o", "wide")[-1]


def test_the_table_is_calicos(ctl: Ctl) -> None:
    """``get ippool`` prints the captured table, byte for byte."""
    ctl.load(capture("basic")["etcd"])
    assert ctl.ok("get ippool") == steps("basic", "get", "ippool")[0]


def test_yaml_is_calicos(ctl: Ctl) -> None:
    """A list in YAML is the captured one but for the revisions, which are this store's."""
    ctl.load(capture("basic")["etcd"])
    printed = ctl.ok("get ippools -o yaml")
    (captured,) = steps("basic", "get", "ippools", "-o", "yaml")
    assert VERSIONS.sub(r"\1*", printed) == VERSIONS.sub(r"\1*", captured)
    shown = yaml.safe_load(printed)
    versions = [int(each["metadata"]["resourceVersion"]) for each in (*shown["items"], shown)]
    assert sorted(set(versions[:2])) == versions[:2]
    assert versions[2] >= versions[1]


def test_json_is_calicos(ctl: Ctl) -> None:
    """One pool in JSON is the captured one but for its revision, with a newline at its end."""
    ctl.load(capture("basic")["etcd"])
    printed = ctl.ok("get ippool default-ipv4-ippool -o json")
    (captured,) = steps("basic", "get", "ippool", "default-ipv4-ippool", "-o", "json")
    assert VERSIONS.sub(r"\1*", printed) == VERSIONS.sub(r"\1*", captured) + "\n"


def test_several_names_are_shown_in_their_order(ctl: Ctl) -> None:
    """Named records come as they were named, in JSON as an array."""
    ctl.load(capture("pools")["etcd"])
    names = [each["metadata"]["name"] for each in json.loads(ctl.ok("get ippools tunnels manual -o json"))]
    assert names == ["tunnels", "manual"]


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        ("name", "ippool.projectcalico.org/default-ipv4-ippool\nippool.projectcalico.org/default-ipv6-ippool\n"),
        (
            "custom-columns=NAME:.metadata.name,USES:.spec.allowedUses[*],NONE:.spec.nothing",
            """\
NAME                  USES              NONE
default-ipv4-ippool   Workload,Tunnel   <none>
default-ipv6-ippool   Workload,Tunnel   <none>
""",
        ),
        (
            "custom-columns=NAME,VXLANMODE",
            "NAME                  VXLANMODE\ndefault-ipv4-ippool   CrossSubnet\ndefault-ipv6-ippool   Never\n",
        ),
        (
            r'jsonpath={range .items[*]}{.metadata.name}{"\t"}{.spec.blockSize}{"\n"}{end}',
            "default-ipv4-ippool\t26\ndefault-ipv6-ippool\t122\n",
        ),
    ],
)
def test_other_forms(ctl: Ctl, form: str, printed: str) -> None:
    """Names, columns of one's own (by path, or by Calico's titles) and templates, as kubectl prints them."""
    ctl.load(capture("basic")["etcd"])
    done = ctl.run("get", "ippools", "-o", form)
    assert (done.code, done.out, done.err) == (0, printed, "")


def test_nothing_is_an_empty_table(ctl: Ctl) -> None:
    """Without a pool there is the head of the table, and success."""
    assert ctl.ok("get ippool") == "NAME   CIDR   SELECTOR   \n\n"


def test_a_name_that_does_not_exist(ctl: Ctl) -> None:
    """The first name without a record is told, with exit code 1, and nothing is printed."""
    ctl.load(capture("basic")["etcd"])
    done = ctl("get ippool default-ipv4-ippool nope")
    told = "ipamctl: cannot get IPPool nope: it does not exist; `ipamctl get ippool` lists those that do\n"
    assert done == (1, "", told)


def test_a_record_that_is_none(ctl: Ctl) -> None:
    """A record that is not a resource is told with its key; the others are shown all the same."""
    ctl.load(capture("basic")["etcd"])
    whole = ctl.ok("get ippool")
    key = "/calico/resources/v3/projectcalico.org/ippools/odd"
    ctl.place.put(key, b'{"spec":{}}')
    done = ctl("get ippool")
    assert (done.code, done.out) == (1, whole)
    assert done.err.startswith(f"ipamctl: cannot read the record {key}: ")
    assert ctl("get ippool odd") == (1, "", done.err)


def test_many_records_come_in_pages(ctl: Ctl) -> None:
    """More pools than a page, and more bytes, are all shown."""
    pools = {}
    for number in range(620):
        spec = {"cidr": f"10.{number // 256}.{number % 256}.0/24", "note": "x" * 4000}
        pool = {"metadata": {"name": f"p{number:03}"}, "spec": spec}
        pools[f"/calico/resources/v3/projectcalico.org/ippools/p{number:03}"] = json.dumps(pool)
    ctl.load(pools)
    assert len(ctl.ok("get ippools -o name").splitlines()) == 620
    named = [f"p{number:03}" for number in range(619, -1, -1)]
    done = ctl.run("get", "ippools", *named, "-o", "custom-columns=NAME")
    assert done.out.split()[1:] == named
