"""The image and the DaemonSet, as a kubelet runs it: the real steps of the Containerfile, the real chart, real containers.

The base image is in a registry; here a Debian of the system's packages stands for it, which has another Python.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from tests.daemon_process import UnixConnection, wait_for
from tests.e2e.containerfile import Build, base
from tests.e2e.runtime import Runtime, remove_cgroups
from tests.helm.test_chart import CHART, Object, helm
from tests.machine import Fabric, Machine, run
from tests.real.conftest import missing

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(not os.environ.get("IPAMD_E2E"), reason="builds an image: run by `make e2e`"),
]

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "localhost/ipamd:e2e"
NETWORK = {
    "type": "ptp",
    "ipam": {"type": "ipamd", "gateway": "10.245.0.1/15", "routes": [{"dst": "0.0.0.0/0"}]},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, host_network: list[str]) -> Iterator[Build]:
    """The image, of what git has of this checkout."""
    if shutil.which("debootstrap") is None:
        missing("cannot build an image without debootstrap; install it")
    folder = tmp_path_factory.mktemp("image")
    context = folder / "context"
    files = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, context / name)
    base(folder / "base", host_network)
    build = Build(folder / "base", context, folder, host_network)
    build.run(ROOT / "helm" / "Containerfile")
    yield build
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_cgroups_left() -> Iterator[None]:
    """Also of a test that failed."""
    yield
    remove_cgroups()


class Kubelet:
    """Runs the DaemonSet's pod on a runtime, from the objects that helm makes; ``container`` is the daemon's."""

    def __init__(self, runtime: Runtime, values: Path, *sets: str) -> None:
        self.runtime = runtime
        words = [word for each in sets for word in ("--set", each)]
        text = helm("template", "ipamd", str(CHART), "--namespace", "kube-system", "-f", str(values), *words)
        objects = [msgspec.yaml.decode(part) for part in text.split("\n---\n") if part.strip()]
        by_kind = {each["kind"]: each for each in objects}
        self.pod: Object = by_kind["DaemonSet"]["spec"]["template"]["spec"]
        self._files: dict[str, str] = by_kind["ConfigMap"]["data"]
        self._count = 0
        self._sandbox: dict[str, Any] = {}
        self.sandbox = self.container = ""

    def start(self) -> None:
        """The volumes, the sandbox, each init container to its end, the daemon; ready by its own probe."""
        assert self.pod["hostNetwork"] is True
        self._count += 1
        self._sandbox = self.runtime.sandbox(f"ipamd-{self._count}", host_network=True)
        self._volumes = {volume["name"]: self._volume(volume) for volume in self.pod["volumes"]}
        self.sandbox = self.runtime.cri.call("RunPodSandbox", config=self._sandbox).pod_sandbox_id
        for container in self.pod["initContainers"]:
            ended = self._start(container)
            wait_for(lambda ended=ended: self._state(ended).state == 2, 120)
            assert self._state(ended).exit_code == 0, self.log(container["name"])
        (daemon,) = self.pod["containers"]
        self.container = self._start(daemon)
        wait_for(lambda: self.probe("startupProbe") == 0, 120, lambda: self.log("ipamd"))
        wait_for(lambda: self.probe("readinessProbe") == 0, 60, lambda: self.log("ipamd"))
        assert self.probe("livenessProbe") == 0

    def stop(self) -> None:
        """End the pod, as an upgrade does before the next."""
        self.runtime.stop_pod(self.sandbox)

    def probe(self, name: str) -> int:
        """The exit code of a probe's command, in the daemon's container."""
        return self.run(*self.pod["containers"][0][name]["exec"]["command"])

    def run(self, *command: str) -> int:
        """The exit code of a command in the daemon's container."""
        answer = self.runtime.cri.call("ExecSync", container_id=self.container, cmd=list(command), timeout=20)
        return int(answer.exit_code)

    def status(self) -> str:
        """What the kernel says of the daemon's process."""
        return self.runtime.machine.run("sh", "-c", "cat /proc/$(pgrep -of 'ipamd run')/status")

    def log(self, name: str) -> str:
        """What a container has written."""
        return (self.runtime.machine.disk / "logs" / f"{name}-{self._count}.log").read_text()

    def _volume(self, volume: Object) -> str:
        if "configMap" in volume:
            folder = self.runtime.machine.disk / "config"
            folder.mkdir(exist_ok=True)
            for name, text in self._files.items():
                (folder / name).write_text(text)
            return str(folder)
        path: str = volume["hostPath"]["path"]
        assert volume["hostPath"]["type"] == "DirectoryOrCreate"
        self.runtime.machine.run("mkdir", "-p", path)
        return path

    def _state(self, container: str) -> Any:
        return self.runtime.cri.call("ContainerStatus", container_id=container).status

    def _start(self, container: Object) -> str:
        context = container["securityContext"]
        assert self.pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        security = {
            "capabilities": {
                "drop_capabilities": context["capabilities"]["drop"],
                "add_capabilities": context["capabilities"].get("add", []),
            },
            "privileged": context["privileged"],
            "namespace_options": {"network": 2},
            "run_as_user": {"value": context["runAsUser"]},
            "run_as_group": {"value": context["runAsGroup"]},
            "readonly_rootfs": context["readOnlyRootFilesystem"],
            "no_new_privs": not context["allowPrivilegeEscalation"],
            "supplemental_groups": [self.pod["securityContext"]["fsGroup"]],
            "seccomp": {"profile_type": 0},
        }
        mounts = [
            {
                "container_path": mount["mountPath"],
                "host_path": str(Path(self._volumes[mount["name"]]) / mount.get("subPath", "")),
                "readonly": mount.get("readOnly", False),
            }
            for mount in container["volumeMounts"]
        ]
        envs = [{"key": each["name"], "value": self._value(each)} for each in container.get("env", [])]
        config = {
            "metadata": {"name": container["name"]}, "image": {"image": NAME}, "command": container.get("command", []),
            "args": container.get("args", []), "envs": envs, "mounts": mounts,
            "log_path": f"{container['name']}-{self._count}.log", "linux": {"security_context": security},
        }  # fmt: skip
        (self.runtime.machine.disk / "logs").mkdir(exist_ok=True)
        sandbox = {**self._sandbox, "log_directory": str(self.runtime.machine.disk / "logs")}
        call = self.runtime.cri.call
        made: str = call(
            "CreateContainer", pod_sandbox_id=self.sandbox, config=config, sandbox_config=sandbox
        ).container_id
        call("StartContainer", container_id=made)
        return made

    def _value(self, variable: Object) -> str:
        if variable.get("valueFrom") == {"fieldRef": {"fieldPath": "spec.nodeName"}}:
            return self.runtime.machine.name
        value: str = variable["value"]
        return value


@pytest.mark.parametrize(("values", "user"), [("embedded", 0), ("non-root", 64123)])
def test_the_daemonset_serves_pods(fabric: Fabric, folder: Path, built: Build, values: str, user: int) -> None:
    """Each container runs as the manifest has it; the plugin that one installs gets pods their addresses, over an upgrade."""
    with Machine("node-a", folder / "disk", ["/var/lib"]) as machine:
        fabric.plug(machine, 1)
        # A container's /proc is a new one and has the kernel's boot id: the plugin has to see the same, as on any node.
        machine.run("umount", "/proc/sys/kernel/random/boot_id")
        with Runtime(machine, NETWORK, {}, ()) as runtime:
            runtime.load(built.root, NAME, built.config)
            file = ROOT / "helm" / "values" / f"{values}.yaml"
            own = (
                "kubernetes=false",
                f"plugin.directory={machine.disk / 'bin'}",
                "image.repository=localhost/ipamd",
                "image.tag=e2e",
            )
            kubelet = Kubelet(runtime, file, *own)
            with pytest.raises(grpc.RpcError, match="ipamd"):
                runtime.start_pod("too-early")
            kubelet.start()
            status = kubelet.status()
            assert f"Uid:\t{user}\t{user}\t{user}\t{user}\n" in status
            assert "CapEff:\t0000000000000000\n" in status
            assert "CapBnd:\t0000000000000000\n" in status
            assert "NoNewPrivs:\t1\n" in status
            assert "Seccomp:\t2\n" in status
            assert kubelet.run("touch", "/usr/local/x") != 0
            assert kubelet.run("touch", "/run/ipamd/x") == 0
            one, two = runtime.start_pod("one"), runtime.start_pod("two")
            assert all(address.startswith("10.244.") for address in (*one.addresses, *two.addresses))
            assert runtime.pings(one, two.addresses[0])
            kubelet.stop()
            runtime.stop_pod(one.id)  # its DEL is kept until the next daemon
            kubelet.start()
            three = runtime.start_pod("three")
            assert runtime.pings(three, two.addresses[0])
            assert held(machine) == {*two.addresses, *three.addresses}


def held(machine: Machine) -> set[str]:
    """The addresses that the daemon has assigned."""
    connection = UnixConnection(Path(f"/proc/{machine.pid}/root/run/ipamd/ipamd.sock"))
    try:
        connection.request("GET", "/v1/allocations")
        return {view["address"] for view in json.loads(connection.getresponse().read())}
    finally:
        connection.close()
