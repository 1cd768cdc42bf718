"""What a node knows of its pods: from list and watch, through everything an API server may do to them."""

import json

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ipamd.core.errors import Code, RefusedError
from ipamd.core.pod import ADDRESSES, POOLS, PodFacts
from tests.kubernetes.wire import NODE, Wire, until
from tests.kubernetes_server import ApiServer, Fault, namespace, node, pod


@pytest.fixture
def server() -> ApiServer:
    """One node of a cluster with a pod and its namespace."""
    return ApiServer(namespace("default"), pod("web", "u1", named("pool-a")), node(NODE, "10.1.0.0/24", "fd00:1::/64"))


@pytest.fixture
async def wire(server: ApiServer, nursery: trio.Nursery) -> Wire:
    """The way to it."""
    return Wire(server, nursery)


def named(*pools: str) -> dict[str, str]:
    """The annotation that names IPv4 pools."""
    return {POOLS[4]: json.dumps(list(pools))}


def pools_of(facts: PodFacts | None) -> tuple[str, ...] | None:
    """The IPv4 pools that annotations name; None if the pod is not known."""
    return None if facts is None else facts.pools.get(4, ())


# --- memory ---------------------------------------------------------------------------------------------------


async def test_a_pod_is_known_from_the_list_with_its_namespace(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Annotations and namespace labels are there without another call, and nothing of other nodes' pods is."""
    server.put(pod("far", "u2", named("pool-b"), node="node-b"))
    server.put(namespace("default", named("pool-n"), team="blue"))
    async with wire.running() as cluster:
        calls = len(server.calls)
        facts = cluster.pod("default", "web", "u1")
        assert facts is not None
        assert facts.pools == {4: ("pool-a",)}
        assert facts.namespace_labels == {"kubernetes.io/metadata.name": "default", "team": "blue"}
        assert cluster.pod("default", "far", "u2") is None
        assert cluster.status()["pods"] == 1
        assert len(server.calls) == calls


async def test_changes_arrive_by_the_watch(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """Pods that come, change and go, on this node only; nothing is listed again."""
    async with wire.running() as cluster:
        server.put(pod("new", "u2", named("pool-b")))
        server.put(pod("far", "u3", named("pool-b"), node="node-b"))
        server.put(pod("web", "u1", named("pool-c")))
        await until(lambda: pools_of(cluster.pod("default", "web", "u1")) == ("pool-c",))
        assert pools_of(cluster.pod("default", "new", "u2")) == ("pool-b",)
        assert cluster.pod("default", "far", "u3") is None
        server.delete("pods", "new", "default")
        await until(lambda: cluster.pod("default", "new", "u2") is None)
        assert (server.count("list pods"), server.count("list namespaces")) == (1, 1)


async def test_a_namespaces_change_reaches_its_pods(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """Annotation and labels of a namespace count for the pods that are known already, and for no others."""
    server.put(namespace("other"))
    server.put(pod("plain", "u2"))
    server.put(pod("plain", "u3", namespace="other"))
    async with wire.running() as cluster:
        assert pools_of(cluster.pod("default", "plain", "u2")) == ()
        server.put(namespace("default", named("pool-n"), team="red"))
        await until(lambda: pools_of(cluster.pod("default", "plain", "u2")) == ("pool-n",))
        facts = cluster.pod("default", "plain", "u2")
        assert facts is not None
        assert facts.namespace_labels["team"] == "red"
        assert pools_of(cluster.pod("default", "web", "u1")) == ("pool-a",)
        assert pools_of(cluster.pod("other", "plain", "u3")) == ()
        server.delete("namespaces", "other")
        await until(lambda: cluster.pod("other", "plain", "u3") is None)


async def test_a_pod_is_known_by_its_uid_only(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """A namesake is not it, before and after its successor came; without a uid nobody is known."""
    async with wire.running() as cluster:
        assert cluster.pod("default", "web", "u9") is None
        assert cluster.pod("default", "web", "") is None
        server.delete("pods", "web", "default")
        server.put(pod("web", "u9", named("pool-z")))
        await until(lambda: pools_of(cluster.pod("default", "web", "u9")) == ("pool-z",))
        assert cluster.pod("default", "web", "u1") is None


async def test_who_asks_why_finds_a_pod_by_its_name(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """Whatever its uid, from memory; one of another node, or of a namespace that is not known, is not found."""
    server.put(pod("far", "u2", node="node-b"))
    server.put(pod("lost", "u3", namespace="nowhere"))
    async with wire.running() as cluster:
        calls = len(server.calls)
        assert cluster.find("default", "web") == cluster.pod("default", "web", "u1")
        assert pools_of(cluster.find("default", "web")) == ("pool-a",)
        assert cluster.find("default", "far") is None
        assert cluster.find("nowhere", "lost") is None
        assert cluster.find("default", "none") is None
        assert len(server.calls) == calls


async def test_a_static_pod_is_known_by_the_kubelets_uid(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """The API has a static pod's mirror, under a uid of its own; the runtime says the kubelet's."""
    server.put(pod("proxy", "u2", {"kubernetes.io/config.mirror": "hash", **named("pool-b")}))
    async with wire.running() as cluster:
        assert pools_of(cluster.pod("default", "proxy", "hash")) == ("pool-b",)
        assert pools_of(cluster.pod("default", "proxy", "u2")) == ("pool-b",)
        server.delete("pods", "proxy", "default")
        await until(lambda: cluster.pod("default", "proxy", "hash") is None)


async def test_a_static_pod_that_changes_is_known_by_its_new_uid_alone(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """The kubelet runs another manifest under the same name: its mirror says another hash."""
    server.put(pod("proxy", "u2", {"kubernetes.io/config.mirror": "old"}))
    async with wire.running() as cluster:
        server.put(pod("proxy", "u2", {"kubernetes.io/config.mirror": "new"}))
        await until(lambda: cluster.pod("default", "proxy", "new") is not None)
        assert cluster.pod("default", "proxy", "old") is None


async def test_little_is_kept_of_an_object(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """Of a pod's annotations only those that decide an address, and no labels."""
    server.put(pod("big", "u2", {"note": "x" * 100_000, ADDRESSES: '["10.0.0.9"]'}))
    async with wire.running() as cluster:
        kept = cluster._memory.pods["default", "big"]
        assert (kept.annotations, kept.labels) == ({ADDRESSES: '["10.0.0.9"]'}, {})
        facts = cluster.pod("default", "big", "u2")
        assert facts is not None
        assert facts.addresses == {4: 0x0A000009}


async def test_an_annotation_may_hold_any_character(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """What Unicode calls a line end is not the end of an event."""
    text = "a\u0085b\u2028c\u000bd"
    async with wire.running() as cluster:
        server.put(pod("odd", "u2", {"note": text, **named(text)}))
        await until(lambda: cluster.pod("default", "odd", "u2") is not None)
        assert pools_of(cluster.pod("default", "odd", "u2")) == (text,)
        assert server.count("watch pods") == 1


# --- what an API server may do --------------------------------------------------------------------------------


async def test_a_cut_watch_is_resumed_where_it_was(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """What happened meanwhile arrives, and nothing is listed again."""
    async with wire.running() as cluster:
        await wire.cut()
        server.put(pod("new", "u2"))
        server.delete("pods", "web", "default")
        await until(lambda: not cluster.connected)
        assert cluster.pod("default", "web", "u1") is not None, "known pods are served while the API is away"
        wire.away = False
        await until(lambda: cluster.connected)
        await until(lambda: cluster.pod("default", "new", "u2") is not None)
        assert cluster.pod("default", "web", "u1") is None
        assert server.count("list pods") == 1


async def test_a_pod_is_called_gone_only_while_the_api_is_heard(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Not while a watch is cut: it may have come meanwhile. A pod of that name is there whatever its uid."""
    async with wire.running() as cluster:
        assert cluster.gone("default", "new")
        assert not cluster.gone("default", "web")
        await wire.cut()
        server.put(pod("new", "u2"))
        server.delete("pods", "web", "default")
        await until(lambda: not cluster.connected)
        assert not cluster.gone("default", "new")
        assert not cluster.gone("default", "web")
        wire.away = False
        await until(lambda: cluster.gone("default", "web"))
        assert not cluster.gone("default", "new")


async def test_a_bookmark_moves_the_watch_on(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """After a bookmark the server may forget what was before it: the watch resumes without a list."""
    async with wire.running() as cluster:
        server.pass_by()
        server.bookmark()
        await trio.testing.wait_all_tasks_blocked()
        server.compact()
        await wire.cut(away=False)
        await until(lambda: server.count("watch pods") == 2 and cluster.connected)
        assert (server.count("list pods"), server.count("list namespaces")) == (1, 1)


@pytest.mark.parametrize("how", ["status", "event"])
async def test_what_is_gone_is_listed_again(wire: Wire, server: ApiServer, how: str, autojump_clock: MockClock) -> None:
    """410, as a status or as an event: the list replaces what was known, also what was deleted unseen."""
    async with wire.running() as cluster:
        await wire.cut()
        server.delete("pods", "web", "default")
        server.put(pod("new", "u2"))
        if how == "status":
            server.compact()
        wire.away = False
        if how == "event":
            await until(lambda: server.watches == 2)
            server.fail_watches("pods", 410, "too old resource version")
            await until(lambda: server.count("list pods") == 2)
        await until(lambda: cluster.pod("default", "new", "u2") is not None)
        assert cluster.pod("default", "web", "u1") is None
        assert server.count("list pods") == 2
        await until(lambda: cluster.connected)
        server.put(pod("last", "u4"))
        await until(lambda: cluster.pod("default", "last", "u4") is not None)
        assert not [values for _event, values in wire.reports if "too old" in values["error"]], "no failure"


async def test_a_server_that_always_says_gone_is_not_flooded(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Each attempt in vain makes the next pause longer."""
    server.always["watch pods"] = Fault(410)
    async with wire.running(synced=False):
        await trio.sleep(60)
        assert 5 < server.count("list pods") < 20


@pytest.mark.parametrize(("status", "kind"), [(500, "list pods"), (503, "watch pods"), (403, "list namespaces")])
async def test_a_failing_server_is_asked_again_ever_more_seldom(
    wire: Wire, server: ApiServer, status: int, kind: str, autojump_clock: MockClock
) -> None:
    """Errors are told once each, the pauses grow to ten seconds; when it is well again, all is known."""
    server.always[kind] = Fault(status, "not today")
    async with wire.running(synced=False) as cluster:
        await trio.sleep(120)
        assert 12 < server.count(kind) < 30
        assert not cluster.connected
        assert cluster.error == f"the Kubernetes API answered {status}: not today"
        assert [values["error"] for _event, values in wire.reports] == [cluster.error]
        server.always.clear()
        await until(lambda: cluster.connected)
        assert cluster.error == ""
        assert cluster.pod("default", "web", "u1") is not None


async def test_a_busy_server_says_how_long_to_wait(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """429 with Retry-After: not before that, whatever the pause would have been."""
    server.faults["list pods"] = [Fault(429, "busy", (("Retry-After", "37"),))]
    async with wire.running(synced=False) as cluster:
        await until(lambda: server.count("list pods") == 1)
        began = trio.current_time()
        await until(lambda: server.count("list pods") == 2)
        assert 36.8 <= trio.current_time() - began <= 38
        await until(lambda: cluster.connected)


@pytest.mark.parametrize("after", ["soon", "", "99999999999999", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_strange_retry_after_is_ignored(
    wire: Wire, server: ApiServer, after: str, autojump_clock: MockClock
) -> None:
    """Only a number of seconds counts; nobody is told to wait for ever."""
    server.faults["list pods"] = [Fault(429, "busy", (("Retry-After", after),))]
    async with wire.running(synced=False):
        await trio.sleep(2)
        assert server.count("list pods") == 2


async def test_a_server_that_hangs_is_given_up(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """A list that gets no answer ends after ten seconds, with words; the next one is answered."""
    server.hanging = True
    async with wire.running(synced=False) as cluster:
        await trio.sleep(11)
        assert cluster.error == "the Kubernetes API did not answer in 10 s"
        server.hanging = False
        await until(lambda: cluster.connected)
        assert cluster.pod("default", "web", "u1") is not None


async def test_a_silent_watch_is_begun_anew(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """Without an event or a bookmark for 90 s nobody knows whether the server still lives."""
    server.mute = True
    async with wire.running() as cluster:
        await trio.sleep(80)
        server.bookmark()
        await trio.sleep(80)
        assert server.count("watch pods") == 1
        await until(lambda: server.count("watch pods") == 2 and cluster.connected)
        assert server.count("list pods") == 1


async def test_a_watch_that_the_server_ends_is_resumed(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """The end after ``timeoutSeconds`` is no failure: nothing is told, nothing is listed again."""
    async with wire.running() as cluster:
        await trio.sleep(720)
        assert server.count("watch pods") in (2, 3, 4)
        assert server.count("list pods") == 1
        assert not wire.reports
        await until(lambda: cluster.connected)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "MODIFIED"},
        {"type": "MODIFIED", "object": {"kind": "Pod"}},
        {"type": "MODIFIED", "object": {"metadata": {"name": 7}}},
        {"type": 1, "object": {}},
        {"type": "ERROR", "object": []},
        {"x": "y" * (9 << 20)},
    ],
)
async def test_nonsense_in_a_watch_is_an_error_and_a_new_list(
    wire: Wire, server: ApiServer, event: dict[str, object], autojump_clock: MockClock
) -> None:
    """What cannot be understood is told, and the state is listed anew; the daemon goes on."""
    async with wire.running() as cluster:
        server.say("pods", event)
        await until(lambda: wire.reports)
        assert "the Kubernetes API" in wire.reports[0][1]["error"]
        await until(lambda: server.count("list pods") == 2 and cluster.connected)
        server.put(pod("new", "u2"))
        await until(lambda: cluster.pod("default", "new", "u2") is not None)


async def test_a_server_that_is_away_is_found_when_it_comes(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """No connection at the start: told once of each kind, tried for as long as it takes."""
    wire.away = True
    async with wire.running(synced=False) as cluster:
        await trio.sleep(300)
        assert sorted(event for event, _values in wire.reports) == ["cannot watch namespaces", "cannot watch pods"]
        assert cluster.error == "the Kubernetes API cannot be reached (Connection refused)"
        assert not cluster.status()["connected"]
        wire.away = False
        await until(lambda: cluster.connected and cluster.pod_cidrs())
        assert cluster.status() == {
            "connected": True,
            "error": "",
            "pods": 1,
            "namespaces": 1,
            "pod_cidrs": ["10.1.0.0/24", "fd00:1::/64"],
        }
        assert cluster.measures() == {
            "kubernetes_connected": True,
            "kubernetes_lists_total": 2,
            "kubernetes_fetches_total": 0,
        }


# --- pods asked for by name -----------------------------------------------------------------------------------


async def refusal(wire: Wire, *who: str) -> RefusedError:
    """How a pod is refused that is asked for by namespace, name and uid."""
    with pytest.raises(RefusedError) as refused:
        await wire.cluster().fetch(*who)
    return refused.value


async def test_an_unknown_pod_is_asked_for_by_name(wire: Wire, server: ApiServer, autojump_clock: MockClock) -> None:
    """One call for the pod and one for its namespace, unless that is known; nothing else."""
    server.put(namespace("default", {POOLS[6]: '["six"]'}, team="blue"))
    facts = await wire.cluster().fetch("default", "web", "u1")
    assert facts.pools == {4: ("pool-a",), 6: ("six",)}
    assert facts.namespace_labels["team"] == "blue"
    assert [call.path for call in server.calls] == [
        "/api/v1/namespaces/default/pods/web",
        "/api/v1/namespaces/default",
    ]
    async with wire.running() as cluster:
        server.always["get namespaces"] = Fault(500)
        assert (await cluster.fetch("default", "web", "u1")).pools == facts.pools
        assert cluster.measures()["kubernetes_fetches_total"] == 1


async def test_a_runtime_that_gives_no_uid_gets_the_pod_of_the_name(wire: Wire, autojump_clock: MockClock) -> None:
    """Old runtimes do not say it: the API's latest word is the best there is."""
    assert pools_of(await wire.cluster().fetch("default", "web", "")) == ("pool-a",)


async def test_a_static_pod_is_found_by_the_kubelets_uid(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Its mirror is it."""
    server.put(pod("proxy", "u2", {"kubernetes.io/config.mirror": "hash", **named("pool-b")}))
    assert pools_of(await wire.cluster().fetch("default", "proxy", "hash")) == ("pool-b",)


async def test_a_pod_that_does_not_exist_is_refused_at_once(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """The API knows every pod that a kubelet may start: code 107, without waiting."""
    error = await refusal(wire, "default", "gone", "u7")
    assert (error.code, error.msg) == (
        Code.POD_UNKNOWN,
        (
            "cannot assign an address to default/gone: the Kubernetes API has no such pod; the pod was deleted, "
            "nothing needs to be done"
        ),
    )
    assert len(server.calls) == 1


async def test_a_namesake_is_not_the_pod(wire: Wire, autojump_clock: MockClock) -> None:
    """A pod of the same name with another uid: the one that was asked for is gone, and gets nobody else's pool."""
    error = await refusal(wire, "default", "web", "u0")
    assert (error.code, error.msg) == (
        Code.POD_UNKNOWN,
        (
            "cannot assign an address to default/web: the Kubernetes API has another pod of this name, with uid u1 and "
            "not u0; the pod was deleted, nothing needs to be done"
        ),
    )


async def test_the_successor_of_a_known_pod_is_asked_for(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Memory still has the old pod while the watch is cut: the new one's annotations count, not the old one's."""
    async with wire.running() as cluster:
        server.always["watch pods"] = Fault(503)
        server.fail_watches("pods", 503)
        server.delete("pods", "web", "default")
        server.put(pod("web", "u2", named("pool-b")))
        assert cluster.pod("default", "web", "u2") is None
        assert pools_of(cluster.pod("default", "web", "u1")) == ("pool-a",)
        assert pools_of(await cluster.fetch("default", "web", "u2")) == ("pool-b",)


async def test_an_api_that_is_away_refuses_unknown_pods_after_a_while(wire: Wire, autojump_clock: MockClock) -> None:
    """Code 11 with what is wrong, after the deadline: no pool is guessed."""
    wire.away = True
    began = trio.current_time()
    error = await refusal(wire, "default", "web", "u1")
    assert trio.current_time() - began == pytest.approx(5.0)
    assert (error.code, error.msg) == (
        Code.TRY_AGAIN_LATER,
        (
            "cannot assign an address to default/web: what Kubernetes says of the pod is not known yet, and the Kubernetes "
            "API cannot be reached (Connection refused); no pool is guessed; the runtime will try again"
        ),
    )


async def test_an_api_that_hangs_refuses_unknown_pods_after_a_while(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """A call that hangs is tried once more on another connection; then code 11."""
    server.hanging = True
    began = trio.current_time()
    error = await refusal(wire, "default", "web", "u1")
    assert trio.current_time() - began == pytest.approx(5.0)
    assert error.code is Code.TRY_AGAIN_LATER
    assert "the Kubernetes API did not answer in 2.5 s" in error.msg
    assert len(server.calls) == 2


@pytest.mark.parametrize("fault", [Fault(429, "busy", (("Retry-After", "1"),)), Fault(500), Fault(401), Fault(403)])
async def test_a_refused_call_is_tried_again(
    wire: Wire, server: ApiServer, fault: Fault, autojump_clock: MockClock
) -> None:
    """Whatever the API says but 404, the pod may be had in a moment."""
    server.faults["get pods"] = [fault, fault]
    assert pools_of(await wire.cluster().fetch("default", "web", "u1")) == ("pool-a",)


async def test_a_pod_that_the_watch_brings_meanwhile_is_taken(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Asking by name fails for as long as it likes: what the watch says is enough."""
    server.always["get pods"] = Fault(500)
    async with wire.running() as cluster, trio.open_nursery() as nursery:
        facts: list[PodFacts] = []

        async def fetch() -> None:
            facts.append(await cluster.fetch("default", "new", "u2"))

        nursery.start_soon(fetch)
        await trio.sleep(1)
        server.put(pod("new", "u2", named("pool-b")))
        await until(lambda: facts)
        assert pools_of(facts[0]) == ("pool-b",)


@pytest.mark.parametrize("name", ["../../nodes/node-a", "a/b", "x?watch=true", "ü"])
async def test_a_name_is_only_ever_a_name(wire: Wire, server: ApiServer, name: str, autojump_clock: MockClock) -> None:
    """Whatever the runtime calls a pod, one pod is asked for."""
    assert (await refusal(wire, "default", name, "u1")).code is Code.POD_UNKNOWN
    assert [call.kind for call in server.calls] == ["get pods"]


# --- pod CIDRs ------------------------------------------------------------------------------------------------


async def test_the_nodes_pod_cidrs_are_had_at_the_start(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """One call; then they are in memory."""
    async with wire.running() as cluster:
        await until(cluster.pod_cidrs)
        assert cluster.pod_cidrs() == ("10.1.0.0/24", "fd00:1::/64")
        await trio.sleep(600)
        assert server.count("get nodes") == 1


async def test_pod_cidrs_that_come_late_are_asked_for_when_they_are_wanted(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Kubernetes gives them some time after the node's start: nobody asks for ever, and who asks finds them."""
    server.put(node(NODE))
    async with wire.running() as cluster:
        await trio.sleep(600)
        assert server.count("get nodes") == 1
        server.put(node(NODE, "10.2.0.0/24"))
        assert cluster.pod_cidrs() == ()
        await until(cluster.pod_cidrs)
        assert cluster.pod_cidrs() == ("10.2.0.0/24",)
        assert server.count("get nodes") == 2


async def test_who_waits_for_pod_cidrs_gets_them_when_they_come(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """At once if they are known, within two seconds or so if they come late, and () after the time that a wait has."""
    server.put(node(NODE))
    async with wire.running() as cluster:
        assert await cluster.wait_for_pod_cidrs() == ()
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.wait_for_pod_cidrs)
            await trio.sleep(2.5)
            server.put(node(NODE, "10.2.0.0/24"))
        assert trio.current_time() < 5 + 2.5 + 2.1
        assert await cluster.wait_for_pod_cidrs() == ("10.2.0.0/24",)


async def test_a_node_that_cannot_be_read_is_asked_for_again(
    wire: Wire, server: ApiServer, autojump_clock: MockClock
) -> None:
    """Its error is told while nothing else is wrong."""
    server.faults["get nodes"] = [Fault(403, "no"), Fault(500), Fault(404)]
    async with wire.running() as cluster:
        assert cluster.error in ("the Kubernetes API answered 403: no", "the Kubernetes API answered 500", "")
        await until(cluster.pod_cidrs)
        assert cluster.error == ""


async def test_the_older_field_serves_too(autojump_clock: MockClock) -> None:
    """Clusters before dual stack wrote ``podCIDR`` alone."""
    from ipamd.kubernetes.objects import Node, decode

    assert decode(b'{"spec":{"podCIDR":"10.3.0.0/24"}}', Node).pod_cidrs == ("10.3.0.0/24",)
    assert decode(b'{"spec":{}}', Node).pod_cidrs == ()
