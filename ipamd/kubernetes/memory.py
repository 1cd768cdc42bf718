"""This node's pods and all namespaces, each reduced to what decides an address, and the pods' facts made of both.

The facts are worked out when a pod or its namespace changes, so that an ADD finds them by one look into a dictionary.
"""

from collections.abc import Sequence

from msgspec import Struct

from ipamd.core.pod import ANNOTATIONS, PodFacts, pod_facts
from ipamd.kubernetes.objects import Metadata


class Known(Struct, frozen=True):
    """What is kept of a pod or a namespace."""

    uids: tuple[str, ...]
    annotations: dict[str, str]
    labels: dict[str, str]


def pod_of(metadata: Metadata) -> Known:
    """What is kept of a pod."""
    return Known(metadata.uids, _annotations(metadata), {})


def namespace_of(metadata: Metadata) -> Known:
    """What is kept of a namespace."""
    return Known(metadata.uids, _annotations(metadata), dict(metadata.labels or {}))


def _annotations(metadata: Metadata) -> dict[str, str]:
    annotations = metadata.annotations or {}
    return {name: annotations[name] for name in ANNOTATIONS if name in annotations}


def facts_of(namespace: str, name: str, pod: Known, of: Known) -> PodFacts:
    """The facts of a pod in a namespace."""
    return pod_facts(f"{namespace}/{name}", pod.annotations, of.annotations, of.labels)


class Memory:
    """``pods`` by namespace and name, ``namespaces`` by name, ``facts`` by namespace, name and uid."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], Known] = {}
        self.namespaces: dict[str, Known] = {}
        self.facts: dict[tuple[str, str, str], PodFacts] = {}

    def has_pod(self, namespace: str, name: str) -> bool:
        """Whether this node has a pod of this name, under whatever uid."""
        return (namespace, name) in self.pods

    def replace_pods(self, pods: Sequence[Metadata]) -> None:
        """These are all."""
        self.pods = {(each.namespace, each.name): pod_of(each) for each in pods}
        self._settle_all()

    def pod_changed(self, metadata: Metadata) -> None:
        """A pod was made or changed."""
        key = metadata.namespace, metadata.name
        self._forget(key)
        self.pods[key] = pod_of(metadata)
        self._settle(key)

    def pod_deleted(self, metadata: Metadata) -> None:
        """A pod is gone."""
        key = metadata.namespace, metadata.name
        self._forget(key)
        self.pods.pop(key, None)

    def replace_namespaces(self, namespaces: Sequence[Metadata]) -> None:
        """These are all."""
        self.namespaces = {each.name: namespace_of(each) for each in namespaces}
        self._settle_all()

    def namespace_changed(self, metadata: Metadata) -> None:
        """A namespace was made or changed."""
        self.namespaces[metadata.name] = namespace_of(metadata)
        self._settle_pods_of(metadata.name)

    def namespace_deleted(self, metadata: Metadata) -> None:
        """A namespace is gone, and with it what was known of its pods."""
        self.namespaces.pop(metadata.name, None)
        self._settle_pods_of(metadata.name)

    def _settle_all(self) -> None:
        self.facts.clear()
        for key in self.pods:
            self._settle(key)

    def _settle_pods_of(self, namespace: str) -> None:
        for key in self.pods:
            if key[0] == namespace:
                self._forget(key)
                self._settle(key)

    def _settle(self, key: tuple[str, str]) -> None:
        pod, of = self.pods[key], self.namespaces.get(key[0])
        if of is not None:
            facts = facts_of(*key, pod, of)
            self.facts.update(((*key, uid), facts) for uid in pod.uids)

    def _forget(self, key: tuple[str, str]) -> None:
        known = self.pods.get(key)
        for uid in known.uids if known is not None else ():
            self.facts.pop((*key, uid), None)
