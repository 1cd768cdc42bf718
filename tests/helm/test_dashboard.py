"""The dashboard: made of its panels, its queries run in a real Prometheus, or by promtool on series of a cluster in trouble."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.helm.dashboard import build
from tests.helm.prometheus import NODES, PANELS, Prometheus, named, promtool
from tests.helm.screenshot import TITLES
from tests.helm.test_rules import GROUP, documented

ROOT = Path(__file__).resolve().parent.parent.parent
TROUBLE = msgspec.yaml.decode(Path(__file__).with_name("dashboard_test.yaml").read_bytes())
LINES = {(panel["title"], line["legendFormat"]): line for panel in PANELS for line in panel["targets"]}
QUERIES = {key: line["expr"].replace("$instance", ".*").replace("$pool", ".*") for key, line in LINES.items()}
MAY_BE_EMPTY = {panel["title"] for panel in PANELS if "noValue" in panel["fieldConfig"]["defaults"]}
"""Panels that say so of themselves."""


def test_it_is_up_to_date() -> None:
    """``make pages`` makes it, the same each time."""
    assert build.FILE.read_text() == build.text(), "dashboard.json is out of date: run `make pages`"


def test_every_metric_has_its_place() -> None:
    """What the dashboard asks for exists, and no metric is exposed that neither a panel nor a rule asks for."""
    asked = set().union(*map(named, QUERIES.values()), *(named(rule["expr"]) for rule in GROUP["rules"]))
    assert asked == documented()


def test_panels_are_told_apart() -> None:
    """No title twice, no line twice in a panel, none without a unit, none over another."""
    assert len(PANELS) == len({panel["title"] for panel in PANELS})
    assert len(LINES) == sum(len(panel["targets"]) for panel in PANELS)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in PANELS
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23


def test_only_what_is_of_now_chooses_among_nodes() -> None:
    """The first ten are others from one minute to the next: over hours they would be lines without end."""
    for line in LINES.values():
        assert line["instant"] != line["range"]
        assert line["instant"] or "topk" not in line["expr"].replace("bottomk", "topk")


def test_the_picture_of_the_documentation_shows_panels_of_it() -> None:
    """It can be taken again (``python -m tests.helm.screenshot``), and costs a reader little."""
    assert set(TITLES) <= {panel["title"] for panel in PANELS}
    picture = (ROOT / "docs" / "pictures" / "dashboard.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) < 200_000


def test_a_cluster_in_trouble_is_seen(tmp_path: Path) -> None:
    """Recorded series: each panel that is empty while all is well shows what is wrong, on which node, and nothing else."""
    assert set(TROUBLE["shows"]) >= MAY_BE_EMPTY
    cases: list[dict[str, Any]] = [
        {
            "expr": QUERIES[title, legend],
            "eval_time": TROUBLE["at"],
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
        }
        for title, lines in TROUBLE["shows"].items()
        for legend, samples in lines.items()
    ]
    test = {key: TROUBLE[key] for key in ("name", "interval")} | {"input_series": TROUBLE["series"]}
    file = tmp_path / "dashboard_test.yaml"
    file.write_bytes(msgspec.yaml.encode({"tests": [test | {"promql_expr_test": cases}]}))
    promtool("test", "rules", str(file))


@pytest.mark.real
@pytest.mark.parametrize("line", [key for key in QUERIES if key[0] not in MAY_BE_EMPTY], ids=" - ".join)
def test_every_line_finds_something(prometheus: Prometheus, line: tuple[str, str]) -> None:
    """Each panel would show numbers while nodes are under a little load, and never as many lines as there are nodes."""
    prometheus.load(lambda: prometheus.value(QUERIES[line]) is not None)
    assert len(prometheus.ask(QUERIES[line]) or ()) < NODES
