"""Recording rules, alerts and dashboard: checked by promtool, run in a real Prometheus that scrapes a real daemon."""

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.daemon_process import POOLS, Daemon, wait_for
from tests.systemd.service_manager import missing

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ROOT / "helm" / "ipamd" / "files"
RULES = FILES / "rules.yaml"
TESTS = ROOT / "tests" / "helm" / "rules_test.yaml"
(GROUP,) = msgspec.yaml.decode(RULES.read_bytes())["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in GROUP["rules"] if "record" in rule}
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


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
    assert {name for name in documented() if ":" in name and not name.endswith(("_bucket", "_sum", "_count"))} == set(
        RECORDED
    )


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus with our rules, which has scraped a daemon a few times; ADDs go on meanwhile."""
    if shutil.which("prometheus") is None:
        missing("cannot run the dashboard's queries without prometheus; install it (tests/system.sh)")
    directory = tmp_path_factory.mktemp("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        scraped, own = one.getsockname()[1], other.getsockname()[1]
    shutil.copy(RULES, directory)
    job = {"job_name": "ipamd", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yaml"]}
    (directory / "prometheus.yml").write_bytes(msgspec.yaml.encode({**config, "scrape_configs": [job]}))
    flags = (*POOLS, "--metrics-address", f"127.0.0.1:{scraped}")
    command = [
        "prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
    ]  # fmt: skip
    with Daemon(directory / "d", "node-a", *flags) as daemon, (directory / "log").open("wb") as log:
        daemon.add("first")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{own}"
            adds = iter(range(1_000_000))

            def scraped_often() -> bool:
                daemon.post("ADD", f"c{next(adds)}")
                found = ask(address, "count_over_time(ipamd_ready[1m])") if process.poll() is None else None
                return bool(found) and float(found[0]["value"][1]) > 5

            wait_for(scraped_often, 60, lambda: (directory / "log").read_text()[-3000:])
            yield address
        finally:
            process.kill()
            process.wait()


def ask(address: str, expression: str) -> list[dict[str, Any]] | None:
    """What Prometheus answers to an expression, now; None if it does not listen yet."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=10) as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
            return result
    except OSError:
        return None


EMPTY = {"ipamd:pool_exhaustion:seconds", "ipamd_range_addresses"}
"""What a daemon that is seconds old, or serves no ranges, has nothing for."""


@pytest.mark.real
def test_every_query_of_the_dashboard_finds_something(prometheus: str) -> None:
    """Each panel would show a line."""
    for query in QUERIES:
        found = ask(prometheus, query.replace("$instance", ".*").replace("$pool", ".*"))
        assert found or named(query) & EMPTY, query


@pytest.mark.real
def test_a_healthy_node_raises_no_alert(prometheus: str) -> None:
    """None is pending either, once what the ADDs at its start took from the reserve is there again."""
    wait_for(lambda: ask(prometheus, "ALERTS") == [], 30)
