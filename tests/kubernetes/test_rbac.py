"""What the documentation says that the API must allow is what is asked of it, and nothing more."""

import re
from pathlib import Path

import msgspec
import trio
from trio.testing import MockClock

from tests.kubernetes.wire import NODE, Wire, until
from tests.kubernetes_server import ApiServer, namespace, node, pod

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "cni.md"


async def test_the_documented_role_allows_what_is_asked_for(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Lists, watches, gets by name: each has its rule, and no rule is left over."""
    found = re.search(r"^```yaml\n(.*?kind: ClusterRole.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    role = msgspec.yaml.decode(found[1])
    assert [rule["apiGroups"] for rule in role["rules"]] == [[""], [""]]
    allowed = {f"{verb} {what}" for rule in role["rules"] for what in rule["resources"] for verb in rule["verbs"]}
    server = ApiServer(namespace("default"), pod("web", "u1"), node(NODE, "10.1.0.0/24"))
    wire = Wire(server, nursery)
    await wire.cluster().fetch("default", "web", "u1")
    async with wire.running() as cluster:
        await until(cluster.pod_cidrs)
    assert {call.kind for call in server.calls} == allowed
