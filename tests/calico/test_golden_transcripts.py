"""The captured histories of Calico's programs, replayed against real daemons: the same calls have the same outcomes."""

import pytest

from tests.calico.transcript import Transcript, handles
from tests.etcd_process import EtcdProcess
from tests.real.conftest import Start

pytestmark = pytest.mark.real

CODES = {
    "basic 14 ADD static2": 104,  # the address is taken
    "basic 15 ADD outside": 105,  # it lies in no pool
    "basic 18 ADD badpool": 100,
    "basic 19 ADD badcidr": 100,
    "basic 26 GC dual": 7,  # the configuration does not say which attachments are valid
    "borrow 9 ADD c0": 101,
    "borrow 10 ADD full": 101,
    "strict 5 ADD strict": 101,
    "limits 15 ADD m8": 102,
    "limits 18 ADD cool": 102,
    "pools 7 ADD reserved": 101,
    "pools 12 ADD dis": 100,
    "pools 13 ADD tun": 100,
    "pools 17 ADD ipoff": 105,
    "pools 18 ADD iptun": 105,
}
"""The refusals of Calico's plugin, always code 999 there, and the code that says which rule it was."""

BETTER = {
    # The same ADD sent twice takes two addresses there: one attachment, one address.
    "basic 12 ADD again": "the address it has already",
    # Calico's plugin knows neither CNI 1.1 nor STATUS.
    "basic 24 VERSION dual": (
        'printed \'{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\\n\''
    ),
    "basic 25 STATUS dual": "exit code 0, not 1: ",
}
"""Steps whose outcome is another on purpose, with how it differs from the captured one."""


@pytest.mark.parametrize("history", ["basic", "strict", "limits", "pools", "migrate-done"])
def test_a_captured_history_has_the_same_outcome(history: str, etcd: EtcdProcess, start: Start) -> None:
    """Each call succeeds or fails as captured, with an address of the same pool, the same mask and routes.

    At the end of each file the records are sound and in Calico's form, and say what the plugin was told.
    """
    transcript = Transcript(history, etcd, start, CODES)
    for file in transcript.run():
        state = transcript.settle()
        assert transcript.flaws(state) == [], file
        assert handles(state) == transcript.expected_handles(), file
    files = tuple(f"{file} " for file in transcript.files)
    assert transcript.differing == {step: how for step, how in BETTER.items() if step.startswith(files)}
