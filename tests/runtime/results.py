"""libcni's cache of results, written as libcni writes it."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path


def cached(
    directory: Path,
    container: str,
    addresses: Sequence[str],
    *,
    network: str = "k8s-pod-network",
    interface: str = "eth0",
    version: str = "1.0.0",
    ipam: object = None,
    chained: bool = False,
    capabilities: object = None,
) -> Path:
    """The file of an attachment whose ADD succeeded, of pod default/pod-<container>; ``chained``: by a list of plugins."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"} if ipam is None else ipam}
    config = {"cniVersion": version, "name": network} | ({"plugins": [plugin, {"type": "bw"}]} if chained else plugin)
    result: dict[str, object] = {"cniVersion": version, "dns": {}}
    if version < "0.3.0":
        result |= {"ip6" if ":" in address else "ip4": {"ip": f"{address}/26"} for address in addresses}
    else:
        result["ips"] = [{"address": f"{address}/26"} for address in addresses]
    text = {
        "kind": "cniCacheV1",
        "containerId": container,
        "config": base64.b64encode(json.dumps(config).encode()).decode(),
        "ifName": interface,
        "networkName": network,
        "netns": f"/var/run/netns/cni-{container}",
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", "default"],
            ["K8S_POD_NAME", f"pod-{container}"],
        ],
        "capabilityArgs": {"portMappings": None} if capabilities is None else capabilities,
        "result": result,
    }
    path = directory / f"{network}-{container}-{interface}"
    path.write_text(json.dumps(text))
    return path
