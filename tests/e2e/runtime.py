"""A containerd of the tests' own on a machine of their own, and its pods as a kubelet starts and ends them.

Its images and records are on the machine's disk, what lives only until a reboot is below the machine's ``/run``. So is
libcni's cache of results, in ``/var/lib/cni`` as on any node.
"""

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc

from ipamd.cni.install import install
from tests.daemon_process import wait_for
from tests.e2e.cri import Cri
from tests.e2e.image import archive, busybox
from tests.machine import Machine, inner, reference_plugins

IMAGE = "localhost/busybox:e2e"
_numbers = itertools.count()
CGROUP = f"ipamd-e2e-{os.getpid()}"

_CONFIG = """
version = 2
root = "{disk}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{disk}/net.d"
bin_dir = "{disk}/bin"
"""
"""``native``: it copies, but works on any file system, also on a container's."""


class Pod(NamedTuple):
    """A pod's sandbox: the runtime's id, the name, the addresses that the runtime reports."""

    id: str
    name: str
    addresses: tuple[str, ...]


class Runtime:
    """containerd on ``machine``, from ``start`` to the machine's end; ``network``: the plugin of its CNI configuration.

    ``environment`` is what plugins get besides. ``names``: those under which ipamd's plugin is installed, if it is.
    """

    def __init__(
        self, machine: Machine, network: Mapping[str, object], environment: Mapping[str, str], names: tuple[str, ...]
    ) -> None:
        self.machine = machine
        self.network, self._environment, self._names = network, environment, names
        self._socket = machine.disk / "containerd.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.cache = machine.disk / "cni" / "results"

    def install(self) -> None:
        """Write what is on the disk before the first start."""
        disk, reference = self.machine.disk, reference_plugins()
        assert reference is not None
        for name in ("net.d", "bin", "cni"):
            (disk / name).mkdir(parents=True, exist_ok=True)
        for name in ("ptp", "bridge", "loopback"):
            (disk / "bin" / name).symlink_to(reference / name)
        self.replace_plugin()
        conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [self.network]}
        (disk / "net.d" / "10-pods.conflist").write_text(json.dumps(conflist))
        (disk / "config.toml").write_text(_CONFIG.format(disk=disk, socket=self._socket, image=IMAGE))

    def replace_plugin(self) -> None:
        """Install ipamd's plugin, also over one that is in use."""
        if self._names:
            install(self.machine.disk / "bin", self._names)

    def start(self) -> None:
        """Start containerd and wait until it answers, with the sandboxes' image if it does not have it."""
        disk = self.machine.disk
        known = (disk / "containerd").exists()
        bind = f"mountpoint -q /var/lib/cni || {{ mkdir -p /var/lib/cni && mount --bind '{disk}/cni' /var/lib/cni; }}"
        self.machine.run("sh", "-c", bind)
        with (disk / "containerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.machine.enter, "containerd", "--config", disk / "config.toml"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self._environment},
            )  # fmt: skip
        self.cri = Cri(self._socket)
        wait_for(self._answers, 60, lambda: (disk / "containerd.log").read_text()[-4000:])
        if not known:
            self.load(busybox(disk), IMAGE, {"Entrypoint": ["/bin/sleep", "infinity"]})

    def end(self, number: int = signal.SIGTERM) -> None:
        """End containerd, if its machine has not done it; the containers, which have other parents, live on."""
        self.cri.close()
        process, self._process = self._process, None
        if process is not None:
            if (daemon := inner(process.pid)) is not None:
                os.kill(daemon, number)
            process.wait(20)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.machine.disk / "containerd.log").read_text()[-4000:]
        with suppress(grpc.RpcError):
            self.cri.call("Status")
            return True
        return False

    def ctr(self, *words: str | Path) -> str:
        """Containerd's own command line."""
        return self.machine.run("ctr", "--address", str(self._socket), "--namespace", "k8s.io", *words)

    def load(self, root: Path, name: str, config: dict[str, Any]) -> None:
        """Import an image of a root file system."""
        file = self.machine.disk / "image.tar"
        archive(root, name, file, config)
        self.ctr("images", "import", "--snapshotter", "native", str(file))
        file.unlink()

    def start_pod(self, name: str) -> Pod:
        """A pod with nothing but its sandbox; fails with what the runtime says."""
        answer = self.cri.call("RunPodSandbox", config=self.sandbox(name))
        network = self.cri.call("PodSandboxStatus", pod_sandbox_id=answer.pod_sandbox_id).status.network
        return Pod(answer.pod_sandbox_id, name, (network.ip, *(each.ip for each in network.additional_ips)))

    def sandbox(self, name: str, *, host_network: bool = False) -> dict[str, Any]:
        """A sandbox's configuration, as a kubelet makes it."""
        metadata = {"name": name, "uid": f"uid-{name}", "namespace": "default"}
        linux: dict[str, Any] = {"cgroup_parent": f"/{CGROUP}"}
        if host_network:
            linux["security_context"] = {"namespace_options": {"network": 2}}
        return {"metadata": metadata, "hostname": "" if host_network else name, "linux": linux}

    def stop_pod(self, pod_id: str) -> None:
        """End it: the runtime calls DEL, and forgets it."""
        self.cri.call("StopPodSandbox", pod_sandbox_id=pod_id)
        self.cri.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    def destroy(self, pod: Pod) -> None:
        """Kill it and what watches it, and remove all that the runtime knew of it; no DEL is called."""
        spec = json.loads(self.ctr("containers", "info", pod.id))["Spec"]
        (space,) = [each["path"] for each in spec["linux"]["namespaces"] if each["type"] == "network"]
        for process in self._processes(pod.id):
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: pod.id not in self.ctr("tasks", "list", "--quiet"), 30)
        self.ctr("containers", "delete", pod.id)
        self.machine.run("ip", "netns", "delete", Path(space).name)
        for file in self.cache.glob(f"*-{pod.id}-*"):
            file.unlink()

    def _processes(self, container: str) -> list[int]:
        """The shim of a container and its first process, as the host numbers them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if words[0].endswith(b"containerd-shim-runc-v2") and container.encode() in words:
                    shim = int(path.parent.name)
                    children = (path.parent / "task" / path.parent.name / "children").read_text().split()
                    found += [*map(int, children), shim]
        return found

    def pods(self) -> dict[str, bool]:
        """The sandboxes that containerd knows, and whether they run."""
        return {each.id: each.state == 0 for each in self.cri.call("ListPodSandbox").items}

    def pings(self, pod: Pod, address: str) -> bool:
        """Whether an address answers a program that runs in the pod's container."""
        words = [
            "--address",
            self._socket,
            "--namespace",
            "k8s.io",
            "task",
            "exec",
            "--exec-id",
            f"ping-{next(_numbers)}",
        ]
        command = [*self.machine.enter, "ctr", *words, pod.id, "/bin/ping", "-c1", "-W5", address]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0

    def __enter__(self) -> Self:
        self.install()
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end(signal.SIGKILL)


def remove_cgroups() -> None:
    """Those of containers that ended with their machine are empty, and nobody else removes them."""
    for top in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
        for folder, _folders, _files in os.walk(top, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
