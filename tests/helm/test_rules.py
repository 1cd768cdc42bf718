"""Recording rules, alerts and dashboard: checked by promtool, run in a real Prometheus that scrapes a real daemon."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.daemon_process import wait_for
from tests.helm import dashboard
from tests.helm.prometheus import PANELS, RULES, Prometheus
from tests.helm.screenshot import TITLES
from tests.systemd.service_manager import missing

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests" / "helm" / "rules_test.yaml"
(GROUP,) = msgspec.yaml.decode(RULES.read_bytes())["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in GROUP["rules"] if "record" in rule}
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def documented() -> set[str]:
    """The metrics of the page, which another test compares with the daemon's, and what Prometheus makes of histograms."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = set(re.findall(r"`(ipamd[\w:]+)`", page))
    return names | {f"{name}_{part}" for name in names for part in ("bucket", "sum", "count")}


def named(expression: str) -> set[str]:
    """The metrics in an expression."""
    return set(re.findall(r"\bipamd[\w:]+", expression))


def promtool(*arguments: str) -> None:
    """Run promtool, which must be content."""
    if shutil.which("promtool") is None:
        missing("cannot check the rules without promtool; install prometheus (tests/system.sh)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_the_rules() -> None:
    """Syntax, templates of the texts, no rule twice."""
    promtool("check", "rules", str(RULES))


def test_each_rule_does_what_its_test_says(tmp_path: Path) -> None:
    """Recorded series through promtool's own unit tests."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(TESTS, tmp_path)
    promtool("test", "rules", str(tmp_path / TESTS.name))


def test_each_alert_is_seen_to_fire() -> None:
    """The unit tests have a cause for each."""
    cases = [case for each in msgspec.yaml.decode(TESTS.read_bytes())["tests"] for case in each["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)


def test_each_alert_has_its_page() -> None:
    """The annotation leads to a heading of the page, and no heading is left of an alert that is gone."""
    page = (ROOT / "docs" / "operations.md").read_text().partition("\n## Alerts\n")[2]
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_what_is_asked_for_exists() -> None:
    """Rules and dashboard name metrics that the daemon has, and recorded ones that are recorded; all of these are listed."""
    asked = set().union(*(named(rule["expr"]) for rule in GROUP["rules"]), *map(named, QUERIES))
    assert asked <= documented()
    page = (ROOT / "docs" / "metrics.md").read_text().partition("\n## Of all nodes together\n")[2]
    assert re.findall(r"^\| `([\w:]+)` \|", page, re.MULTILINE) == list(RECORDED)


def test_the_picture_of_the_documentation_shows_panels_of_the_dashboard() -> None:
    """It can be taken again (``python -m tests.helm.screenshot``), and costs a reader little."""
    assert set(TITLES) <= {panel["title"] for panel in PANELS}
    picture = (ROOT / "docs" / "pictures" / "dashboard.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) < 200_000


def test_the_dashboard_is_up_to_date() -> None:
    """``make pages`` makes it, the same each time."""
    assert dashboard.FILE.read_text() == dashboard.text(), "dashboard.json is out of date: run `make pages`"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our rules, which has scraped a daemon a few times; ADDs went on meanwhile."""
    if shutil.which("prometheus") is None:
        missing("cannot run the dashboard's queries without prometheus; install it (tests/system.sh)")
    with Prometheus(tmp_path_factory.mktemp("prometheus")) as started:
        started.load(lambda: (started.value("count_over_time(ipamd_ready[1m])") or 0) > 5)
        yield started


@pytest.mark.real
@pytest.mark.parametrize("query", dict.fromkeys(QUERIES))
def test_every_query_of_the_dashboard_finds_something(prometheus: Prometheus, query: str) -> None:
    """Each panel would show a line, of numbers, while a node is under a little load."""
    query = query.replace("$instance", ".*").replace("$pool", ".*")
    prometheus.load(lambda: prometheus.value(query) is not None)


@pytest.mark.real
def test_a_healthy_node_raises_no_alert(prometheus: Prometheus) -> None:
    """None is pending either, once what the ADDs at its start took from the reserve is there again."""
    wait_for(lambda: prometheus.ask("ALERTS") == [], 30)
