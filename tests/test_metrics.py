"""The histograms and counters of requests, as Prometheus reads them."""

import re
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ipamd.api.steps import Stages
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from ipamd.metrics import _TEXTS, Metrics

US = 1000
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


@pytest.fixture
def metrics():
    """The metrics of a daemon that served nobody yet."""
    return Metrics(Ledger("node-a", ReservePolicy()), dict)


def read(metrics, name, **labels):
    """The value of one series."""
    return metrics.registry.get_sample_value(f"ipamd_{name}", labels)


@pytest.mark.parametrize("requests", [1, 255, 256, 257, 1000])
def test_every_request_that_is_over_is_counted(metrics, requests):
    """However many there were, and although they are counted together."""
    for number in range(requests):
        metrics.request(Stages("ADD", 0, total=30 * US), 11 if number == 0 else 0)
    assert read(metrics, "requests_total", verb="ADD", code="11") == 1
    assert (read(metrics, "requests_total", verb="ADD", code="0") or 0) == requests - 1
    assert read(metrics, "request_duration_seconds_count", verb="ADD") == requests
    assert read(metrics, "request_duration_seconds_sum", verb="ADD") == pytest.approx(requests * 30e-6)
    assert read(metrics, "request_duration_seconds_bucket", verb="ADD", le="2.5e-05") == 0
    assert read(metrics, "request_duration_seconds_bucket", verb="ADD", le="5e-05") == requests


def test_verbs_are_told_apart_and_others_are_one(metrics):
    """A client cannot make series without end by verbs that it invents."""
    for verb in ("ADD", "DEL", "DEL", "PUSH", "?"):
        metrics.request(Stages(verb, 0, total=US), 0)
    counts = {verb: read(metrics, "request_duration_seconds_count", verb=verb) for verb in ("ADD", "DEL", "other")}
    assert counts == {"ADD": 1, "DEL": 2, "other": 2}
    assert read(metrics, "requests_total", verb="PUSH", code="0") is None


def test_a_stage_that_did_not_happen_is_not_counted(metrics):
    """Of two ADDs one waited: the histogram of waits has one, and none of zero seconds."""
    metrics.request(Stages("ADD", 0, total=US, queue=40 * US, decide=5 * US), 0)
    metrics.request(Stages("ADD", 0, total=US, queue=40 * US, wait=2_000_000 * US), 0)
    counts = {
        stage: (
            read(metrics, "request_stage_duration_seconds_bucket", stage=stage, le="1e-05"),
            read(metrics, "request_stage_duration_seconds_count", stage=stage),
        )
        for stage in ("queue", "decide", "journal", "wait")
    }
    assert counts == {"queue": (0, 2), "decide": (1, 1), "journal": (0, 0), "wait": (0, 1)}


def test_what_is_read_twice_is_not_counted_twice(metrics):
    """A scrape takes nothing from the next one, and adds nothing to it."""
    metrics.request(Stages("ADD", 0, total=US), 0)
    assert [read(metrics, "requests_total", verb="ADD", code="0") for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("accept", "format_"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=0.0.4"),
        ("text/plain; version=1e999", "text/plain; version=0.0.4"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
        (
            "text/html, Application/OpenMetrics-Text ;version=0.0.1;q=0.75",
            "application/openmetrics-text; version=1.0.0",
        ),
        ("application/openmetrics-text; version=x; charset=\u2603", "application/openmetrics-text; version=1.0.0"),
        (",;,;;=application/openmetrics-text", "text/plain; version=0.0.4"),
    ],
)
def test_who_accepts_openmetrics_gets_it(metrics, accept, format_):
    """Everybody else the older format; whatever a client writes there is neither an error nor in the answer."""
    metrics.request(Stages("ADD", 0, total=US), 0)
    content_type, body = metrics.exposition(accept)
    assert content_type.startswith(f"{format_}; charset=utf-8")
    assert b'ipamd_requests_total{code="0",verb="ADD"} 1.0\n' in body
    assert body.endswith(b"# EOF\n") == ("openmetrics" in format_)


def exemplars(metrics):
    """Container and seconds of the buckets that name one, by verb and bound, as the parser of OpenMetrics reads them."""
    content_type, body = metrics.exposition(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    samples = [each for family in text_string_to_metric_families(body.decode()) for each in family.samples]
    assert all(each.name == "ipamd_request_duration_seconds_bucket" for each in samples if each.exemplar)
    return {
        (each.labels["verb"], each.labels["le"]): (each.exemplar.labels["container"], each.exemplar.value)
        for each in samples
        if each.exemplar
    }


def test_a_bucket_names_the_container_of_its_last_request(metrics):
    """Who sees a slow bucket finds the pod; each request is in one bucket only, however much the counts add up."""
    for container, total in (("first", 30 * US), ("slow", 7_000_000 * US), ("second", 40 * US)):
        metrics.request(Stages("ADD", 0, total=total, container=container), 0)
    metrics.request(Stages("DEL", 0, total=40 * US, container="first"), 0)
    expected = {("ADD", "5e-05"): ("second", 4e-05), ("ADD", "10.0"): ("slow", 7.0), ("DEL", "5e-05"): ("first", 4e-05)}
    assert exemplars(metrics) == expected
    metrics.request(Stages("ADD", 0, total=30 * US, container="third"), 0)
    assert exemplars(metrics) == {**expected, ("ADD", "5e-05"): ("third", 3e-05)}


def test_an_exemplar_is_of_when_the_request_was_counted(metrics):
    """Without that time Prometheus would take an old one for new at its next start."""
    began = time.time()
    metrics.request(Stages("ADD", 0, total=US, container="c"), 0)
    (stamp,) = re.findall(rb'# \{container="c"\} \S+ (\S+)\n', metrics.exposition(OPENMETRICS)[1])
    assert began - 0.001 <= float(stamp) <= time.time() + 0.001
    assert stamp in metrics.exposition(OPENMETRICS)[1], "it stays when nothing is new"


def test_an_exemplar_is_no_longer_than_openmetrics_allows(metrics):
    """128 characters of names and values; a longer container id does not put the one that was there out of its place."""
    longest = "c" * (128 - len("container"))
    for container in (longest, longest + "c", "c" * 1024, ""):
        metrics.request(Stages("ADD", 0, total=US, container=container), 0)
        assert exemplars(metrics) == {("ADD", "1e-05"): (longest, 1e-06)}


def test_the_text_format_has_no_exemplars(metrics):
    """It knows none: a line with one could not be read."""
    metrics.request(Stages("ADD", 0, total=US, container="c"), 0)
    for accept in ("", "text/plain; version=0.0.4"):
        content_type, body = metrics.exposition(accept)
        assert content_type.startswith("text/plain")
        assert b'container="' not in body
        assert b" # " not in body.replace(b"# HELP", b"").replace(b"# TYPE", b"")


def test_each_metric_is_documented_with_type_and_labels():
    """The page's table says of each what the daemon exposes, and for each what it means and which question it answers."""
    rows = re.findall(r"^\| `(ipamd_\w+)` \| (\w+) \| (.*?) \| (.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    table = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _meaning, _answers in rows}
    assert all(answers.endswith("?") for *_, answers in rows)
    exposed = {}
    for family in Metrics(Ledger("node-a", ReservePolicy()), lambda: dict.fromkeys(_TEXTS, 0.0)).registry.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type  # as the text format has it, and Prometheus
        labels = family.samples[0].labels if family.samples else getattr(family, "_labelnames", ())
        exposed[family.name + suffix] = (kind, tuple(label for label in labels if label != "le"))
    assert table == exposed


def test_no_page_speaks_of_a_metric_that_is_not_there():
    """What an operator reads in the middle of the night exists."""
    pages = "\n".join(path.read_text() for path in PAGE.parent.rglob("*.md"))
    named = set(re.findall(r"\bipamd_[a-z_]+(?:_total|_seconds|_addresses|_bytes|_info|_facts)\b", pages))
    known = set(re.findall(r"^\| `(ipamd_\w+)`", PAGE.read_text(), re.MULTILINE))
    assert named - known - {"ipamd_requests"} == set()
