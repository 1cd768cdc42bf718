"""Changes of records: several at once, what is kept, what is told, conflicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipamd.ctl import changes
from ipamd.ctl.changes import merged
from tests.ctl.places import Ctl, capture

POOLS = "/calico/resources/v3/projectcalico.org/ippools/"
TWO = """\
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: a
spec:
  cidr: 10.1.0.0/16
---
# nothing here
---
apiVersion: projectcalico.org/v3
kind: IPPoolList
items:
- metadata: {name: b}
  spec: {cidr: "10.2.0.0/16", natOutgoing: true}
"""


def manifest(name: str = "a", cidr: str = "10.1.0.0/16", metadata: Any = None, **spec: object) -> str:
    """A pool, as JSON."""
    given = {"name": name, **(metadata or {})}
    pool = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": given, "spec": {"cidr": cidr, **spec}}
    return json.dumps(pool)


def stored(ctl: Ctl, name: str = "a") -> Any:
    """The record of a pool."""
    return json.loads(ctl.place.all()[POOLS + name])


def test_several_documents(ctl: Ctl) -> None:
    """Documents, lists of a kind and the custom resource's version, from standard input."""
    assert ctl.ok("apply -f -", TWO) == "Successfully applied 2 'IPPool' resource(s)\n"
    assert ctl.ok("get ippool -o custom-columns=NAME,CIDR,NAT").split()[3:] == [
        "a", "10.1.0.0/16", "false", "b", "10.2.0.0/16", "true",
    ]  # fmt: skip
    assert stored(ctl)["apiVersion"] == "projectcalico.org/v3"


def test_files_and_folders(ctl: Ctl, tmp_path: Path) -> None:
    """Files by name, a folder's in order; an array of resources, JSON with tabs."""
    folder = tmp_path / "pools"
    folder.mkdir()
    (folder / "1.yaml").write_text(TWO)
    (folder / "2.json").write_text(f"[\n\t{manifest('c', '10.3.0.0/16')},\n\t{manifest('d', '10.4.0.0/16')}]")
    (folder / "notes.txt").write_text("not a resource")
    other = tmp_path / "other.yml"
    other.write_text(manifest("e", "10.5.0.0/16"))
    assert ctl.run("create", "-f", str(folder), "-f", str(other)).out == "Successfully created 5 'IPPool' resource(s)\n"
    assert ctl.run("delete", "-f", str(folder)).out == "Successfully deleted 4 'IPPool' resource(s)\n"
    assert ctl.ok("get ippool -o name") == "ippool.projectcalico.org/e\n"


def test_nothing_is_written_if_one_is_wrong(ctl: Ctl) -> None:
    """All resources of the files are looked at before the first is written."""
    done = ctl("apply -f -", f"{manifest()}\n---\n{manifest('b', '10.2.0.0/33')}")
    assert (done.code, ctl.place.all()) == (1, {})


def test_how_far_it_came(ctl: Ctl) -> None:
    """What is wrong only beside the others of the file is told with how many were written before."""
    three = "\n---\n".join((manifest("a"), manifest("b", "10.1.2.0/24"), manifest("c", "10.3.0.0/16")))
    done = ctl("create -f -", three)
    told = "spec.cidr 10.1.2.0/24 overlaps 10.1.0.0/16 of IPPool a; choose another\n  1 of 3 resources created before, 1 not tried"
    assert done == (1, "", f"ipamctl: cannot create IPPool b: {told}\n")
    assert [*ctl.place.all()] == [POOLS + "a"]


def test_what_is_shown_can_be_applied(ctl: Ctl) -> None:
    """YAML and JSON of every captured pool, applied again, change nothing at all, not even the version."""
    for name in ("basic", "pools", "validation", "migrate-done"):
        ctl.load(capture(name)["etcd"])
    before = ctl.place.all()
    for form in ("yaml", "json"):
        shown = ctl.ok(f"get ippools -o {form}")
        assert "applied" in ctl.ok("apply -f -", shown)
        assert ctl.ok(f"get ippools -o {form}") == shown
        assert ctl.ok("diff -f -", shown) == ""
    assert ctl.place.all() == before


def test_who_a_record_is_stays(ctl: Ctl) -> None:
    """The uid and the creation time stay whatever is applied, the version moves, labels stay unless others are given."""
    ctl.ok("apply -f -", manifest(metadata={"labels": {"b": "2", "a": "1"}, "annotations": {"x": "y"}}))
    first = json.loads(ctl.ok("get ippool a -o json"))["metadata"]
    assert [*first] == ["name", "uid", "resourceVersion", "creationTimestamp", "labels", "annotations"]
    ctl.ok(
        "apply -f -", manifest(metadata={"uid": "other", "creationTimestamp": "2001-01-01T00:00:00Z"}, disabled=True)
    )
    second = json.loads(ctl.ok("get ippool a -o json"))["metadata"]
    assert int(second.pop("resourceVersion")) > int(first.pop("resourceVersion"))
    assert second == first
    assert "resourceVersion" not in stored(ctl)["metadata"]
    ctl.ok("apply -f -", manifest(metadata={"labels": {}}))
    assert "labels" not in stored(ctl)["metadata"]


def test_what_is_not_given_is_the_default_again(ctl: Ctl) -> None:
    """An applied specification replaces the stored one, but for the block size, which cannot change."""
    ctl.ok("apply -f -", manifest(disabled=True, blockSize=28, vxlanMode="Always"))
    ctl.ok("apply -f -", manifest())
    spec = stored(ctl)["spec"]
    assert (spec["vxlanMode"], spec["blockSize"], "disabled" in spec) == ("Never", 28, False)


def test_unknown_fields_of_a_record_survive(ctl: Ctl) -> None:
    """What a newer program wrote into a record stays, and may be in what is applied, because ``get`` shows it."""
    ctl.ok("apply -f -", manifest())
    pool = stored(ctl)
    pool["metadata"]["newer"] = {"x": 1}
    pool["spec"]["newest"] = [1]
    ctl.place.put(POOLS + "a", json.dumps(pool).encode())
    ctl.ok('patch ippool a -p \'{"spec":{"disabled":true}}\'')
    ctl.ok("apply -f -", manifest(disabled=True, natOutgoing=True))
    ctl.ok("apply -f -", ctl.ok("get ippool a -o yaml"))
    changed = stored(ctl)
    assert (changed["metadata"]["newer"], changed["spec"]["newest"]) == ({"x": 1}, [1])
    assert (changed["spec"]["disabled"], changed["spec"]["natOutgoing"]) == (True, True)


def test_replace_wants_a_record(ctl: Ctl) -> None:
    """``replace`` of what is not there is refused."""
    told = "cannot replace IPPool a: it does not exist; `ipamctl get ippool` lists those that do"
    assert ctl("replace -f -", manifest()) == (1, "", f"ipamctl: {told}\n")
    ctl.ok("apply -f -", manifest())
    assert ctl.ok("replace -f -", manifest(disabled=True)) == "Successfully replaced 1 'IPPool' resource(s)\n"


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ('{"spec":{"disabled":true}}', {"disabled": True, "natOutgoing": True}),
        ('{"spec":{"natOutgoing":null}}', {}),
        ('{"spec":{"allowedUses":["Workload"]}}', {"natOutgoing": True, "allowedUses": ["Workload"]}),
    ],
)
def test_patch(ctl: Ctl, patch: str, expected: dict[str, object]) -> None:
    """A patch sets fields, removes those with null, replaces lists; what it does not name stays."""
    ctl.ok("apply -f -", manifest(natOutgoing=True))
    assert ctl.run("patch", "ippool", "a", "-p", patch).out == "Successfully patched 1 'IPPool' resource\n"
    spec = stored(ctl)["spec"]
    found = {name: spec[name] for name in ("disabled", "natOutgoing") if name in spec}
    uses = spec["allowedUses"]
    assert {**found, **({"allowedUses": uses} if "allowedUses" in expected else {})} == expected


PATCHES = {
    '{"spec":': "the patch is not JSON, at its end: expecting value; write it as",
    '{"spec":{disabled:true}}': "the patch is not JSON, at character 10 ('disabled:true}}'): expecting property name",
    "[]": "the patch is no object; write it as",
    '{"metadata":null}': "its name cannot be changed; create another",
    '{"metadata":{"name":"b"}}': "its name cannot be changed; create another",
    '{"spec":{"disabledd":true}}': "spec.disabledd is not known; did you mean disabled?",
}


@pytest.mark.parametrize("patch", PATCHES)
def test_what_is_no_patch(ctl: Ctl, patch: str) -> None:
    """A patch that cannot be read is told with the place, one that leads to a bad record as that record is."""
    ctl.ok("apply -f -", manifest())
    before = ctl.place.all()
    done = ctl.run("patch", "ippool", "a", "-p", patch)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"ipamctl: cannot patch IPPool a: {PATCHES[patch]}")
    assert ctl.place.all() == before


def test_labels_are_patched(ctl: Ctl) -> None:
    """Labels come and go by a patch, each by itself."""
    ctl.ok("apply -f -", manifest(metadata={"labels": {"a": "1"}}))
    ctl.ok("""patch ippool a -p '{"metadata":{"labels":{"b":"2"}}}'""")
    assert stored(ctl)["metadata"]["labels"] == {"a": "1", "b": "2"}
    ctl.ok("""patch ippool a -p '{"metadata":{"labels":null}}'""")
    assert "labels" not in stored(ctl)["metadata"]


def test_the_version_that_a_file_was_made_of(ctl: Ctl) -> None:
    """A file that says of which version it is, is refused when the record has changed since, with what differs."""
    ctl.ok("apply -f -", manifest())
    old = yaml.safe_load(ctl.ok("get ippool a -o yaml"))
    ctl.ok("apply -f -", manifest(disabled=True))
    new = json.loads(ctl.ok("get ippool a -o json"))["metadata"]["resourceVersion"]
    done = ctl("apply -f -", yaml.safe_dump(old))
    version = old["metadata"].pop("resourceVersion")
    assert done.code == 1
    assert done.err == (
        f"ipamctl: cannot apply IPPool a: it is of version {version}, and the record is at {new} meanwhile "
        "(spec.disabled: nothing -> true); begin with `ipamctl get ippool a -o yaml`, "
        "or leave out metadata.resourceVersion to overwrite\n"
    )
    ctl.ok("apply -f -", yaml.safe_dump(old))
    ctl.ok("delete ippool a")
    old["metadata"]["resourceVersion"] = version
    done = ctl("apply -f -", yaml.safe_dump(old))
    assert "the record was deleted meanwhile; leave out metadata.resourceVersion to create it anew" in done.err


@pytest.mark.parametrize("did", ["changed", "deleted", "created"])
def test_two_at_once(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, did: str) -> None:
    """Of two who change a record at the same moment the second loses nothing of the first's: it is told."""
    if did != "created":
        ctl.ok("apply -f -", manifest())
    commit = changes.commit

    async def beaten(verb: str, records: Any, wanted: Any) -> None:
        other = {"metadata": {"name": "a"}, "spec": {"cidr": "10.1.0.0/16", "disabled": True}}
        if did == "deleted":
            await changes.delete(records, wanted.kind, "a", dry_run=False)
        else:
            now = (await records.read([POOLS + "a"])).records
            known = json.loads(now[0].value) if now else other
            value = json.dumps({**known, "spec": {**known["spec"], "disabled": True}}).encode()
            await records.commit([changes.Change(POOLS + "a", value, now[0].revision if now else 0)])
        await commit(verb, records, wanted)

    monkeypatch.setattr("ipamd.ctl.changes.commit", beaten)
    done = ctl("apply -f -", manifest(natOutgoing=True))
    what = {"changed": "changed it (spec.disabled: nothing -> true)", "deleted": "deleted it", "created": "created it"}
    told = f"somebody else {what[did]} at this moment; look with `ipamctl get ippool -o yaml`, and try again"
    assert done == (1, "", f"ipamctl: cannot apply IPPool a: {told}\n")
    assert (POOLS + "a" in ctl.place.all()) == (did != "deleted")


@pytest.mark.parametrize(
    "verb", ["apply -f -", "create -f -", 'patch ippool b -p \'{"spec":{"disabled":true}}\'', "delete ippool b"]
)
def test_a_dry_run(ctl: Ctl, verb: str) -> None:
    """``--dry-run`` says what would be done, refuses what would be refused, and changes nothing."""
    ctl.ok("apply -f -", manifest("b", "10.2.0.0/16"))
    before = ctl.place.all()
    assert ctl.ok(f"{verb} --dry-run", manifest()).endswith(" (dry run: nothing was changed)\n")
    assert ctl.place.all() == before
    assert ctl("apply --dry-run -f -", manifest("c", "10.2.0.0/24")).code == 1


def test_diff(ctl: Ctl) -> None:
    """``diff`` shows what ``apply`` would change, with exit code 1 if there is anything."""
    ctl.ok("apply -f -", manifest())
    done = ctl("diff -f -", f"{manifest(disabled=True)}\n---\n{manifest('b', '10.2.0.0/16')}")
    assert (done.code, done.err) == (1, "")
    assert "--- stored ippool/a\n+++ standard input\n" in done.out
    assert "   cidr: 10.1.0.0/16\n+  disabled: true\n" in done.out
    assert "+  cidr: 10.2.0.0/16\n" in done.out
    assert ctl.ok("diff -f -", manifest()) == ""


def test_deletes_need_to_be_named(ctl: Ctl) -> None:
    """``delete`` without a name is a mistake on the command line, not a deletion of all."""
    assert ctl("delete ippool").code == 2
    assert ctl("delete").code == 2
    assert ctl("delete ippool a -f x").code == 2


def test_deleting_a_pool(ctl: Ctl) -> None:
    """Its empty blocks go with their affinities, one with an address stays without a node; the rest is as it was."""
    history = capture("pools")["etcd"]
    ctl.load(history)
    untouched = {key: value.encode() for key, value in history.items() if "10.10.0." not in key and "rack-0" not in key}
    empty = json.loads(history["/calico/ipam/v2/assignment/ipv4/block/10.10.0.144-28"])
    empty |= {"cidr": "10.10.0.32/28", "allocations": [None] * 16, "unallocated": [*range(16)], "attributes": []}
    ctl.place.put("/calico/ipam/v2/assignment/ipv4/block/10.10.0.32-28", json.dumps(empty).encode())
    ctl.place.put("/calico/ipam/v2/host/node-b/ipv4/block/10.10.0.32-28", b'{"state":"confirmed","deleted":false}')
    used = "4 addresses are still in use, in 10.10.0.0/28, 10.10.0.144/28, 10.10.0.160/28; pods keep them until they are deleted"
    done = ctl("delete ippool rack-0 --dry-run")
    assert done == (
        0,
        "Successfully deleted 1 'IPPool' resource(s) (dry run: nothing was changed)\n",
        f"IPPool rack-0: {used}\n",
    )
    done = ctl("delete ippool rack-0")
    assert done == (0, "Successfully deleted 1 'IPPool' resource(s)\n", f"IPPool rack-0: {used}\n")
    left = ctl.place.all()
    changed = {key: json.loads(left.pop(key)) for key in [*left] if key not in untouched and "block/10.10.0." in key}
    assert sorted(key.rpartition("/")[2] for key in changed) == ["10.10.0.0-28", "10.10.0.144-28", "10.10.0.160-28"]
    for key, block in changed.items():
        before = json.loads(history[key])
        del before["affinity_claim_time"]
        assert block == {**before, "affinity": None, "sequenceNumber": before["sequenceNumber"] + 1}
    assert {key: value for key, value in left.items() if "handle/" not in key} == {
        key: value for key, value in untouched.items() if "handle/" not in key
    }


@pytest.mark.parametrize(
    "value", [b"{", b'{"spec":{}}', b'{"metadata":{"name":"odd"},"spec":{}}', b'{"metadata":{"name":"odd"},"spec":"x"}']
)
def test_deleting_what_cannot_be_read(ctl: Ctl, value: bytes) -> None:
    """A record that is no pool can be deleted as one, and nothing else goes with it."""
    ctl.load(capture("pools")["etcd"])
    before = ctl.place.all()
    ctl.place.put("/calico/resources/v3/projectcalico.org/ippools/odd", value)
    done = ctl("delete ippool odd")
    assert (done.code, done.out) == (0, "Successfully deleted 1 'IPPool' resource(s)\n")
    assert done.err.startswith("IPPool odd was no record of ours (cannot read the record /calico/")
    assert ctl.place.all() == before


def test_a_daemons_reserve_is_nobodys(ctl: Ctl) -> None:
    """Addresses in reserve, or cooling after their release, are not counted as in use."""
    ctl.load(capture("pools")["etcd"])
    key = "/calico/ipam/v2/assignment/ipv4/block/10.10.1.144-28"
    block = json.loads(ctl.place.all()[key])
    block["allocations"][1:3] = [1, 2]
    block["unallocated"] = block["unallocated"][2:]
    block["attributes"] += [{"handle_id": "ipamd-reserve-node-b.xyz"}, {"releasedAt": "2026-11-20T23:47:55Z"}]
    ctl.place.put(key, json.dumps(block).encode())
    used = "1 address is still in use, in 10.10.1.144/28; pods keep them until they are deleted"
    assert ctl("delete ippool rack-1").err == f"IPPool rack-1: {used}\n"


def test_a_merge_patch() -> None:
    """The examples of RFC 7396."""
    for target, patch, result in (
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ):
        assert merged(target, patch) == result
