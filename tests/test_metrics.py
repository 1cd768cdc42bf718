"""The histograms and counters of requests, as Prometheus reads them."""

import pytest

from ipamd.api.steps import Stages
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from ipamd.metrics import Metrics

US = 1000


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
