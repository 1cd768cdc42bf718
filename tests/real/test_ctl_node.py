"""``ipamctl`` on a running daemon: status, top, explain, events, reserve, drain, import, bundle."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from ipamd.ctl.main import COMMANDS, cli
from tests.api.host_local import HostLocal
from tests.api.plugin_call import ENVIRONMENT
from tests.ctl.terminal import Screen, on_terminal
from tests.daemon_process import POOLS, Daemon, network, wait_for
from tests.runtime.results import cached

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parent.parent.parent
LAN = network("1.0.0", "host-local", ranges=[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the embedded store, with a pool of each IP version, and a pod."""
    results = tmp_path / "results"
    cached(results, "web", [])
    with Daemon(tmp_path / "d", "node-a", *POOLS, "--runtime-results-dir", str(results)) as started:
        started.add("web", args="K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1")
        yield started


def run(daemon: Daemon, *argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run the program on a daemon; returns exit code, output and errors."""
    command = (sys.executable, "-m", "ipamd.ctl", "--socket", str(daemon.socket), *argv)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


def ok(daemon: Daemon, *argv: str) -> str:
    """What a command printed that succeeded without a complaint."""
    code, out, err = run(daemon, *argv)
    assert (code, err) == (0, ""), out
    return out


def examples() -> Iterator[str]:
    """Every line of the examples in the help of the commands on a node, and of their subcommands."""
    names = [[name] for name in COMMANDS["Node"]]
    for name in COMMANDS["Node"]:
        found = cli.get_command(click.Context(cli), name)
        if isinstance(found, click.Group):
            names += [[name, each] for each in found.commands]
    for argv in names:
        done = subprocess.run(
            [sys.executable, "-m", "ipamd.ctl", *argv, "--help"], capture_output=True, text=True, check=True
        )
        _, _, told = done.stdout.partition("Examples:\n")
        lines = [line.strip() for line in told.splitlines() if line.startswith("  ipamctl ")]
        assert lines, argv
        yield from lines


def test_every_example_of_the_help_works(daemon: Daemon, tmp_path: Path) -> None:
    """As it stands, but for the folders; who follows is ended."""
    (tmp_path / "networks" / "lan").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    conflist = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [{"type": "portmap"}, network()]}
    (tmp_path / "10-calico.conflist").write_text(json.dumps(conflist))
    program = shutil.which("ipamd", path=str(Path(sys.executable).parent)) or f"{sys.executable} -m ipamd"
    here = {
        "/etc/cni/net.d": str(tmp_path), " --data-dir /var/lib/cni/networks": "", "/opt/cni/bin": str(tmp_path / "bin"),
        "import host-local": f"import host-local --data-dir {tmp_path / 'networks'}",
        "-- ipamd": f"-- {program}", "ipamctl": f"{sys.executable} -m ipamd.ctl --socket {daemon.socket}",
    }  # fmt: skip
    for line in dict.fromkeys(examples()):
        command = line
        for words, instead in here.items():
            command = command.replace(words, instead)
        if "--follow" in line:
            command = f"timeout 3 {command}"
        (tmp_path / "networks" / "lan").mkdir(exist_ok=True)
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == (124 if "--follow" in line else 0), (line, done.stdout, done.stderr)
        assert done.stdout, line
    assert (tmp_path / "bin" / "host-local").exists()


def test_explain_a_pod(daemon: Daemon, tmp_path: Path) -> None:
    """What it holds, and for the next ADD each pool with what admits or excludes it."""
    told = ok(daemon, "explain", "pod", "default/web-1")
    lines = told.splitlines()
    assert lines[:2] == [
        "Pod default/web-1 on node node-a",
        "  Kubernetes: it is not asked: kubernetes.config is not set",
    ]
    assert re.search(
        r"^  192\.168\.\d+\.\d+  pool default-ipv4-ippool, block 192\.168\.\S+/26, since 20\S+Z", told, re.MULTILINE
    )
    assert "    container web eth0 of network k8s-pod-network" in lines
    following = daemon.get("/v1/reserve")[0]["addresses"][0]
    assert f"IPv4: the next ADD gets {following} of pool default-ipv4-ippool, block " in told
    assert "  yes pool default-ipv4-ippool (192.168.0.0/16) serves: it is enabled and Automatic, and its" in told
    assert "IPv6: the next ADD " in told
    config = tmp_path / "x.conf"
    config.write_text(json.dumps(network(ipv4_pools=["nope"])))
    told = ok(daemon, "explain", "pod", "default/web-1", "--cni-config", str(config))
    error = daemon.plugin("ADD", "x", network(ipv4_pools=["nope"]), args="K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1")
    assert f"is refused with code 100:\n  {error.json['msg']}\n" in told
    assert "  no  pool nope does not exist; name an enabled pool of this IP version, by name or CIDR" in told
    assert "\x1b" not in told, "no colours where no terminal is"


def test_explain_an_address_and_the_node(daemon: Daemon) -> None:
    """Whose it is and what keeps it from others; what the node may use."""
    (address,) = (view["address"] for view in daemon.get("/v1/allocations"))
    told = ok(daemon, "explain", "address", address)
    assert told.startswith(f"Address {address}: default/web-1 on this node has it")
    assert f"is refused with code 104:\n  cannot assign {address} to " in told
    assert ok(daemon, "explain", "address", address, "-o", "jsonpath={.holder.pod}") == "web-1"
    told = ok(daemon, "explain", "node")
    assert told.startswith(
        "Node node-a: ready\n  labels: none\n  at most 20 blocks; may claim them by itself; may borrow"
    )
    assert "  192.168." in told.partition("\nBlocks\n")[2]
    code, out, err = run(daemon, "explain", "node", "other")
    assert (code, out) == (1, "")
    assert err == "ipamctl: cannot explain: this daemon serves node node-a, not other; ask the daemon of that node\n"
    assert run(daemon, "--db", "/x", "explain", "node")[0] == 2


def test_status_and_top(daemon: Daemon) -> None:
    """One screen: ready, store, flush, requests, pools, the last errors; what happens a second."""
    daemon.plugin("ADD", "x", network(ipv4_pools=["nope"]))
    told = ok(daemon, "status")
    assert re.match(r"ipamd \S+ on node node-a, up \d+s: ready\nstore       embedded, connected\nflush ", told)
    assert "\nrequests    ADD 2 (1 failed)\n" in told
    assert re.search(r"^default-ipv4-ippool +1 +1 +\d+ +\d+ +0$", told, re.MULTILINE)
    assert re.search(
        r"^  20\S+Z ADD default/pod-x: code 100\n    cannot assign an IPv4 address to default/pod-x", told, re.MULTILINE
    )
    status = json.loads(ok(daemon, "status", "-o", "json"))
    assert (status["ready"], status["requests"]["ADD"]) == (True, {"0": 1, "100": 1})
    told = ok(daemon, "top", "--interval", "0.2", "--count", "2")
    assert len(re.findall(r"^ADD/s +0\.0   failed 0\.0$", told, re.MULTILINE)) == 2
    ok(daemon, "drain", "--wait", "20")
    code, out, err = run(daemon, "status")
    assert code == 1
    assert ": not ready\n  the node is being drained" in out
    assert err == "ipamctl: node node-a is not ready: the node is being drained\n"


def test_on_a_terminal(daemon: Daemon) -> None:
    """Lines are folded to its width; ``top`` draws over itself until Ctrl-C, which is no error, and over a restart."""
    daemon.plugin("ADD", "x", network(ipv4_pools=["nope"]))
    heights = []
    for columns in (80, 200):
        shown, _ = on_terminal(["--socket", str(daemon.socket), "status"], columns)
        assert max(map(len, shown.splitlines())) <= columns
        heights.append(len(shown.splitlines()))
    assert heights[0] > heights[1]
    with Screen(["--socket", str(daemon.socket), "top", "--interval", "0.2"], 40) as screen:
        shown = screen.until("default-ipv6-ippool")
        assert shown.startswith("\x1b[H\x1b[J")
        assert max(map(len, click.unstyle(shown).splitlines())) <= 40
        daemon.stop()
        screen.until("cannot reach ipamd at")
        daemon.start()
        screen.until("default-ipv6-ippool")
        screen.type("\x03")
        assert "interrupted" not in screen.to_the_end()
        assert screen.process.wait(20) == 0


def test_reserve_drain_and_undrain(daemon: Daemon) -> None:
    """The reserve goes back, and comes again."""
    rows = ok(daemon, "reserve").splitlines()
    assert rows[0].split() == ["POOL", "AVAILABLE", "WANTED", "MISSING", "WAITING", "NEXT", "WHY"]
    assert rows[1].split()[0] == "default-ipv4-ippool"
    assert len(ok(daemon, "reserve", "-o", "wide").splitlines()[1].split()[6].split(",")) == int(rows[1].split()[1])
    assert ok(daemon, "drain", "--wait", "20") == "drained\n"
    assert json.loads(ok(daemon, "drain", "-o", "json"))["drained"]
    assert ok(daemon, "undrain") == "not draining\n"
    wait_for(lambda: daemon.get("/readyz")["ready"])


def test_gc(daemon: Daemon, tmp_path: Path) -> None:
    """Without leaks it says so; where the runtime's cache says nothing, nothing is called leaked."""
    assert ok(daemon, "gc") == "nothing looks leaked\n"
    assert json.loads(ok(daemon, "gc", "--release", "--yes", "-o", "json")) == {"items": []}
    shutil.rmtree(tmp_path / "results")
    code, out, err = run(daemon, "gc")
    assert (code, out) == (1, "")
    assert err.startswith("ipamctl: cannot tell what is leaked: the container runtime's cache ")


def test_events_are_followed_over_a_restart(daemon: Daemon) -> None:
    """Each request as it is answered; while the daemon is away it is waited for, and said so once."""
    assert re.search(r"^20\S+Z +add +default/web-1 +192\.168\.\S+$", ok(daemon, "events"), re.MULTILINE)
    command = (
        sys.executable,
        "-m",
        "ipamd.ctl",
        "--socket",
        str(daemon.socket),
        "events",
        "--follow",
        "--pod",
        "default/pod-y",
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            (address,) = daemon.add("y")
            assert re.match(rf"20\S+Z add   default/pod-y {address}\n", follower.stdout.readline())
            daemon.stop()
            daemon.start()
            daemon.delete("y")
            assert re.match(r"20\S+Z del   default/pod-y \n", follower.stdout.readline())
        finally:
            follower.terminate()
    daemon.add("z")
    lines = ok(daemon, "events", "-o", "json")
    assert json.loads(lines)["items"][-1]["pod"] == "pod-z"


def held(daemon: Daemon) -> dict[str, list[str]]:
    """The addresses of host-local ranges that the daemon holds, by container."""
    found: dict[str, list[str]] = {}
    for view in daemon.get("/v1/allocations"):
        if "block" not in view:
            found.setdefault(view["container"], []).append(view["address"])
    return found


def test_a_node_with_fifty_pods_of_host_local_is_taken_over(daemon: Daemon, tmp_path: Path) -> None:
    """Each pod keeps its addresses, its DEL goes through ipamd and leaves nothing, and no ADD gives one twice."""
    data = tmp_path / "networks"
    reference = HostLocal(data)
    given: dict[str, list[str]] = {}
    for number in range(50):
        answer = reference.call(LAN, {**ENVIRONMENT, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": f"pod{number}"})
        assert answer is not None
        given[f"pod{number}"] = [each["address"].partition("/")[0] for each in json.loads(answer)["ips"]]
    told = ok(daemon, "import", "host-local", "--data-dir", str(data), "--dry-run")
    assert told == "would take over 100 addresses of 1 network\n"
    assert held(daemon) == {}
    told = ok(daemon, "import", "host-local", "--data-dir", str(data), "--", "sh", "-c", "echo installed")
    assert re.fullmatch(
        rf"took over 100 addresses of 1 network\ninstalled\nmoved {data}/k8s-pod-network to "
        rf"{data}\.imported/k8s-pod-network-\d+T\d+\.\d+Z\n",
        told,
    )
    assert held(daemon) == given
    assert list(data.iterdir()) == []
    daemon.kill()
    daemon.start()
    assert held(daemon) == given, "it was on the disk"
    assert daemon.add("pod7", LAN, name="host-local") == given["pod7"]
    new = {f"new{number}": daemon.add(f"new{number}", LAN, name="host-local") for number in range(50)}
    addresses = [address for each in (*given.values(), *new.values()) for address in each]
    assert len(addresses) == len(set(addresses)) == 200
    assert new["new0"] == ["10.1.0.52", "fd00:1::34"], "they follow the last that host-local gave"
    for container in (*given, *new):
        daemon.delete(container, LAN, name="host-local")
    assert held(daemon) == {}
    daemon.kill()
    daemon.start()
    assert held(daemon) == {}


def test_a_conflict_with_host_local_takes_over_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """Both holders are named, host-local's files stay, and the command that follows is not run."""
    data = tmp_path / "networks"
    daemon.add("mine", LAN, name="host-local")
    HostLocal(data).call(LAN, {**ENVIRONMENT, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "theirs"})
    before = sorted(each.name for each in (data / "k8s-pod-network").iterdir())
    code, out, err = run(daemon, "import", "host-local", "--data-dir", str(data), "--", "sh", "-c", "echo installed")
    assert (code, out) == (1, "")
    assert (
        "10.1.0.2 of network k8s-pod-network is container theirs (eth0)'s according to host-local, and default/" in err
    )
    code, out, err = run(daemon, "import", "host-local", "--data-dir", str(data), "--dry-run")
    assert code == 1
    assert out.count("  conflict: ") == 2
    assert sorted(each.name for each in (data / "k8s-pod-network").iterdir()) == before


def test_a_command_that_fails_leaves_host_local_as_it_was(daemon: Daemon, tmp_path: Path) -> None:
    """The addresses are held here too, so that running it again is all there is to do."""
    data = tmp_path / "networks"
    HostLocal(data).call(LAN, {**ENVIRONMENT, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a"})
    code, _out, err = run(daemon, "import", "host-local", "--data-dir", str(data), "--", "false")
    assert code == 1
    assert "cannot put ipamd's plugin in host-local's place: false ended with 1; the addresses are taken over" in err
    assert (data / "k8s-pod-network" / "10.1.0.2").exists()
    told = ok(daemon, "import", "host-local", "--data-dir", str(data))
    assert told.startswith("took over 0 addresses of 1 network; 2 were here already\nmoved ")


def test_host_local_is_locked_out_meanwhile(daemon: Daemon, tmp_path: Path) -> None:
    """An ADD of host-local that comes while the command runs gets no address that nobody knows of."""
    data = tmp_path / "networks"
    reference = HostLocal(data)
    reference.call(LAN, {**ENVIRONMENT, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a"})
    waits = f"flock --nonblock {data}/k8s-pod-network/lock true && exit 1; exit 0"
    assert "moved" in ok(daemon, "import", "host-local", "--data-dir", str(data), "--", "sh", "-c", waits)


def test_files_of_old_versions_and_of_others(daemon: Daemon, tmp_path: Path) -> None:
    """A file that names no interface is eth0's; one that is no address is told, and nothing is taken over."""
    folder = tmp_path / "networks" / "lan"
    folder.mkdir(parents=True)
    (folder / "10.1.0.9").write_text("old")
    (folder / "notes").write_text("x")
    code, out, err = run(daemon, "import", "host-local", "--data-dir", str(folder.parent))
    assert (code, out, held(daemon)) == (1, "", {})
    assert "cannot read what host-local holds: 'notes' does not appear to be an IPv4 or IPv6 address" in err
    (folder / "notes").unlink()
    ok(daemon, "import", "host-local", "--data-dir", str(folder.parent))
    (view,) = (view for view in daemon.get("/v1/allocations") if "block" not in view)
    assert (view["network"], view["container"], view["interface"]) == ("lan", "old", "eth0")
    code, _out, err = run(daemon, "import", "host-local", "--data-dir", str(tmp_path / "none"))
    assert (code, "there is no folder" in err) == (1, True)


def test_the_bundle_has_everything_but_secrets(tmp_path: Path) -> None:
    """What the daemon says of itself, in one archive that only its maker may read."""
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    with Daemon(
        tmp_path / "d", "node-a", *POOLS, "--etcd-username", "ipamd", "--etcd-password-file", str(secret)
    ) as daemon:
        daemon.add("web")
        file = tmp_path / "bundle.tar.gz"
        assert ok(daemon, "bundle", str(file)) == f"{file}\n"
        assert file.stat().st_mode & 0o777 == 0o600
        with tarfile.open(file) as archive:
            parts = {
                name.partition("/")[2]: io.BytesIO(found.read()).getvalue()
                for name in archive.getnames()
                if (found := archive.extractfile(name)) is not None
            }
        assert sorted(parts) == [
            "README", "allocations.json", "blocks.json", "check.json", "config.json", "events.json", "explain-node.json", "metrics.txt",
            "pools.json", "reserve.json", "routes.json", "status.json", "tunnel-addresses.json",
        ]  # fmt: skip
        assert json.loads(parts["config.json"])["etcd"]["password_file"] == str(secret)
        assert json.loads(parts["allocations.json"])[0]["pod"] == "pod-web"
        assert b"ipamd_reserve_addresses" in parts["metrics.txt"]
        assert b"hunter2" not in b"".join(parts.values())
        code, _out, err = run(daemon, "bundle", str(file))
        assert (code, err) == (1, f"ipamctl: cannot write {file}: File exists; name another file\n")
