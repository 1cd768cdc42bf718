"""A Prometheus for the tests of rules and dashboard."""

import shutil
from collections.abc import Iterator

import pytest

from tests.helm.prometheus import NODES, Prometheus
from tests.systemd.service_manager import missing


@pytest.fixture(scope="module")  # not longer: it scrapes the daemon 25 times a second, beside all other tests
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our rules, which has scraped a daemon a few times, as so many nodes; ADDs went on meanwhile."""
    if shutil.which("prometheus") is None:
        missing("cannot run the dashboard's queries without prometheus; install it (tests/system.sh)")
    with Prometheus(tmp_path_factory.mktemp("prometheus"), NODES) as started:
        started.load(lambda: (started.value("count_over_time(ipamd_ready[1m])") or 0) > 5)
        yield started
