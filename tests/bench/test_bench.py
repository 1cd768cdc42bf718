"""The benchmark guards itself: it measures what it says, and the plugin is not an order slower than it was.

Only ratios of times that were measured by turns in one run are asserted, and wide ones: a test machine is busy.
"""

import itertools
import os
import subprocess
import sys

import msgspec
import pytest

from tests.bench import report
from tests.bench.figures import STORES, Comparison, Figures, Load, Processes, Spread, spread
from tests.bench.loads import CONNECTIONS
from tests.bench.processes import host_local
from tests.bench.programs import compile_programs, run_program


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The benchmark's programs, compiled."""
    directory = tmp_path_factory.mktemp("programs")
    compile_programs(directory)
    return directory


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    """Percentiles are measured values, by nearest rank, whatever the order of the series."""
    assert spread(range(100, 0, -1)) == Spread(100, 50, 90, 99, 100)
    assert spread([7]) == Spread(1, 7, 7, 7, 7)


def test_the_verdict_is_each_store_s_own():
    """A goal that one store meets and the other misses is shown as both."""
    fast, slow = _comparison("embedded", add=300), _comparison("etcd", add=400)
    one = Spread(1, 1, 1, 1, 1)
    loads = [Load("embedded", 1, 9_999.0, 1.0, 1.0, one, one), Load("embedded", 8, 10_000.0, 1.0, 1.0, one, one)]
    verdict = [goal.met for goal in report.goals(Figures({}, [fast, slow], loads))]
    assert verdict == [True, True, False, False, True]


def _comparison(store, *, add):
    def lane(nanoseconds):
        each = Spread(1, *[nanoseconds] * 4)
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
    """All rows are there; an ADD is at least 3 times as fast as host-local's and at most 4 times the floor."""
    if host_local() is None and not os.environ.get("CI"):
        pytest.skip("needs host-local: install containernetworking-plugins")
    output = tmp_path / "bench.md"
    subprocess.run([sys.executable, "-m", "tests.bench", "--quick", "--output", output], check=True, timeout=110)
    written = msgspec.json.decode(output.with_suffix(".json").read_bytes())
    figures = msgspec.convert(written["figures"], Figures)
    assert [each.store for each in figures.comparisons] == list(STORES)
    assert [(load.store, load.connections) for load in figures.loads] == list(itertools.product(STORES, CONNECTIONS))
    assert all(row in output.read_text() for row in ("| ipamd |", "| C echo server (floor) |", "| host-local |"))
    # Of the better store: with cold caches and a noisy neighbour the daemon's share of an ADD doubles for a while.
    assert max(map(report.faster, figures.comparisons)) >= 3, output.read_text()
    assert min(map(report.above_floor, figures.comparisons)) <= 4, output.read_text()
