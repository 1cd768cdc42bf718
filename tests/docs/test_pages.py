"""The pages of tasks, each worked through on real daemons: every command does what the page says."""

import json

import pytest

from tests.daemon_process import wait_for
from tests.docs.conftest import Cluster
from tests.docs.walk import plain, same

pytestmark = pytest.mark.real

V4 = ("--default-pools-ipv4-cidr", "192.168.0.0/16")


def test_what_a_page_shows_is_compared_with_what_was_printed() -> None:
    """The comparison bites, and knows what may differ."""
    same("A  B\n...\nC at 2026-11-21T21:39:57Z\n", "A B\nx\ny\nC at 2025-01-02T03:04:05Z\n")
    for printed in ("A B\nC\n", "A\nx\nC at 2025-01-02T03:04:05Z\n"):
        with pytest.raises(AssertionError):
            same("A  B\n...\nC at 2026-11-21T21:39:57Z\n", printed)
    assert plain("a\t b \n\n") == "a b\n"


def test_the_api(cluster: Cluster) -> None:
    """The routes by hand, of reference/api.md."""
    node = cluster.start("node-a", *V4)
    node.add("web-1")
    wait_for(lambda: node.get("/v1/allocations")[0]["flushed"])
    with cluster.walk("reference/api.md") as page:
        assert "/v1/pools" in page.run()
        page.run(2)
        assert json.loads(page.run().partition("\n}")[0] + "}")["ips"][0]["address"] == "192.168.67.65/32"
        assert '"pod": "default/web-1"' in page.run()
        assert '"kind": "add"' in page.run()
