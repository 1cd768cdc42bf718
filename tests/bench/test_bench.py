"""The benchmark measures what it says, and the plugin is not an order slower than it was.

Of times only ratios are asserted that were measured by turns in one run, and wide ones: a test machine is busy. What has
no noise is in ``test_guard.py``.
"""

import json
import os
import subprocess
import sys
from html import escape

import msgspec
import pytest

from tests.bench import goals
from tests.bench.calico_plugin import Plugin
from tests.bench.contenders import host_local
from tests.bench.figures import (
    AWAY,
    CALICO,
    FLOOR,
    MODEL,
    OWN,
    REFERENCE,
    STORES,
    TRIO,
    Burst,
    Claim,
    Comparison,
    Cost,
    Figures,
    Load,
    Restart,
    Spread,
    Start,
    processes,
    spread,
)
from tests.bench.programs import compile_programs, run_program
from tests.memory_store import MemoryStore
from tests.nodes import pool_record


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The benchmark's programs, compiled."""
    directory = tmp_path_factory.mktemp("programs")
    compile_programs(directory)
    return directory


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    """Percentiles are measured values, by nearest rank, whatever the order of the series."""
    assert spread(range(100, 0, -1)) == Spread(100, 1, 50, 90, 99, 100)
    assert spread([7]) == Spread(1, 7, 7, 7, 7, 7)


def test_the_verdict_is_each_store_s_own():
    """A goal that one store meets and the other misses is shown as both; a part that was left out has no verdict."""
    figures = Figures({}, [_comparison("embedded", own=200), _comparison("etcd", own=300)])
    verdict = {goal.text: goal.met for goal in goals.goals(figures)}
    assert verdict["ADD by exec, embedded: times the floor, p50: at most 1.35"]
    assert not verdict["ADD by exec, etcd: times the floor, p50: at most 1.35"]
    assert {met for text, met in verdict.items() if "times as fast as host-local, p50" in text} == {True, False}
    assert len(verdict) == 2 * (2 * 5 + 1)


@pytest.mark.parametrize("short", [0, 1])
def test_a_goal_is_met_to_its_last_unit(short):
    """Each figure at its goal is met, and one unit beside it is missed."""
    at = [_spread(100_000 + short), _spread(500_000 + short)]
    one = Spread(1, 1, at[0].p50, 1, at[1].p99, 1)
    mebibytes = 60 * 2**20 + short
    figures = Figures(
        {},
        loads=[Load("etcd", 1, 1.0, 1.0, 1.0, one, one), Load("etcd", 32, 20_000.0 - short, 1.0, 1.0, one, one)],
        costs=[Cost(30, short, 1000, 50 + short, 1_500_000 + short)],
        claims=[Claim(OWN, 0, _spread(10), 2), Claim(OWN, 100, _spread(12 + short), 2 + short)],
        starts=[
            Start("etcd", 1000, _spread(1), mebibytes, 0.002 + short / 1e6),
            Start(AWAY, 1000, _spread(350_000_000 + short), mebibytes, None),
        ],
        restarts=[Restart("etcd", 100, short, [1, 600_000_000 + short])],
    )
    assert [goal.met for goal in goals.goals(figures)] == [not short] * 13


def _spread(nanoseconds):
    return Spread(1, *[nanoseconds] * 5)


def _comparison(store, *, own):
    def lane(nanoseconds):
        return processes([nanoseconds], [nanoseconds])

    lanes = {OWN: lane(own), FLOOR: lane(200), REFERENCE: lane(2000)}
    bursts = [Burst(name, 100, _spread(lanes[name].add.p50)) for name in (OWN, REFERENCE)]
    return Comparison(store, lanes, lanes | {REFERENCE: lane(7000)}, bursts)


async def test_the_model_of_calico_s_plugin_makes_the_ten_calls(autojump_clock):
    """An ADD from a block that the node has: 8 reads and 2 writes, as the real plugin was seen to do it."""
    store = MemoryStore()
    store.put(*pool_record("p", "192.168.0.0/16"))
    pod = {"namespace": "default", "pod": "p"}
    await Plugin(store, "n1").add("k8s-pod-network.a", pod)
    before = dict(store.calls)
    await Plugin(store, "n1").add("k8s-pod-network.b", pod)
    assert {kind: count - before[kind] for kind, count in store.calls.items() if count != before[kind]} == {
        "read": 8, "commit": 2,
    }  # fmt: skip


@pytest.mark.parametrize("step", ["run 0 ADD c", "burst 0 ADD c 3"])
def test_a_plugin_that_fails_is_no_measurement(programs, tmp_path, step):
    """The time of a refusal never gets among those of successes: the run ends with the plugin's words."""
    (tmp_path / "config").write_text("{}")
    (tmp_path / "plugin").write_text("#!/bin/sh\necho no address today; exit 1\n")
    (tmp_path / "plugin").chmod(0o755)
    plan = f"lane {tmp_path / 'plugin'} plugin {tmp_path / 'config'}\n{step}\n"
    with pytest.raises(RuntimeError, match="no address today"):
        run_program(programs / "spawner", told=plan)


def test_an_add_without_an_address_is_no_measurement(programs, tmp_path):
    """A plugin that succeeds and assigns nothing is found out."""
    (tmp_path / "config").write_text("{}")
    plan = f"lane /bin/cat cat {tmp_path / 'config'}\nrun 0 ADD c\n"
    with pytest.raises(RuntimeError, match="without an address"):
        run_program(programs / "spawner", told=plan)


@pytest.fixture
def calico_ipam(tmp_path):
    """A program in the place of Calico's plugin: it keeps what it is told, and answers."""
    path = tmp_path / "calico-ipam"
    path.write_text(f'#!/bin/sh\ncat > {tmp_path / "told"}\necho \'{{"ips": [{{"address": "10.0.0.1/32"}}]}}\'\n')
    path.chmod(0o755)
    return path


def bench(output, *options, **environment):
    """Run some seconds of the benchmark; returns its figures."""
    if host_local() is None and not os.environ.get("CI"):
        pytest.skip("needs host-local: install containernetworking-plugins")
    command = [sys.executable, "-m", "tests.bench", "--quick", "--output", output, *options]
    subprocess.run(command, check=True, timeout=110, env=os.environ | environment)
    return msgspec.convert(msgspec.json.decode(output.with_suffix(".json").read_bytes())["figures"], Figures)


@pytest.mark.real
def test_the_benchmark_runs_and_the_plugin_stays_fast(tmp_path, calico_ipam):
    """All contenders are in the report; an ADD takes at most half of host-local's time, by the better of the stores.

    Of each lane the fastest ADD counts: what a busy machine does to a time is never to make it shorter. Where six
    programs wanted each core, host-local's fastest took 7 to 28 times ipamd's (a quiet machine: 6); so 2 is a change of
    the design, not noise. The ratio to the floor is no guard: there the fastest of 30 to 60 was 3 to 13 times the floor's,
    as the floor needs one quiet moment and an ADD three in a row. It is for ``make bench`` on a quiet machine.
    """
    output = tmp_path / "bench.md"
    figures = bench(output, "--only", "processes", CALICO_IPAM=str(calico_ipam))
    quick = {OWN, FLOOR, TRIO, REFERENCE}
    everybody = quick | {MODEL, CALICO}
    assert [set(each.alone) for each in figures.processes] == [quick, everybody]
    assert [set(each.held) for each in figures.processes] == [quick] * 2
    assert {burst.contender for burst in figures.processes[1].bursts} == everybody
    assert all(f"| {contender} |" in output.read_text() for contender in everybody)
    assert all(escape(contender) in output.with_suffix(".svg").read_text() for contender in everybody)
    told = json.loads((tmp_path / "told").read_text())
    assert (told["datastore_type"], told["nodename"]) == ("etcdv3", "bench-calico")
    assert max(each.alone[REFERENCE].add.min / each.alone[OWN].add.min for each in figures.processes) >= 2


@pytest.mark.real
def test_a_burst_costs_etcd_what_it_should(tmp_path):
    """200 ADDs of 32 connections: no call before a reply, at most 24 transactions, and 1 kB of requests for each."""
    (cost,) = bench(tmp_path / "bench.md", "--only", "costs").costs
    assert (cost.requests, cost.on_the_way, cost.burst) == (30, 0, 200)
    assert 0 < cost.transactions <= 24  # about 10; a slow machine has the flush gather less at once
    assert 0 < cost.received <= 200 * 1000


in_ci = pytest.mark.skipif(not os.environ.get("CI"), reason="starts many daemons; `make bench` does so as well")


@pytest.mark.real
@in_ci
def test_requests_at_the_socket_are_measured_on_each_store(tmp_path):
    """Both stores are in the report and in the picture."""
    output = tmp_path / "bench.md"
    figures = bench(output, "--only", "loads")
    assert [load.store for load in figures.loads] == list(STORES)
    assert "## Requests at the socket" in output.read_text()
    assert all(f">{store}<" in output.with_suffix(".svg").read_text() for store in STORES)


@pytest.mark.real
@in_ci
def test_first_blocks_are_measured_in_each_cluster(tmp_path):
    """Both programs in both clusters; no claim of ours needs more than three transactions."""
    output = tmp_path / "bench.md"
    found = bench(output, "--only", "claims").claims
    assert [(claim.program, claim.blocks) for claim in found] == [(OWN, 0), (MODEL, 0), (OWN, 100), (MODEL, 100)]
    assert max(claim.transactions for claim in found if claim.program == OWN) <= 3
    assert "## A node's first block" in output.read_text()


@pytest.mark.real
@in_ci
def test_starts_are_measured_with_etcd_and_without(tmp_path):
    """Each size with etcd and with etcd away; what is in memory is a daemon's, not a shell's."""
    output = tmp_path / "bench.md"
    starts = bench(output, "--only", "starts").starts
    expected = [("etcd", 0), ("etcd", 30), (AWAY, 0), (AWAY, 30)]
    assert [(start.store, start.addresses) for start in starts] == expected
    assert all(20 << 20 < start.resident < 100 << 20 for start in starts)
    assert "## Starts, memory, rest" in output.read_text()


@pytest.mark.real
@in_ci
def test_no_call_is_refused_in_the_measure_of_restarts(tmp_path):
    """One restart on each store, under load."""
    output = tmp_path / "bench.md"
    restarts = bench(output, "--only", "restarts").restarts
    assert [(each.store, each.refused, len(each.waits)) for each in restarts] == [("embedded", 0, 1), ("etcd", 0, 1)]
    assert "## Restarts under load" in output.read_text()
