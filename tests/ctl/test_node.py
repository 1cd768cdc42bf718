"""The commands on a node, without one: what they make of answers that are hard to get from a daemon."""

import json

import pytest

from ipamd.ctl.commands.bundle import REMOVED, cleaned
from ipamd.ctl.commands.node import screen
from ipamd.ctl.commands.top import rates
from tests.ctl.terminal import Screen

STATUS = {
    "version": "0.1.0", "node": "node-a", "at": "2026-11-21T12:00:00Z", "uptime_seconds": 100.0, "ready": True, "reason": "",
    "draining": False, "attachments": 3, "blocks": 1, "kubernetes": None,
    "store": {
        "kind": "etcd", "connected": True, "synced": True, "locked": False, "last_read_error": "", "damaged_records": {},
    },
    "flush": {
        "unflushed": 0, "unflushed_age_seconds": 0.0, "transactions": 10, "operations": 40, "conflicts": 0, "failures": 0,
        "claims": 1, "last_error": "",
    },
    "state_file": {"path": "/s/state", "bytes": 12345, "error": "", "durability": "journal", "set_aside": []},
    "requests": {"ADD": {"0": 100}}, "errors": [],
    "pools": {"p": {"blocks": 1, "in_use": 3, "in_reserve": 16, "target": 16, "waiting": 0}},
}  # fmt: skip


def test_the_status_of_a_node_in_trouble() -> None:
    """Whatever is wrong is on the screen, in the words of who found it."""
    told = {
        **STATUS, "ready": False, "reason": "no address is in reserve; the store cannot be read (away)", "draining": True,
        "store": {
            **STATUS["store"], "connected": False, "synced": False, "locked": True, "last_read_error": "away",  # type: ignore[dict-item] # a dict
            "damaged_records": {"/calico/x": "not a block"},
        },
        "flush": {**STATUS["flush"], "unflushed": 7, "unflushed_age_seconds": 65.0, "last_error": "NOSPACE"},  # type: ignore[dict-item] # a dict
        "state_file": {**STATUS["state_file"], "error": "the disk is full", "set_aside": ["state.damaged-1"]},  # type: ignore[dict-item] # a dict
        "kubernetes": {"connected": False, "error": "no route", "pods": 2, "namespaces": 1}, "pools": {},
        "errors": [
            {"at": "t", "kind": "add", "namespace": "a", "pod": "b", "container": "c", "code": 101, "what": "cannot"},
            {"at": "t", "kind": "del", "namespace": "", "pod": "", "container": "c", "code": 5, "what": "cannot"},
        ],
    }  # fmt: skip
    assert list(screen(told)) == [
        "ipamd 0.1.0 on node node-a, up 100s: not ready",
        "  no address is in reserve; the store cannot be read (away)",
        "  the node is being drained",
        "store       etcd, not connected, never read yet, locked",
        "            away",
        "            NOSPACE",
        "            record /calico/x: not a block",
        "flush       7 unflushed (for 65s); 10 transactions, 0 conflicts, 0 failures",
        "state file  /s/state, 12,345 bytes",
        "            the disk is full",
        "            set aside: state.damaged-1",
        "kubernetes  not connected: no route; 2 pods, 1 namespace",
        "requests    ADD 100",
        "addresses   3 attachments, 1 block",
        "",
        "no pool gives this node addresses yet",
        "",
        "last errors",
        "  t ADD a/b: code 101",
        "    cannot",
        "  t DEL container c: code 5",
        "    cannot",
    ]


def test_what_happens_a_second() -> None:
    """Differences of two looks over the time between them, by the daemon's own clock."""
    after = {
        **STATUS, "uptime_seconds": 104.0, "requests": {"ADD": {"0": 180, "101": 4}, "DEL": {"0": 2}},
        "flush": {**STATUS["flush"], "transactions": 20, "operations": 140, "unflushed": 3, "unflushed_age_seconds": 0.25},  # type: ignore[dict-item] # a dict
    }  # fmt: skip
    assert list(rates(STATUS, after)) == [
        "2026-11-21T12:00:00Z  node node-a, up 104s: ready",
        "",
        "ADD/s               21.0   failed 1.0",
        "DEL/s                0.5   failed 0.0",
        "transactions/s       2.5",
        "operations/s        25.0",
        "conflicts/s          0.0",
        "failures/s           0.0",
        "claims/s             0.0",
        "unflushed              3, the oldest for 0.2 s",
        "",
        "POOL   BLOCKS   IN USE   RESERVE   WANTED   WAITING",
        "p      1        3        16        16       0",
    ]


def test_a_daemon_that_was_started_between_two_looks() -> None:
    """Counts from its start: no rate is negative."""
    after = {**STATUS, "uptime_seconds": 2.0, "requests": {"ADD": {"0": 10}}, "ready": False, "reason": "x"}
    lines = list(rates(STATUS, after))
    assert lines[0].endswith("up 2s: not ready: x")
    assert lines[2] == "ADD/s                5.0   failed 0.0"
    assert lines[4] == "transactions/s       5.0"


def test_top_says_that_the_store_is_away() -> None:
    """The daemon serves on; what it cannot write grows."""
    store: dict[str, object] = {**STATUS["store"], "connected": False, "last_read_error": "away"}  # type: ignore[dict-item] # a dict
    assert "store         not connected: away" in list(rates(STATUS, {**STATUS, "store": store}))


@pytest.mark.parametrize("line", ["status", "top --count 1", "ipam show"])
def test_an_error_is_folded_on_a_terminal(line: str) -> None:
    """No word of it is cut; in a pipe it is one line."""
    argv = ["--socket", "/a-folder-that-is-not-there/ipamd.sock", *line.split()]
    with Screen(argv, 60) as screen:
        shown = screen.to_the_end().replace("\r\n", "\n")
        assert screen.process.wait(60) == 3
    assert max(map(len, shown.splitlines())) <= 60
    assert len(shown.splitlines()) > 2
    assert " ".join(shown.split()).startswith(
        "ipamctl: cannot reach ipamd at /a-folder-that-is-not-there/ipamd.sock: no "
    )


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            {"etcd": {"password": "hunter2", "password_file": "/p"}},
            {"etcd": {"password": REMOVED, "password_file": "/p"}},
        ),
        ({"a": [{"apiToken": "t", "token_file": "/t"}]}, {"a": [{"apiToken": REMOVED, "token_file": "/t"}]}),
        ({"key": "k", "key_file": "/k", "keys": "shown"}, {"key": REMOVED, "key_file": "/k", "keys": "shown"}),
        ({"etcd": {"endpoints": ["http://u:pw@h:1"]}}, {"etcd": {"endpoints": [f"http://{REMOVED}@h:1"]}}),
        ({"secret": "", "tokens": 3}, {"secret": "", "tokens": 3}),
    ],
)
def test_secrets_are_taken_out(said: object, kept: object) -> None:
    """Values under the names that secrets have, and logins in URLs; paths, numbers and empty values stay."""
    assert json.loads(cleaned(json.dumps(said).encode())) == kept


def test_what_is_no_json_is_cleaned_too() -> None:
    """Metrics and logs may have a URL."""
    assert (
        cleaned(b'error="cannot reach https://me:pw@host:2379"')
        == f'error="cannot reach https://{REMOVED}@host:2379"'.encode()
    )
