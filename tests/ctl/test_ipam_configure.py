"""``ipam configure``: the captured steps of calicoctl replayed, and what it leaves alone."""

import json

import pytest

from ipamd.core import keys
from tests.ctl.places import Ctl, capture


def steps(history: str) -> list[dict[str, object]]:
    """Every ``calicoctl ipam configure`` of a capture."""
    return [step for step in capture(history)["steps"] if step.get("argv", [])[1:3] == ["ipam", "configure"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("history", ["limits", "strict"])
def test_as_calico_does(ctl: Ctl, history: str) -> None:
    """The same verdicts in the same order, Calico's words for each success, and in the end Calico's record byte for byte."""
    captured = steps(history)
    assert captured
    for step in captured:
        done = ctl.run(*step["argv"][1:])  # type: ignore[index]
        assert (done.code, done.out) == (step["exit"], step["stdout"])
        assert bool(done.err) == bool(step["stderr"])
    assert ctl.place.all()[keys.CONFIG].decode() == capture(history)["etcd"][keys.CONFIG]


def test_what_would_do_the_opposite(ctl: Ctl) -> None:
    """A limit of blocks without strict affinity is refused, before and after, and nothing is changed."""
    why = "spec.maxBlocksPerHost needs spec.strictAffinity: true, or nodes at the limit would borrow addresses"
    told = f"ipamctl: cannot configure IPAMConfiguration default: {why}\n"
    assert ctl("ipam configure --max-blocks-per-host 2") == (1, "", told)
    assert ctl.place.all() == {}
    both = "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 2\n"
    assert ctl.ok("ipam configure --strictaffinity true --max-blocks-per-host 2") == both
    assert ctl("ipam configure --strictaffinity=false") == (1, "", told)


def test_the_rest_stays(ctl: Ctl) -> None:
    """Fields that are not named stay, also those that ipamd does not know; a boolean that is absent is false."""
    ctl.place.put(keys.CONFIG, b'{"strict_affinity":true,"later":{"a":1}}')
    told = "Successfully set KubeVirtVMAddressPersistence to: Disabled\n"
    assert ctl.ok("ipam configure --kubevirt-ip-persistence=Disabled") == told
    assert json.loads(ctl.place.all()[keys.CONFIG]) == {
        "strict_affinity": True, "auto_allocate_blocks": False, "kubeVirtVMAddressPersistence": "Disabled", "later": {"a": 1},
    }  # fmt: skip


LINES = {
    "": "at least one configuration option must be specified",
    "--strictaffinity=maybe": "'maybe' is not a valid boolean",
    "--max-blocks-per-host=-1": "-1 is not in the range",
    "--kubevirt-ip-persistence=on": "'on' is not one of 'Enabled', 'Disabled'",
}


@pytest.mark.parametrize("flags", LINES)
def test_a_mistake_on_the_command_line(ctl: Ctl, flags: str) -> None:
    """Exit code 2, as for every command."""
    done = ctl(f"ipam configure {flags}")
    assert done.code == 2
    assert LINES[flags] in done.err
