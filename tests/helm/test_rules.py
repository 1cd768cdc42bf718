"""Recording rules and alerts: checked by promtool, run in a real Prometheus that scrapes a real daemon."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from tests.daemon_process import wait_for
from tests.helm.prometheus import RULES, Prometheus, named, promtool

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests" / "helm" / "rules_test.yaml"
(GROUP,) = msgspec.yaml.decode(RULES.read_bytes())["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in GROUP["rules"] if "record" in rule}


def documented() -> set[str]:
    """The metrics of the page, which another test compares with the daemon's."""
    return set(re.findall(r"`(ipamd[\w:]+)`", (ROOT / "docs" / "metrics.md").read_text()))


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
    """Rules name metrics that the daemon has, and recorded ones that are recorded; all of these are listed."""
    asked = set().union(*(named(rule["expr"]) for rule in GROUP["rules"]))
    assert asked <= documented()
    page = (ROOT / "docs" / "metrics.md").read_text().partition("\n## Of all nodes together\n")[2]
    assert re.findall(r"^\| `([\w:]+)` \|", page, re.MULTILINE) == list(RECORDED)


@pytest.mark.real
def test_a_healthy_node_raises_no_alert(prometheus: Prometheus) -> None:
    """None is pending either, once what the ADDs at its start took from the reserve is there again."""
    wait_for(lambda: prometheus.ask("ALERTS") == [], 30)


@pytest.mark.real
def test_prometheus_keeps_the_containers_that_buckets_name(prometheus: Prometheus) -> None:
    """It asks for OpenMetrics by itself, and takes what the daemon says there of its own requests."""
    query = 'ipamd_request_duration_seconds_bucket{verb="ADD",instance="10.0.0.0:9178"}'
    prometheus.load(lambda: bool(prometheus.exemplars(query)))
    found = [each for series in prometheus.exemplars(query) for each in series["exemplars"]]
    assert all(re.fullmatch(r"[cr]\d+", each["labels"]["container"]) for each in found)
    assert all(0 < float(each["value"]) < 60 for each in found)
