"""The benchmark guards itself: it measures what it says, and the plugin is not an order slower than it was.

Counts are asserted exactly; of times only ratios that were measured by turns in one run, and wide ones: a test machine
is busy.
"""

import os
import subprocess
import sys

import msgspec
import pytest
import trio

from ipamd.core.reserve import ReservePolicy
from tests.bench import report
from tests.bench.figures import STORES, Comparison, Figures, Load, Processes, Spread, spread
from tests.bench.processes import host_local
from tests.bench.programs import compile_programs, run_program
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record


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
    """A goal that one store meets and the other misses is shown as both."""
    fast, slow = _comparison("embedded", add=300), _comparison("etcd", add=400)
    one = Spread(1, 1, 1, 1, 1, 1)
    loads = [Load("embedded", 1, 9_999.0, 1.0, 1.0, one, one), Load("embedded", 8, 10_000.0, 1.0, 1.0, one, one)]
    verdict = [goal.met for goal in report.goals(Figures({}, [fast, slow], loads))]
    assert verdict == [True, True, False, False, True]


def _comparison(store, *, add):
    def lane(nanoseconds):
        each = Spread(1, *[nanoseconds] * 5)
        return Processes(each, each, each)

    return Comparison(store, lane(add), lane(200), lane(2000))


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


@pytest.mark.real
def test_the_benchmark_runs_and_the_plugin_stays_fast(tmp_path):
    """All parts of the report are there; an ADD takes at most half of host-local's time, by the better of the stores.

    Of each lane the fastest ADD counts: what a busy machine does to a time is never to make it shorter. Where six
    programs wanted each core, host-local's fastest took 7 to 28 times ipamd's (a quiet machine: 6); so 2 is a change of
    the design, not noise. The ratio to the floor is no guard: there the fastest of 30 to 60 was 3 to 13 times the floor's,
    as the floor needs one quiet moment and an ADD three in a row. It is for ``make bench`` on a quiet machine.
    """
    if host_local() is None and not os.environ.get("CI"):
        pytest.skip("needs host-local: install containernetworking-plugins")
    output = tmp_path / "bench.md"
    subprocess.run([sys.executable, "-m", "tests.bench", "--quick", "--output", output], check=True, timeout=110)
    written = msgspec.json.decode(output.with_suffix(".json").read_bytes())
    figures = msgspec.convert(written["figures"], Figures)
    assert [each.store for each in figures.comparisons] == list(STORES)
    assert [load.store for load in figures.loads] == list(STORES)
    assert all(row in output.read_text() for row in ("| ipamd |", "| C echo server (floor) |", "| host-local |"))
    assert max(each.host_local.add.min / each.ipamd.add.min for each in figures.comparisons) >= 2, output.read_text()


async def test_what_pods_cost_the_store_is_counted(autojump_clock):
    """30 ADDs: no call on the way, then one transaction of block, reserve and 30 handles; the same for their DELs.

    Exactly, under a virtual clock: a count has no noise. In bytes, at most what a block of 64 and its handles need.
    """
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "192.168.0.0/16"))
    async with Node("n1", store, ReservePolicy(minimum=40)).running() as node:
        await trio.sleep(1)
        calls, before = dict(store.calls), len(store.commits)
        for number in range(30):
            await node.add(add_request(f"c{number:02}"))
        assert store.calls == calls
        await node.flushed()
        for number in range(30):
            node.delete(f"c{number:02}")
        deleting = len(store.commits)
        await trio.sleep(5)
    assert deleting == before + 1
    assert [len(changes) for (changes,) in store.commits[before:]] == [1 + 1 + 30] * 2
    written = [sum(len(change.value or b"") for change in changes) for (changes,) in store.commits[before:]]
    assert written[0] <= 30 * 300
    assert written[1] <= 2000
