"""What a node costs does not depend on how many there are: the same code as ``make scale``, at smaller sizes.

Beside it what the plot is drawn with.
"""

import xml.etree.ElementTree as ET

import pytest
import trio
from trio.testing import MockClock

from tests.core.cluster import Cluster
from tests.scale.clusters import Run, Scenario, claiming, crowding, run_calico, run_ipamd
from tests.scale.plot import Chart, svg

SIZES = (50, 200, 800)


def run(scenario: Scenario) -> Run:
    """Run the daemons of a scenario under a clock of their own."""
    return trio.run(run_ipamd, scenario, clock=MockClock(autojump_threshold=0))


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Clusters of 50, 200 and 800 nodes, all of which claim at once."""
    return [run(claiming(nodes)) for nodes in SIZES]


def sound(done: Run) -> None:
    """Each pod has an address of its own, and the store counts what it has."""
    cluster = Cluster()
    cluster.records = {key: record for key, record in done.store.records.items() if b'"others"' not in record.value}
    assert cluster.handles() == cluster.counted()
    pods = {handle: count for handle, count in done.owners.items() if handle.startswith("k8s-pod-network.")}
    assert len(pods) == done.scenario.nodes * done.scenario.pods == done.pods
    assert set(pods.values()) == {1}


def test_the_watch_traffic_of_a_node_does_not_depend_on_the_number_of_nodes(runs: list[Run]) -> None:
    """A node is told of its own affinity, its reserve (twice) and its block, however many others do the same."""
    for done in runs:
        assert {tally.events for tally in done.tallies} == {4}


def test_a_claim_costs_the_same_in_a_cluster_of_any_size(runs: list[Run]) -> None:
    """Less than two transactions a claim on average and few conflicts; no node reads another's records to claim."""
    for done in runs:
        nodes = done.scenario.nodes
        assert done.total(lambda tally: tally.claims) == nodes
        assert done.total(lambda tally: tally.meter.calls["commit"]) < 2.5 * nodes  # one of them flushes the pod
        assert done.total(lambda tally: tally.meter.conflicts) < 0.5 * nodes
        assert done.total(lambda tally: tally.meter.values) < 5 * nodes
        assert done.total(lambda tally: tally.refused) == 0


def test_all_who_claim_at_once_are_served_soon(runs: list[Run]) -> None:
    """The last of them waits for a few dozen calls of the store, not for a share of all others' calls."""
    for done in runs:
        assert done.seconds[-1] < 0.2


def test_what_the_store_holds_in_the_end_is_right(runs: list[Run]) -> None:
    """Each pod has one address, no two the same, and 90 % of the pool's blocks are taken."""
    for done in runs:
        sound(done)
        taken = sum("/block/" in key and "/assignment/" in key for key in done.store.records)
        assert taken == done.scenario.blocks * 9 // 10


def test_a_crowded_pool_serves_all_without_a_storm() -> None:
    """Two nodes for each block, all pods at once until 97 % are in use: all are served, and few transactions lost."""
    done = run(crowding(50))
    sound(done)
    assert done.scenario.addresses * 0.97 < done.pods
    assert done.total(lambda tally: tally.refused) == 0
    assert done.total(lambda tally: tally.meter.conflicts) < done.pods


def test_calicos_algorithm_runs_in_the_same_model() -> None:
    """The comparison is of the same pods in the same pool: each gets an address, one block a node."""
    done = trio.run(run_calico, claiming(50), clock=MockClock(autojump_threshold=0))
    sound(done)
    assert done.total(lambda tally: tally.claims) == 50


def test_a_chart_is_an_image_with_all_its_points() -> None:
    """Well-formed SVG: a mark for each value, inside the picture, a legend and the texts escaped."""
    chart = Chart("a < b", "nodes", "bytes", {"one": [(50, 3), (10_000, 900)], "two": [(50, 0.5)]})
    root = ET.fromstring(svg([chart]))  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    marks = list(root.iter(f"{name}circle"))
    assert len(marks) == 3
    assert all(0 < float(mark.attrib["cx"]) < 520 and 0 < float(mark.attrib["cy"]) < 340 for mark in marks)
    assert {"a < b", "one", "two", "nodes", "bytes"} <= {text.text for text in root.iter(f"{name}text")}
