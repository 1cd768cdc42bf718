"""The Helm chart: what it makes of each values file is what Kubernetes takes, and what the daemon understands."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest

from ipamd import __version__
from ipamd.cni.install import NAMES, binary_for
from tests.daemon_process import POOLS, Daemon, wait_for
from tests.systemd.service_manager import missing

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "ipamd"
VALUES = sorted((ROOT / "helm" / "values").glob("*.yaml"))
HELM = Path(sys.executable).with_name("helm")
PROBE = ROOT / "helm" / "ipamd-probe"
OWN = {"PodMonitor", "PrometheusRule"}
"""Types of the Prometheus operator, which Kubernetes' own schemas do not have."""

Object = dict[str, Any]


def helm(*arguments: str, ok: bool = True) -> str:
    """What helm prints; it must succeed, or with ``ok`` False fail."""
    done = subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@cache
def rendered(values: Path, *more: str) -> Mapping[str, Object]:
    """The chart's objects for a values file, by kind; config map and dashboard apart."""
    sets = [word for each in more for word in ("--set", each)]
    text = helm("template", "ipamd", str(CHART), "--namespace", "kube-system", "-f", str(values), *sets)
    found = [msgspec.yaml.decode(part) for part in re.split(r"^---$", text, flags=re.MULTILINE) if part.strip()]
    names = [each["kind"] if "dashboard" not in each["metadata"]["name"] else "Dashboard" for each in found]
    assert len(names) == len(set(names))
    return dict(zip(names, found, strict=True))


def pod_of(values: Path) -> Object:
    """The pod of the DaemonSet."""
    spec: Object = rendered(values)["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def values_named(name: str) -> Path:
    """One of the values files."""
    (found,) = [path for path in VALUES if path.stem == name]
    return found


for_each = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)


@for_each
def test_helm_has_nothing_to_say(values: Path) -> None:
    """Lint is content, warnings being errors."""
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), "-f", str(values))


@for_each
@pytest.mark.parametrize("version", ["1.25", "1.34"])
def test_kubernetes_knows_every_field(values: Path, version: str) -> None:
    """Each object is valid by the OpenAPI types of an old and of a new Kubernetes, without a field that they do not have."""
    objects = rendered(values)
    assert {"DaemonSet", "ConfigMap", "ServiceAccount"} <= set(objects)
    for kind, each in objects.items():
        if kind not in OWN:
            kubernetes_validate.validate(each, version, strict=True)


@for_each
def test_the_daemon_understands_its_configuration(values: Path, tmp_path: Path) -> None:
    """The ConfigMap's file is what `--check-config` accepts, with the files of the secret in place."""
    text = rendered(values)["ConfigMap"]["data"]["ipamd.toml"]
    secret = tmp_path / "etcd"
    secret.mkdir()
    for name in re.findall(r'"/etc/ipamd/etcd/([^"]+)"', text):
        (secret / name).write_text("x")
    file = tmp_path / "ipamd.toml"
    file.write_text(text.replace("/etc/ipamd/etcd", str(secret)))
    command = [sys.executable, "-m", "ipamd", "run", "--check-config", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_every_member_of_calicos_secret_is_mounted_and_named() -> None:
    """The keys are those of Calico's own manifests."""
    objects = rendered(values_named("calico-etcd-secrets"))
    text = objects["ConfigMap"]["data"]["ipamd.toml"]
    for key, file in (("ca_file", "etcd-ca"), ("cert_file", "etcd-cert"), ("key_file", "etcd-key")):
        assert f'{key} = "/etc/ipamd/etcd/{file}"' in text
    (volume,) = [each for each in pod_of(values_named("calico-etcd-secrets"))["volumes"] if each["name"] == "etcd"]
    assert volume["secret"]["secretName"] == "calico-etcd-secrets"


@for_each
def test_every_node_has_the_daemon_before_any_other_pod(values: Path) -> None:
    """On the host's network, whatever the taints, at the highest priority, and never two on one node."""
    pod = pod_of(values)
    assert pod["hostNetwork"] is True
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    update = rendered(values)["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"]
    assert update == {"maxSurge": 0, "maxUnavailable": "10%"}


@for_each
def test_no_container_may_do_more_than_its_work(values: Path) -> None:
    """Nothing of the image can be written, no privilege gained; the only capability is to give directories away."""
    pod = pod_of(values)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["initContainers"], *pod["containers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        allowed = ["CHOWN", "DAC_READ_SEARCH"] if container["name"] == "own-directories" else []
        assert context["capabilities"].get("add", []) == allowed
    (daemon,) = pod["containers"]
    written = {mount["mountPath"] for mount in daemon["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/run/ipamd", "/var/lib/ipamd"}


def test_another_user_than_root_owns_its_directories_and_nothing_more() -> None:
    """The daemon's container is refused as root; what it writes is given to it before."""
    pod = pod_of(values_named("non-root"))
    (daemon,) = pod["containers"]
    assert daemon["securityContext"]["runAsUser"] == 64123
    assert daemon["securityContext"]["runAsNonRoot"] is True
    assert pod["initContainers"][1]["command"] == ["chown", "-R", "64123:64123", "/run/ipamd", "/var/lib/ipamd"]


@for_each
def test_the_plugin_is_there_before_the_daemon(values: Path) -> None:
    """The first step of the pod installs it, by the image's own command, into the host's directory."""
    first = pod_of(values)["initContainers"][0]
    assert first["args"][:3] == ["install-cni", "/host/plugins", "--as"]
    assert set(first["args"][3:]) <= set(NAMES)
    (mount,) = first["volumeMounts"]
    (volume,) = [each for each in pod_of(values)["volumes"] if each["name"] == mount["name"]]
    assert (mount["mountPath"], volume["hostPath"]["path"]) == ("/host/plugins", "/opt/cni/bin")


@for_each
def test_no_step_of_an_upgrade_or_a_removal_takes_the_plugin_away(values: Path) -> None:
    """Only the installing step has the directory, it has nothing to do at its end, and no hook runs beside the pods."""
    objects, pod = rendered(values), pod_of(values)
    assert objects["DaemonSet"]["spec"]["updateStrategy"].get("type", "RollingUpdate") == "RollingUpdate"
    containers = (*pod["initContainers"], *pod["containers"])
    (volume,) = [each["name"] for each in pod["volumes"] if each.get("hostPath", {}).get("path") == "/opt/cni/bin"]
    mounted = [each["name"] for each in containers for mount in each["volumeMounts"] if mount["name"] == volume]
    assert mounted == [pod["initContainers"][0]["name"]]
    assert not any("lifecycle" in each for each in containers)
    assert not any("helm.sh/hook" in str(each["metadata"].get("annotations", "")) for each in objects.values())


def test_the_role_is_the_documented_one() -> None:
    """Which calls need it is what tests/kubernetes/test_rbac.py compares the page with."""
    page = (ROOT / "docs" / "cni.md").read_text()
    found = re.search(r"^```yaml\n(.*?kind: ClusterRole.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    objects = rendered(values_named("etcd-tls"))
    assert objects["ClusterRole"]["rules"] == msgspec.yaml.decode(found[1])["rules"]
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert subject["name"] == objects["ServiceAccount"]["metadata"]["name"]
    assert subject["namespace"] == "kube-system"


def test_without_kubernetes_there_is_no_role_and_no_token() -> None:
    """What is not asked for is not granted."""
    objects = rendered(values_named("host-local"))
    assert not {"ClusterRole", "ClusterRoleBinding"} & set(objects)
    assert pod_of(values_named("host-local"))["automountServiceAccountToken"] is False


def test_the_monitor_scrapes_the_port_that_is_served() -> None:
    """Name and selector lead from the PodMonitor to the container's port."""
    objects = rendered(values_named("etcd-tls"))
    (endpoint,) = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]
    (port,) = pod_of(values_named("etcd-tls"))["containers"][0]["ports"]
    assert endpoint["port"] == port["name"]
    assert f'metrics_address = "0.0.0.0:{port["containerPort"]}"' in objects["ConfigMap"]["data"]["ipamd.toml"]
    labels = objects["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert objects["PodMonitor"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    ("setting", "refusal"),
    [
        ("store=redis", "store"),
        ("etc.endpoints=x", "etc"),
        ("plugin.names={flannel}", "plugin.names"),
        ("etcd.endpoints={10.0.0.1}", "etcd.endpoints"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("store=etcd", "etcd.endpoints is empty"),
        ("metrics.podMonitor=true", "metrics.podMonitor needs metrics.enabled"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(setting: str, refusal: str) -> None:
    """By the schema, or by a sentence that names the value."""
    values = str(values_named("embedded"))
    assert refusal in helm("template", "ipamd", str(CHART), "-f", values, "--set", setting, ok=False)


def test_the_chart_is_of_the_programs_version() -> None:
    """One version for all."""
    chart = msgspec.yaml.decode((CHART / "Chart.yaml").read_bytes())
    assert chart["appVersion"] == __version__


# --- the container's commands, on this machine --------------------------------------------------------------------------


def probe(daemon: Daemon, values: Path, question: str) -> tuple[int, str]:
    """The image's probe with the chart's file, against a daemon; its exit code and what it said."""
    config = json.loads(rendered(values)["ConfigMap"]["data"]["probe.json"])
    assert config["ipam"]["socket"] == "/run/ipamd/ipamd.sock"
    config["ipam"]["socket"] = str(daemon.socket)
    file = daemon.directory / "probe.json"
    file.write_text(json.dumps(config))
    env = {**os.environ, "IPAMD_PLUGIN": str(binary_for(os.uname().machine))}
    done = subprocess.run(["sh", PROBE, question, file], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.real
def test_the_probes_tell_hung_from_not_ready(tmp_path: Path) -> None:
    """A node without a pool lives and is not ready; one that serves ranges only is both; a stopped one neither."""
    embedded, ranges = values_named("embedded"), values_named("host-local")
    with Daemon(tmp_path / "d", ready=False) as daemon:
        wait_for(lambda: daemon.get("/v1/status", quiet=True).get("reason") == "no pool serves this node", 30)
        assert probe(daemon, embedded, "live") == (0, probe(daemon, embedded, "ready")[1])
        code, said = probe(daemon, embedded, "ready")
        assert code == 1
        assert "no IPv4 pool serves this node" in said
        assert probe(daemon, ranges, "ready") == (0, "")
        daemon.kill()
        assert [probe(daemon, embedded, question)[0] for question in ("live", "ready")] == [1, 1]
    with Daemon(tmp_path / "e", "node-a", *POOLS) as daemon:
        assert [probe(daemon, embedded, question) for question in ("live", "ready")] == [(0, ""), (0, "")]


@pytest.mark.real
@pytest.mark.root
def test_root_without_capabilities_is_enough(tmp_path: Path) -> None:
    """The chart's default: it installs the plugin, serves, reads the runtime's private cache, and root's kept DELs."""
    if os.geteuid() != 0:
        missing("cannot drop root's capabilities; run this as root")
    nothing = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"]
    plugins, results = tmp_path / "plugins", tmp_path / "results"
    plugins.mkdir()
    results.mkdir(mode=0o700)
    (results / "pods-b-eth0").touch(mode=0o600)
    install = [*nothing, sys.executable, "-m", "ipamd", "install-cni", str(plugins), "--as", "ipamd"]
    subprocess.run(install, check=True, capture_output=True)
    assert (plugins / "ipamd").stat().st_mode & 0o777 == 0o755
    flags = (*POOLS, "--runtime-results-dir", str(results))
    with Daemon(tmp_path / "d", "node-a", *flags, wrapper=nothing) as daemon:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        daemon.add("a")
        assert daemon.stop() == 0
        daemon.delete("a", connect_ms=50)
        daemon.start()
        assert daemon.get("/v1/allocations") == []
        wait_for(lambda: daemon.get("/v1/status")["runtime"]["attachments"] == 1)
