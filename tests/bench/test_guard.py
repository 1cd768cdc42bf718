"""What a pod's start costs, as counts: calls, transactions, bytes, garbage. They have no noise, so they are exact."""

import gc
import sys

import trio

import ipamd
from ipamd.core.reserve import ReservePolicy
from tests.api.plugin_call import Path, call, config
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record

OURS = ipamd.__path__[0]


async def test_what_pods_cost_the_store_is_counted(autojump_clock):
    """20 ADDs: no call on the way, then one transaction of block and 20 handles (the reserve's is as before); so for the DELs.

    Exactly, under a virtual clock: a count has no noise, and nor have the bytes of the records.
    """
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "192.168.0.0/16"))
    async with Node("n1", store, ReservePolicy(minimum=40)).running() as node:
        await trio.sleep(1)
        calls, before = dict(store.calls), len(store.commits)
        for number in range(20):
            await node.add(add_request(f"c{number:02}"))
        assert store.calls == calls
        await node.flushed()
        for number in range(20):
            node.delete(f"c{number:02}")
        deleting = len(store.commits)
        await trio.sleep(5)
    assert deleting == before + 1
    assert [len(changes) for (changes,) in store.commits[before:]] == [1 + 20] * 2
    written = [sum(len(change.value or b"") for change in changes) for (changes,) in store.commits[before:]]
    assert written == [5976, 1645], "what a pod costs the store has changed: is it meant to?"


def test_the_path_of_an_add_is_no_longer_than_it_was():
    """Calls of ipamd's own functions between a request and its reply: at most 51 for an ADD, 26 for a DEL.

    A count has no noise, and each call is part of what a pod waits for: who adds one says what it buys.
    """
    path = _path()
    for number in range(2):  # the first ones fill caches
        add, delete = _calls_of(path, "ADD", number), _calls_of(path, "DEL", number)
    assert add <= 51
    assert delete <= 26


def test_the_path_is_no_longer_beside_a_thousand_held_addresses():
    """An ADD and a DEL take the interpreter as many steps on a node full of pods as on one that has none."""
    alone, full = _path(), _path(blocks=140)
    for number in range(1000):
        full.ask(call(CNI_CONTAINERID=f"held{number}"))
    for number in range(2):  # the first ones fill caches
        steps = [[_steps_of(path, verb, number) for verb in ("ADD", "DEL")] for path in (alone, full)]
    assert steps[1] == steps[0]


def test_adds_and_dels_leave_no_cyclic_garbage():
    """Nothing for the collector: its pauses would be in the slowest ADDs."""
    path = _path()
    _calls_of(path, "ADD", 0)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 40):
            path.ask(call(CNI_CONTAINERID=f"c{number}"))
            path.ask(call(CNI_COMMAND="DEL", CNI_CONTAINERID=f"c{number // 2}"))
        assert gc.collect() == 0
    finally:
        gc.enable()


def _path(blocks=8):
    """A daemon's request path with a reserve of eight addresses a block."""
    path = Path()
    for block in range(blocks):
        path.supply(f"10.0.{block // 32}.{block % 32 * 8}/29", 8)
    return path


def _steps_of(path, verb, number):
    """How many of the interpreter's instructions of ipamd one request takes."""
    uncached = config(type="ipamd")  # answers for Calico's plugin are remembered by address
    request, steps = call(uncached, CNI_COMMAND=verb, CNI_CONTAINERID=f"c{number}"), 0

    def follow(frame, event, _argument):
        nonlocal steps
        frame.f_trace_opcodes = frame.f_code.co_filename.startswith(OURS)
        steps += event == "opcode"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        path.ask(request)
    finally:
        sys.settrace(before)
    return steps


def _calls_of(path, verb, number):
    """How many functions of ipamd one request calls; comprehensions are such in some versions of Python alone."""
    request = call(CNI_COMMAND=verb, CNI_CONTAINERID=f"c{number}")
    called = []

    def note(frame, event, _argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS) and not code.co_name.startswith("<"):
            called.append(code.co_name)

    sys.setprofile(note)
    try:
        answer = path.ask(request)
    finally:
        sys.setprofile(None)
    assert ("Ipamd-Exit", "0") in answer.headers
    return len(called)
