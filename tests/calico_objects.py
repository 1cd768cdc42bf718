"""Pools and nodes as Calico's programs write them into etcd."""

import json
from collections.abc import Mapping

from tests.etcd_process import EtcdProcess

_RESOURCES = "/calico/resources/v3/projectcalico.org/"


def node_record(labels: Mapping[str, str] | None, name: str = "n1") -> bytes:
    """A Node, as Calico's node agent and its controllers write it."""
    metadata = {
        "name": name,
        "uid": "b73a21e3-ad2e-46de-9d1c-1228719c2180",
        "creationTimestamp": "2026-11-20T23:47:44Z",
    }
    value = {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {**metadata, **({} if labels is None else {"labels": labels})},
        "spec": {"bgp": {"ipv4Address": "172.18.0.2/16"}},
        "status": {},
    }
    return json.dumps(value, separators=(",", ":")).encode()


def pool_record(name: str, cidr: str, **spec: object) -> bytes:
    """An IPPool, as calicoctl writes it."""
    value = {
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {
            "name": name,
            "uid": "55b18db8-8ca7-4d84-9ec0-d9f8da794c6d",
            "creationTimestamp": "2026-11-20T23:47:45Z",
        },
        "spec": {
            "cidr": cidr,
            "vxlanMode": "Never",
            "ipipMode": "Never",
            **({"disabled": True} if spec.pop("disabled", False) else {}),
            "blockSize": spec.pop("blockSize", 26),
            "nodeSelector": spec.pop("nodeSelector", "all()"),
            "allowedUses": ["Workload", "Tunnel"],
            "assignmentMode": "Automatic",
            **spec,
        },
    }
    return json.dumps(value, separators=(",", ":")).encode()


def put_node(etcd: EtcdProcess, name: str, **labels: str) -> None:
    """Label a node: ``kubectl label node``, and what Calico makes of it."""
    etcd.put(f"{_RESOURCES}nodes/{name}", node_record(labels, name))


def put_pool(etcd: EtcdProcess, name: str, cidr: str, **spec: object) -> None:
    """Create or change a pool: ``calicoctl apply``."""
    etcd.put(f"{_RESOURCES}ippools/{name}", pool_record(name, cidr, **spec))


def delete_pool(etcd: EtcdProcess, name: str) -> None:
    """Delete a pool's record."""
    etcd.delete(f"{_RESOURCES}ippools/{name}")
