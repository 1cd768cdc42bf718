"""A short campaign of each kind for every change; ``make fuzz`` runs the long ones."""

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from ipamd.cni import build
from tests.cni.sanitized import compile_sanitized
from tests.fuzz import campaign, guided, guided_plugin, parsers, plugin, plugin_campaign
from tests.fuzz.calls import Calls
from tests.fuzz.clients import CRASHED
from tests.fuzz.hostile import Hostile
from tests.fuzz.processes import share_out
from tests.fuzz.verdict import read_answer

REQUESTS = int(os.environ.get("IPAMD_FUZZ_REQUESTS", "5000"))
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler of the system")


@pytest.mark.real
def test_hostile_requests_leave_the_daemon_sound_and_no_address_behind(tmp_path: Path) -> None:
    """It lives, says nothing of an internal error, and after a DEL of all that is held memory, file and store agree."""
    outcome = campaign.run(tmp_path, 7, REQUESTS, 2)
    assert outcome.findings == []
    assert outcome.requests >= REQUESTS
    assert outcome.statuses["200"] > REQUESTS // 10, "hardly anything reached a handler and succeeded"
    assert outcome.statuses["400"] > REQUESTS // 10, "hardly anything was refused"
    assert outcome.addresses > 100


@pytest.mark.real
@pytest.mark.parametrize(
    ("sanitized", "calls"), [(False, REQUESTS // 2), pytest.param(True, REQUESTS // 20, marks=NEEDS_COMPILER)]
)
def test_hostile_calls_of_the_plugin_end_in_an_answer_or_an_error(tmp_path: Path, sanitized: bool, calls: int) -> None:
    """Of a daemon that serves, of others that answer, of one that is away: never a signal, and no DEL is lost."""
    build.build([platform.machine()])
    program = compile_sanitized(tmp_path / "ipamd-cni") if sanitized else build.binary(platform.machine())
    outcome = plugin_campaign.run(tmp_path, program, 7, calls, 2)
    assert outcome.findings == []
    assert outcome.calls == calls
    assert outcome.addresses > calls // 100
    for came, share in {
        "ADD": 20,
        "DEL kept": 50,
        "answer passed on": 50,
        "code 7": 50,
        "refused with code 5": 50,
    }.items():
        assert outcome.outcomes[came] > calls // share, f"hardly ever: {came}"


BUGS = {
    "bytes that are not ASCII are not escaped": ("c < 0x20 || c >= 0x7f", "c < 0x20"),
    "a header that comes twice": ("return false; /* twice", "return true; /* twice"),
    "a buffer that grows too little": ("2 * b->room ? b->len + more :", "2 * b->room ? b->len + more / 2 :"),
}


@NEEDS_COMPILER
@pytest.mark.parametrize(("sound", "wrong"), BUGS.values(), ids=BUGS.keys())
def test_a_plugin_with_a_bug_is_found(tmp_path: Path, sound: str, wrong: str) -> None:
    """What the plugin's campaign is worth: a deliberate bug is told, with the call that shows it."""
    source = build.SOURCE.read_text()
    assert source.count(sound) == 1
    (tmp_path / "wrong.c").write_text(source.replace(sound, wrong))
    program = compile_sanitized(tmp_path / "ipamd-cni", tmp_path / "wrong.c")
    share = plugin.Share(program, tmp_path / "sock", tmp_path, tmp_path / "own", 7, 300, away=True, answers=0.8)
    ((_calls, _outcomes, findings),) = share_out(plugin.send, [(share,)], lambda: True)
    assert findings
    assert all(finding.startswith("call ") for finding in findings)


def test_parsers_raise_nothing_but_what_they_declare() -> None:
    """Damaged records, requests, configurations, selectors, state files and objects of Kubernetes."""
    outcome = parsers.run(7, REQUESTS)
    assert outcome.findings == []
    tame = {"pressure", "state file", "sound records", "resolv.conf", "annotations", "cached results", "kept DELs"}
    assert {name for name, refused in outcome.refused.items() if not refused} == tame
    assert not [name for name, refused in outcome.refused.items() if refused == outcome.inputs[name]]


def test_a_parser_that_raises_what_it_does_not_declare_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parsers' campaign is worth: a decoder with a bug is told, with the input that shows it."""
    monkeypatch.setattr("ipamd.api.cni.MALFORMED", ())
    findings = parsers.run(7, 2000).findings
    assert findings
    assert all(finding.startswith("cni, seed 7, input ") for finding in findings)


@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris: make .venv/.fuzz-stamp")
def test_inputs_that_are_led_by_the_code_they_reach_reach_more_of_it(tmp_path: Path) -> None:
    """A parser is shown its samples and what grows out of them."""
    outcome = guided.run(tmp_path, 7, 2000, ["selector"])
    assert outcome.findings == []
    assert outcome.inputs >= 2000
    first, last = map(int, outcome.reached["selector"].split(" to "))
    assert first < last


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang and its libFuzzer")
def test_the_plugins_source_is_led_to_its_branches_and_to_a_bug(tmp_path: Path) -> None:
    """As it is nothing is wrong with it; a buffer that grows too little is found."""
    for name, (sound, wrong) in {"sound": ("", ""), "wrong": BUGS["a buffer that grows too little"]}.items():
        (tmp_path / name).mkdir()
        source = tmp_path / f"{name}.c"
        source.write_text(build.SOURCE.read_text().replace(sound, wrong))
        outcome = guided_plugin.run(tmp_path / name, 7, 5000, source)
        assert bool(outcome.findings) == (name == "wrong"), outcome.findings
        if name == "sound":
            first, last = map(int, outcome.reached["plugin"].split(" to "))
            assert 200 < first < last
        else:
            assert "heap-buffer-overflow" in outcome.findings[0]


def test_a_seed_repeats() -> None:
    """The same seed draws the same requests, so that the command that is printed shows the failure again."""
    calls, again = Calls(5), Calls(5)
    drawn = [calls.call(away=False, answers=0.5) for _ in range(50)]
    assert drawn == [again.call(away=False, answers=0.5) for _ in range(50)]
    one, other = Hostile(5), Hostile(5)
    assert [one.batch() for _ in range(50)] == [other.batch() for _ in range(50)]
    assert Hostile(6).batch() != Hostile(5).batch()


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (b"HTTP/1.1 200 OK\r\nIpamd-Exit: 3\r\ncontent-length:\t2 \r\n\r\n{}more", (3, b"{}")),
        (b"HTTP/1.1 200 OK\r\nIpamd-Exit: 3\r\nContent-Length: 3\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nIpamd-Exit: 256\r\nContent-Length: 2\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nIpamd-Exit: 1\r\nIpamd-Exit: 1\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/2 200\r\nIpamd-Exit: 1\r\nContent-Length: 0\r\n\r\n", None),
    ],
)
def test_what_an_answer_means(text: bytes, meaning: tuple[int, bytes] | None) -> None:
    """The campaign's own reading of an answer, against which the plugin's is held."""
    assert read_answer(text) == meaning


def test_the_server_says_of_a_crash_what_the_campaign_looks_for() -> None:
    """The words by which a campaign knows an internal error are the server's."""
    from ipamd.api.refusals import CRASHED as ANSWER

    assert CRASHED in ANSWER
