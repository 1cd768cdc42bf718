"""A short campaign of each kind for every change; ``make fuzz`` runs the long ones."""

import os
from pathlib import Path

import pytest

from tests.fuzz import campaign, parsers
from tests.fuzz.clients import CRASHED
from tests.fuzz.hostile import Hostile

REQUESTS = int(os.environ.get("IPAMD_FUZZ_REQUESTS", "5000"))


@pytest.mark.real
def test_hostile_requests_leave_the_daemon_sound_and_no_address_behind(tmp_path: Path) -> None:
    """It lives, says nothing of an internal error, and after a DEL of all that is held memory, file and store agree."""
    outcome = campaign.run(tmp_path, 7, REQUESTS, 2)
    assert outcome.findings == []
    assert outcome.requests >= REQUESTS
    assert outcome.statuses["200"] > REQUESTS // 10, "hardly anything reached a handler and succeeded"
    assert outcome.statuses["400"] > REQUESTS // 10, "hardly anything was refused"
    assert outcome.addresses > 100


def test_parsers_raise_nothing_but_what_they_declare() -> None:
    """Damaged records, requests, configurations, selectors, state files and objects of Kubernetes."""
    outcome = parsers.run(7, REQUESTS)
    assert outcome.findings == []
    tame = {"pressure", "state file", "sound records", "resolv.conf", "annotations"}
    assert {name for name, refused in outcome.refused.items() if not refused} == tame
    assert not [name for name, refused in outcome.refused.items() if refused == outcome.inputs[name]]


def test_a_parser_that_raises_what_it_does_not_declare_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parsers' campaign is worth: a decoder with a bug is told, with the input that shows it."""
    monkeypatch.setattr("ipamd.api.cni.MALFORMED", ())
    findings = parsers.run(7, 2000).findings
    assert findings
    assert all(finding.startswith("cni, seed 7, input ") for finding in findings)


def test_a_seed_repeats() -> None:
    """The same seed draws the same requests, so that the command that is printed shows the failure again."""
    one, other = Hostile(5), Hostile(5)
    assert [one.batch() for _ in range(50)] == [other.batch() for _ in range(50)]
    assert Hostile(6).batch() != Hostile(5).batch()


def test_the_server_says_of_a_crash_what_the_campaign_looks_for() -> None:
    """The words by which a campaign knows an internal error are the server's."""
    from ipamd.api.refusals import CRASHED as ANSWER

    assert CRASHED in ANSWER
