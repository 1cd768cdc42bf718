"""``/v1/events``: requests with their answers, and what the daemon did, in order, for who follows them."""

import json
import os
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipamd.api.access import Peer
from ipamd.api.events import KEPT, KEPT_FAILURES, LONGEST, READERS, Events
from ipamd.api.http import Request, Response
from tests.api.plugin_call import ROOT, Path, call, config, error_of

BEGIN = 1_795_218_460_000_000_000


def watched() -> tuple[Path, Events]:
    """A request path, and events that read the time of its start."""
    return Path(), Events(lambda: BEGIN)


def serve(path: Path, events: Events, request: Request) -> Response:
    """Answer a request that need not wait, and then note it, as the server does."""
    response = path.ask(request)
    events.served(request, response)
    return response


async def ask(events: Events, query: str = "") -> dict[str, list[dict[str, object]]]:
    """What is answered to a query."""
    response = events.answer(Request("GET", "/v1/events", query, {}, b"", keep_alive=True), ROOT)
    if not isinstance(response, Response):
        response = await response
    assert response.status == 200, response.body
    answer = json.loads(response.body)
    assert isinstance(answer, dict)
    return answer


async def test_a_request_is_told_with_its_answer() -> None:
    """The pod, the attachment and the addresses of an ADD; code and text of one that was refused; a DEL."""
    path, events = watched()
    path.supply("10.0.0.0/29", 2)
    serve(path, events, call())
    refused = error_of(serve(path, events, call(config("1.0.0", assign_ipv4="false"), CNI_CONTAINERID="c2")))
    serve(path, events, call(CNI_COMMAND="DEL"))
    add, refusal, delete = (await ask(events))["events"]
    who = {
        "namespace": "default", "pod": "web", "network": "k8s-pod-network", "container": "c1", "interface": "eth0",
        "at": "2026-11-20T23:47:40Z",
    }  # fmt: skip
    rest = {"values": {}, "level": "info", "what": "", "code": 0}
    assert add == {**who, **rest, "number": BEGIN // 1000 + 1, "kind": "add", "addresses": ["10.0.0.0"]}
    assert delete == {**who, **rest, "number": BEGIN // 1000 + 3, "kind": "del", "addresses": []}
    assert refusal == {
        **who, **rest, "container": "c2", "number": BEGIN // 1000 + 2, "kind": "add", "addresses": [],
        "level": "warning", "code": refused["code"], "what": refused["msg"],
    }  # fmt: skip
    assert [failure.what for failure in events.failures()] == [refused["msg"]]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.4.0", "1.1.0"])
async def test_the_addresses_of_every_version_of_a_result(version: str) -> None:
    """Old results name one address of each IP version; all are told alike."""
    path, events = watched()
    path.supply("10.0.0.0/29", 2)
    path.supply("fd00::/125", 2)
    serve(path, events, call(config(version, assign_ipv6="true")))
    assert (await ask(events))["events"][0]["addresses"] == ["10.0.0.0", "fd00::"]


async def test_whatever_was_sent_can_be_told() -> None:
    """No JSON, names that are not UTF-8, a body that is too long to keep: what cannot be read is left out."""
    path, events = watched()
    serve(path, events, call(b"{", CNI_CONTAINERID="\udcff", CNI_ARGS="\udcfe=1"))
    serve(path, events, call(b'{"name":"n"}' + b" " * LONGEST, CNI_COMMAND="\udcff"))
    serve(path, events, call(b'["a"]', CNI_ARGS=None, CNI_CONTAINERID="x" * 5000))
    first, second, third = (await ask(events))["events"]
    assert (first["container"], first["network"], first["pod"], first["code"]) == ("?", "", "", 6)
    assert (second["kind"], second["network"], second["pod"]) == ("?", "", "web")
    assert len(str(third["container"])) == 1024


async def test_what_the_daemon_does_by_itself() -> None:
    """Lines of the log with their values, but not those for who works on ipamd; blocks that come and go."""
    _path, events = watched()
    events.logged("warning", {"event": "cannot read the store", "component": "daemon", "error": "away", "count": 3})
    events.logged("debug", {"event": "ADD"})
    events.blocks({"10.0.0.0/29": "own", "10.0.0.8/29": "own"}, {"10.0.0.0/29": "own", "10.0.0.16/29": "borrowed"})
    log, borrowed, lost = (await ask(events))["events"]
    assert (log["kind"], log["what"], log["level"]) == ("log", "cannot read the store", "warning")
    assert log["values"] == {"error": "away", "count": "3"}
    assert (lost["kind"], lost["values"]) == ("block", {"block": "10.0.0.8/29", "share": "none"})
    assert borrowed["values"] == {"block": "10.0.0.16/29", "share": "borrowed"}


async def test_who_follows_misses_nothing() -> None:
    """Each answer names the last number, and the next question begins after it; what was dropped is counted."""
    _path, events = watched()
    assert (await ask(events))["events"] == []
    events.note("log", "one", {})
    first = await ask(events)
    assert [event["what"] for event in first["events"]] == ["one"]
    after = f"after={first['last']}"
    assert (await ask(events, after))["events"] == []
    for number in range(KEPT + 5):
        events.note("log", str(number), {})
    second = await ask(events, after)
    assert (len(second["events"]), second["lost"]) == (KEPT, 5)
    assert second["events"][-1]["what"] == str(KEPT + 4)
    assert (await ask(events))["lost"] == 0, "who follows nothing has lost nothing"


async def test_numbers_grow_over_a_restart() -> None:
    """Who follows over a restart gets what the new daemon did, and nothing is counted as lost."""
    _path, events = watched()
    events.note("log", "before", {})
    last = (await ask(events))["last"]
    successor = Events(lambda: BEGIN + 2_000_000)
    successor.note("log", "after", {})
    answer = await ask(successor, f"after={last}")
    assert ([event["what"] for event in answer["events"]], answer["lost"]) == (["after"], 0)


async def test_refusals_outlast_a_burst() -> None:
    """The last of them are kept by themselves, the latest first."""
    path, events = watched()
    path.supply("10.0.0.0/29", 2)
    for number in range(KEPT_FAILURES + 3):
        serve(path, events, call(config("1.0.0", assign_ipv4="false"), CNI_CONTAINERID=f"c{number}"))
    for _number in range(KEPT):
        serve(path, events, call())
    assert [failure.container for failure in events.failures()] == [f"c{number}" for number in range(22, 2, -1)]


async def test_a_question_waits_for_the_next_event(autojump_clock: MockClock) -> None:
    """As long as it says, and not a moment longer than until something happens, for all who wait."""
    _path, events = watched()
    last = (await ask(events))["last"]
    began = trio.current_time()
    assert (await ask(events, f"after={last}&wait=7"))["events"] == []
    assert trio.current_time() - began == 7
    answers: list[object] = []

    async def follow() -> None:
        answers.append((await ask(events, f"after={last}&wait=30"))["events"][0]["what"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        events.note("log", "now", {})
    assert (answers, trio.current_time() - began) == (["now", "now"], 7)


async def test_only_so_many_readers_wait_at_once(autojump_clock: MockClock) -> None:
    """More are refused at once, administrators never; who has done makes room for the next."""
    _path, events = watched()
    answers: list[tuple[int, dict[str, object]]] = []

    async def follow(peer: Peer, last: object) -> None:
        query = f"after={last}&wait=30"
        response = events.answer(Request("GET", "/v1/events", query, {}, b"", keep_alive=True), peer)
        assert not isinstance(response, Response)
        answered = await response
        answers.append((answered.status, json.loads(answered.body)))

    reader = Peer(1, os.geteuid() + 1000, 1)
    async with trio.open_nursery() as nursery:
        for _round in range(2):
            last = (await ask(events))["last"]
            answers.clear()
            for peer in [reader] * READERS + [ROOT] * 5:
                nursery.start_soon(follow, peer, last)
            await wait_all_tasks_blocked()
            assert answers == []
            nursery.start_soon(follow, reader, last)
            await wait_all_tasks_blocked()
            words = (
                "cannot wait for an event: 16 requests of members of socket_group wait already; "
                "ask without wait, or try again later"
            )
            assert answers == [(503, {"code": 11, "msg": words})]
            events.note("log", "now", {})
            await wait_all_tasks_blocked()
            assert [status for status, _answer in answers] == [503] + [200] * (READERS + 5)


async def test_a_daemon_that_stops_ends_the_waits(autojump_clock: MockClock) -> None:
    """Nobody keeps it from stopping, nor who asks then."""
    _path, events = watched()
    last, began = (await ask(events))["last"], trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(ask, events, f"after={last}&wait=30"))
        await wait_all_tasks_blocked()
        events.close()
        nursery.start_soon(partial(ask, events, f"after={last}&wait=30"))
    assert trio.current_time() == began


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "after=1.5", "wait=31", "after=99999999999999999999", "since=1"]
)
def test_what_is_no_number(query: str) -> None:
    """A mistake in the question is told as one."""
    response = Events(lambda: BEGIN).answer(Request("GET", "/v1/events", query, {}, b"", keep_alive=True), ROOT)
    assert isinstance(response, Response)
    assert response.status == 400
    assert json.loads(response.body)["msg"].startswith("cannot read the query of /v1/events: ")
