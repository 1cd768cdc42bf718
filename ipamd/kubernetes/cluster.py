"""What the daemon asks: the facts of a pod, from memory or by name, and this node's pod CIDRs.

Memory holds this node's pods and all namespaces, each reduced to what decides an address. A pod is known when both it
and its namespace are; ``pod`` is a look into a dictionary. What is not known is asked for by name, and never guessed.
"""

from collections.abc import Callable, Mapping
from urllib.parse import quote

import trio

from ipamd.core.errors import Code, RefusedError
from ipamd.core.pod import PodFacts
from ipamd.kubernetes.client import Client
from ipamd.kubernetes.errors import ApiError
from ipamd.kubernetes.memory import Memory, facts_of, namespace_of, pod_of
from ipamd.kubernetes.objects import Node, Object, decode
from ipamd.kubernetes.reflector import FIRST_PAUSE, LAST_PAUSE, Reflector, Sink

_NOT_FOUND = 404
_ASK_AGAIN = 1.0
"""Seconds between looks for pod CIDRs that the node does not have yet."""


class Cluster:
    """This node's view of the cluster. ``run`` keeps it; ``timeout`` is how long ``fetch`` may take (seconds)."""

    def __init__(self, client: Client, node: str, timeout: float, report: Callable[[str, Mapping[str, str]], None]):
        self._client, self._node, self._timeout, self._report = client, node, timeout, report
        self._memory = memory = Memory()
        here = {"fieldSelector": f"spec.nodeName={node}"}
        pods = Sink(memory.replace_pods, memory.pod_changed, memory.pod_deleted)
        namespaces = Sink(memory.replace_namespaces, memory.namespace_changed, memory.namespace_deleted)
        self._reflectors = (
            Reflector(client, "/api/v1/pods", here, pods, self._complain("pods")),
            Reflector(client, "/api/v1/namespaces", {}, namespaces, self._complain("namespaces")),
        )
        self._pod_cidrs: tuple[str, ...] = ()
        self._cidrs_wanted = trio.Event()
        self._cidrs_found = trio.Event()
        self._node_error = ""
        self._fetches = 0

    # --- what is asked ----------------------------------------------------------------------------------------

    def pod(self, namespace: str, name: str, uid: str) -> PodFacts | None:
        """The facts of a pod, if it is known under this uid. Without a uid nobody is: a pod may have a namesake."""
        return self._memory.facts.get((namespace, name, uid))

    def find(self, namespace: str, name: str) -> PodFacts | None:
        """The facts of this node's pod of a name, whatever its uid; None if it, or its namespace, is not known."""
        pod, of = self._memory.pods.get((namespace, name)), self._memory.namespaces.get(namespace)
        return None if pod is None or of is None else facts_of(namespace, name, pod, of)

    def gone(self, namespace: str, name: str) -> bool:
        """Whether there is no pod of this name on this node, as far as the API can be heard."""
        return self.connected and not self._memory.has_pod(namespace, name)

    async def fetch(self, namespace: str, name: str, uid: str) -> PodFacts:
        """The facts of a pod that memory does not have: asked for by name, until it is known or the time is over.

        Raises RefusedError. 107 if the API has no such pod, or another of that name: it is asked for its latest state
        and knows every pod that a kubelet may start, so this one was deleted, and waiting would not bring it. 11 if
        the API gives no answer.
        """
        self._fetches += 1
        pause = FIRST_PAUSE
        why = _late(self._timeout)
        with trio.move_on_after(self._timeout):
            while True:
                try:
                    with trio.fail_after(self._timeout / 2):  # what hangs may answer on another connection
                        return await self._ask(namespace, name, uid)
                except trio.TooSlowError:
                    why = _late(self._timeout / 2)
                except ApiError as error:
                    why = str(error)
                    await trio.sleep(max(pause, error.retry_after))
                    pause = min(2 * pause, 1.0)
                known = self.pod(namespace, name, uid)
                if known is not None:
                    return known
        raise RefusedError(
            Code.TRY_AGAIN_LATER,
            f"cannot assign an address to {namespace}/{name}: what Kubernetes says of the pod is not known yet, and "
            f"{why}; no pool is guessed; the runtime will try again",
        )

    def pod_cidrs(self) -> tuple[str, ...]:
        """The node's ``spec.podCIDRs``; () while they are not known, which asks for them again."""
        if not self._pod_cidrs:
            self._cidrs_wanted.set()
        return self._pod_cidrs

    async def wait_for_pod_cidrs(self) -> tuple[str, ...]:
        """The same, once they are known; () if the time is over before."""
        with trio.move_on_after(self._timeout):
            while not self.pod_cidrs():
                with trio.move_on_after(_ASK_AGAIN):
                    await self._cidrs_found.wait()
        return self._pod_cidrs

    # --- what keeps it ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep pods, namespaces and pod CIDRs up to date; never returns."""
        try:
            async with trio.open_nursery() as nursery:
                for reflector in self._reflectors:
                    nursery.start_soon(reflector.run)
                nursery.start_soon(self._find_pod_cidrs)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await self._client.aclose()

    async def _find_pod_cidrs(self) -> None:
        """Kubernetes gives a node its ranges some time after its start, and never changes them."""
        pause = FIRST_PAUSE
        while not self._pod_cidrs:
            self._cidrs_wanted = trio.Event()
            try:
                node = decode(await self._client.get(f"/api/v1/nodes/{quote(self._node, safe='')}"), Node)
            except ApiError as error:
                self._node_error = str(error)
                await trio.sleep(max(pause, error.retry_after))
                pause = min(2 * pause, LAST_PAUSE)
                continue
            self._node_error = ""
            self._pod_cidrs = node.pod_cidrs
            if not self._pod_cidrs:
                await self._cidrs_wanted.wait()
                await trio.sleep(_ASK_AGAIN)
        self._cidrs_found.set()

    async def _ask(self, namespace: str, name: str, uid: str) -> PodFacts:
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}"
        try:
            body = await self._client.get(f"{path}/pods/{quote(name, safe='')}")
        except ApiError as error:
            if error.status == _NOT_FOUND:
                raise _unknown(namespace, name, "the Kubernetes API has no such pod") from error
            raise
        metadata = decode(body, Object).metadata
        if uid and uid not in metadata.uids:
            why = f"the Kubernetes API has another pod of this name, with uid {metadata.uid} and not {uid}"
            raise _unknown(namespace, name, why)
        of = self._memory.namespaces.get(namespace)
        if of is None:
            of = namespace_of(decode(await self._client.get(path), Object).metadata)
        return facts_of(namespace, name, pod_of(metadata), of)

    # --- what others are told ---------------------------------------------------------------------------------

    @property
    def error(self) -> str:
        """What is wrong with the API at the moment; "" if nothing is known to be."""
        return next(filter(None, (reflector.error for reflector in self._reflectors)), self._node_error)

    @property
    def connected(self) -> bool:
        """Whether pods and namespaces are being watched."""
        return all(reflector.synced and not reflector.error for reflector in self._reflectors)

    def measures(self) -> Mapping[str, float]:
        """The numbers for the metrics, by name without ``ipamd_``."""
        return {
            "kubernetes_connected": self.connected,
            "kubernetes_lists_total": sum(reflector.lists for reflector in self._reflectors),
            "kubernetes_fetches_total": self._fetches,
        }

    def status(self) -> Mapping[str, object]:
        """Its part of ``GET /v1/status``."""
        return {
            "connected": self.connected,
            "error": self.error,
            "pods": len(self._memory.pods),
            "namespaces": len(self._memory.namespaces),
            "pod_cidrs": list(self._pod_cidrs),
        }

    def _complain(self, what: str) -> Callable[[str], None]:
        return lambda why: self._report(f"cannot watch {what}", {"error": why})


def _unknown(namespace: str, name: str, why: str) -> RefusedError:
    return RefusedError(
        Code.POD_UNKNOWN,
        f"cannot assign an address to {namespace}/{name}: {why}; the pod was deleted, nothing needs to be done",
    )


def _late(seconds: float) -> str:
    return f"the Kubernetes API did not answer in {seconds:g} s"
