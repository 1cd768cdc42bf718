"""The command lines of Calico's pages on IP pools, with the tool's name changed."""

import re

import pytest

from tests.ctl.places import Ctl

_SCRIPT = re.compile(r"(?:cat << EOF \| )?ipamctl (?P<line>[^\n]*?)(?: ?<<EOF)?(?:\n(?P<input>.*)EOF)?", re.DOTALL)
WIDE = "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE"


class Shell:
    """Runs what the pages have for a shell: ``ipamctl``, and its input as a here-document."""

    def __init__(self, ctl: Ctl) -> None:
        self._ctl = ctl

    def __call__(self, script: str) -> str:
        """What a command prints that succeeds and complains of nothing."""
        found = _SCRIPT.fullmatch(script)
        assert found is not None, script
        return self._ctl.ok(found["line"], found["input"] or "")

    def rows(self) -> list[str]:
        """The rows of ``get ippool -o wide``, without the columns' blanks."""
        return [re.sub(r" +", " ", line).strip() for line in self("ipamctl get ippool -o wide").splitlines()[:-1]]


@pytest.fixture
def shell(ctl: Ctl) -> Shell:
    """See Shell; with the pool that Calico makes at its start."""
    made = Shell(ctl)
    made(
        """ipamctl create -f - <<EOF
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: default-ipv4-ippool
spec:
  cidr: 192.168.0.0/16
  ipipMode: Always
  natOutgoing: true
EOF"""
    )
    return made


def test_a_pool_and_its_fields(shell: Shell) -> None:
    """One pool in YAML: what it says of allowed uses, block size, CIDR, modes, selector."""
    assert (
        re.sub(r"(Timestamp|resourceVersion|uid): .*", r"\1", shell("ipamctl get ippools  default-ipv4-ippool -o yaml"))
        == """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  creationTimestamp
  name: default-ipv4-ippool
  resourceVersion
  uid
spec:
  allowedUses:
  - Workload
  - Tunnel
  assignmentMode: Automatic
  blockSize: 26
  cidr: 192.168.0.0/16
  ipipMode: Always
  natOutgoing: true
  nodeSelector: all()
  vxlanMode: Never
"""
    )


def test_an_extra_pool_and_its_nodes(shell: Shell) -> None:
    """A second pool, and then for labelled nodes only."""
    shell("ipamctl delete ippool default-ipv4-ippool")
    extra = """cat << EOF | ipamctl apply -f -
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: extra-ippool
spec:
  cidr: 192.168.0.0/20
  blockSize: 26
  vxlanMode: Always
  natOutgoing: true
"""
    assert shell(f"{extra}EOF") == "Successfully applied 1 'IPPool' resource(s)\n"
    assert shell.rows() == [WIDE, "extra-ippool 192.168.0.0/20 true Never Always false false all() Automatic"]
    shell(f'{extra}  nodeSelector: type=="test"\nEOF')
    assert shell.rows()[1:] == ['extra-ippool 192.168.0.0/20 true Never Always false false type=="test" Automatic']


def test_another_block_size(shell: Shell) -> None:
    """The nine steps: a temporary pool, the old one disabled, deleted and made anew, the temporary one gone."""
    temporary = """ipamctl create -f - <<EOF
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: temporary-pool
spec:
  cidr: 10.0.0.0/16
  ipipMode: Always
  natOutgoing: true
EOF"""
    assert shell(temporary) == "Successfully created 1 'IPPool' resource(s)\n"
    patched = shell("""ipamctl patch ippool default-ipv4-ippool -p '{"spec": {"disabled": true}}'""")
    assert patched == "Successfully patched 1 'IPPool' resource\n"
    assert shell.rows() == [
        WIDE,
        "default-ipv4-ippool 192.168.0.0/16 true Always Never true false all() Automatic",
        "temporary-pool 10.0.0.0/16 true Always Never false false all() Automatic",
    ]
    assert shell("ipamctl delete ippool default-ipv4-ippool") == "Successfully deleted 1 'IPPool' resource(s)\n"
    anew = """ipamctl create -f -<<EOF

apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: default-ipv4-ippool
spec:
  blockSize: 27   # change blockSize from 26 to 27
  cidr: 192.0.0.0/16
  ipipMode: Always
  natOutgoing: true
EOF"""
    assert shell(anew) == "Successfully created 1 'IPPool' resource(s)\n"
    shell("""ipamctl patch ippool temporary-pool -p '{"spec": {"disabled": true}}'""")
    assert shell("ipamctl delete ippool temporary-pool") == "Successfully deleted 1 'IPPool' resource(s)\n"
    assert shell.rows()[1:] == ["default-ipv4-ippool 192.0.0.0/16 true Always Never false false all() Automatic"]
    assert shell("ipamctl get ippool default-ipv4-ippool -o jsonpath={.spec.blockSize}") == "27"


def test_racks(shell: Shell) -> None:
    """The default pool gives way to one for each rack, which its nodes choose by their labels."""
    assert shell.rows()[1:] == ["default-ipv4-ippool 192.168.0.0/16 true Always Never false false all() Automatic"]
    shell("ipamctl delete ippools default-ipv4-ippool")
    for rack in "01":
        node = f"apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: kube-node-{rack}}}\n"
        shell(f"ipamctl apply -f - <<EOF\n{node}EOF")
        shell(f"ipamctl label nodes kube-node-{rack} rack={rack}")
        shell(
            f"""ipamctl create -f -<<EOF
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: rack-{rack}-ippool
spec:
  cidr: 192.168.{rack}.0/24
  ipipMode: Always
  natOutgoing: true
  nodeSelector: rack == "{rack}"
EOF"""
        )
    assert shell.rows() == [
        WIDE,
        'rack-0-ippool 192.168.0.0/24 true Always Never false false rack == "0" Automatic',
        'rack-1-ippool 192.168.1.0/24 true Always Never false false rack == "1" Automatic',
    ]
    assert shell("ipamctl get nodes -o jsonpath='{.items[*].metadata.labels.rack}'") == "0 1"
