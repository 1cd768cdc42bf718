"""The page "IPPool": ``extra-ippool`` beside the default pool, for all nodes and then for some, with ``ipamctl``."""

import yaml

from tests.ctl.places import Ctl, capture

EXTRA = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: extra-ippool
spec:
  cidr: 172.20.0.0/20
  blockSize: 26
  vxlanMode: Always
  natOutgoing: true
"""
FOR_SOME = EXTRA + '  nodeSelector: type=="test"\n'
COLUMNS = "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE"


def test_a_pool_for_all_nodes_and_then_for_some(ctl: Ctl) -> None:
    """Applied twice: made, then narrowed; what is not named stays, and the other pool as it was."""
    ctl.load({key: value for key, value in capture("basic")["etcd"].items() if "/ippools/" in key})  # type: ignore[attr-defined]
    before = ctl.ok("get ippools default-ipv4-ippool -o yaml")
    for document, selector in ((EXTRA, "all()"), (FOR_SOME, 'type=="test"')):
        done = ctl("apply -f -", stdin=document)
        assert (done.code, done.out) == (0, "Successfully applied 1 'IPPool' resource(s)\n")
        head, *rows = ctl.ok("get ippool -o wide").splitlines()
        assert head.split() == COLUMNS.split()
        (row,) = [row.split() for row in rows if row.startswith("extra-ippool")]
        assert row == [
            "extra-ippool",
            "172.20.0.0/20",
            "true",
            "Never",
            "Always",
            "false",
            "false",
            selector,
            "Automatic",
        ]
    kept = yaml.safe_load(ctl.ok("get ippool extra-ippool -o yaml"))
    assert kept["spec"]["nodeSelector"] == 'type=="test"'
    assert ctl.ok("get ippools default-ipv4-ippool -o yaml") == before
    assert ctl.run("patch", "ippool", "extra-ippool", "-p", '{"spec": {"disabled": true}}').code == 0
    assert yaml.safe_load(ctl.ok("get ippool extra-ippool -o yaml"))["spec"]["disabled"] is True
