"""``make release``: the same bytes wherever and whenever, from a commit; a bill of materials; one version."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ipamd import __version__
from ipamd.cni import build
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from ipamd.metrics import Metrics
from release import versions
from release.archives import unpack
from tests.daemon_process import POOLS, Daemon, network

ROOT = Path(__file__).resolve().parent.parent.parent
ELF_SECTION_TABLES = {"symbols": 2, "dynamic": 6}
REPEATED = ("ipamd/__init__.py", "helm/ipamd/Chart.yaml", "docs/helm.md", "CHANGELOG.md")


def make(output: Path, **env: str) -> Path:
    """Make a release of the last commit with these variables; returns the folder.

    The home is this user's: in it zig keeps musl compiled, which takes minutes.
    """
    command = [sys.executable, "-m", "release", "--output", str(output)]
    own = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT), **env}
    # Whoever owns the checkout: git refuses one of another user otherwise.
    own |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    umask = int(env.get("UMASK", "022"), 8)
    done = subprocess.run(command, cwd=output.parent, env=own, umask=umask, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release."""
    return make(tmp_path_factory.mktemp("release") / "dist")


@pytest.fixture(scope="module")
def wheel(made: Path) -> zipfile.ZipFile:
    """Its wheel."""
    return zipfile.ZipFile(made / f"ipamd-{__version__}-py3-none-any.whl")


@pytest.fixture(scope="module")
def bill(made: Path) -> Any:
    """Its bill of materials."""
    return json.loads((made / f"ipamd-{__version__}.cdx.json").read_bytes())


def committed() -> int:
    """When the last commit was made, Unix time."""
    command = ["git", "-c", "safe.directory=*", "show", "--no-patch", "--format=%ct", "HEAD"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def wheel_metadata(wheel: zipfile.ZipFile) -> Message:
    """What a wheel says of itself."""
    return message_from_bytes(wheel.read(f"ipamd-{__version__}.dist-info/METADATA"))


def test_a_second_release_elsewhere_and_later_has_the_same_bytes(made: Path, tmp_path: Path) -> None:
    """Another folder for everything, another time zone, umask and order of hashing: all four files are equal."""
    (tmp_path / "temporary").mkdir()
    env = {"TMPDIR": str(tmp_path / "temporary"), "TZ": "Pacific/Chatham", "UMASK": "077", "PYTHONHASHSEED": "7"}
    again = make(tmp_path / "elsewhere", **env)
    names = sorted(path.name for path in made.iterdir())
    base = f"ipamd-{__version__}"
    assert names == ["SHA256SUMS", f"{base}-py3-none-any.whl", f"{base}.cdx.json", f"{base}.tar.gz"]
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        assert (again / name).read_bytes() == (made / name).read_bytes(), name


def test_no_time_but_the_commits_is_in_it(made: Path, wheel: zipfile.ZipFile, bill: Any) -> None:
    """Neither in the archives' heads nor beside any file: what differs tomorrow would be one of these."""
    at = committed()
    second = datetime.fromtimestamp(at - at % 2, UTC)  # a zip has even seconds
    assert {info.date_time for info in wheel.infolist()} == {second.timetuple()[:6]}
    packed = (made / f"ipamd-{__version__}.tar.gz").read_bytes()
    assert struct.unpack("<I", packed[4:8])[0] in (0, at)
    with tarfile.open(made / f"ipamd-{__version__}.tar.gz") as files:
        assert {member.mtime for member in files} == {at}
        assert {(member.uid, member.gid, member.uname, member.gname) for member in files} == {(0, 0, "", "")}
    assert datetime.fromisoformat(bill["metadata"]["timestamp"]) == datetime.fromtimestamp(at, UTC)


def test_the_source_distribution_makes_the_same_wheel(made: Path, tmp_path: Path) -> None:
    """Whoever distrusts the wheel can make it from the sources, byte for byte."""
    unpack(made / f"ipamd-{__version__}.tar.gz", tmp_path)
    tree = tmp_path / f"ipamd-{__version__}"
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(committed())}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tree, env=env, check=True, capture_output=True)
    name = f"ipamd-{__version__}-py3-none-any.whl"
    assert (tree / "dist" / name).read_bytes() == (made / name).read_bytes()


def test_the_checksums_are_those_of_the_files(made: Path) -> None:
    """As sha256sum reads them, and of every file."""
    lines = (made / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(
        path.name for path in made.iterdir() if path.name != "SHA256SUMS"
    )
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("architecture", build.ARCHITECTURES)
def test_the_wheel_has_the_plugin_static_and_stripped(wheel: zipfile.ZipFile, architecture: str) -> None:
    """For each architecture one, without a table of symbols and without anything to load."""
    elf = wheel.read(f"ipamd/cni/bin/ipamd-cni-{architecture}")
    start, size, count = (int.from_bytes(elf[at : at + length], "little") for at, length in ((40, 8), (58, 2), (60, 2)))
    kinds = {int.from_bytes(elf[start + i * size + 4 :][:4], "little") for i in range(count)}
    assert kinds.isdisjoint(ELF_SECTION_TABLES.values())
    assert kinds


@pytest.mark.real
def test_the_plugin_for_arm64_asks_a_daemon(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Emulated, where the host can: ADD and DEL through the very file of the wheel."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("there is no qemu-aarch64-static to run it with; install qemu-user-static")
    plugin = tmp_path / "plugin"
    plugin.write_bytes(wheel.read("ipamd/cni/bin/ipamd-cni-aarch64"))
    plugin.chmod(0o755)
    with Daemon(tmp_path / "d", "node-a", *POOLS) as daemon:
        for command, held in (("ADD", 1), ("DEL", 0)):
            env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "a", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"}
            env |= {"CNI_PATH": "/opt/cni/bin", "IPAMD_SOCKET": str(daemon.socket)}
            config = json.dumps(network()).encode()
            done = subprocess.run([emulator, plugin], env=env, input=config, capture_output=True, check=False)
            assert done.returncode == 0, done.stdout
            assert len(daemon.get("/v1/allocations")) == held


def test_what_is_not_committed_is_not_in_it(made: Path) -> None:
    """Files are those of the commit, and what the build writes itself."""
    command = ["git", "-c", "safe.directory=*", "ls-tree", "-r", "--name-only", "HEAD"]
    known = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())
    with tarfile.open(made / f"ipamd-{__version__}.tar.gz") as files:
        names = {member.name.partition("/")[2] for member in files if member.isfile()}
    assert names - known == {"PKG-INFO"}
    assert {name for name in known - names if not name.startswith(".ci/")} == set()


# --- the bill of materials ----------------------------------------------------------------------------------------------


def test_the_bill_is_valid_cyclonedx(made: Path) -> None:
    """By the strict schema of its version."""
    text = (made / f"ipamd-{__version__}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_bill_is_of_this_wheel_and_names_all_that_it_needs(made: Path, wheel: zipfile.ZipFile, bill: Any) -> None:
    """Hash of the wheel; each dependency that runs, with the version that the tests ran with, and none that only develops."""
    own = bill["metadata"]["component"]
    assert own["hashes"] == [
        {"alg": "SHA-256", "content": hashlib.sha256(Path(wheel.filename or "").read_bytes()).hexdigest()}
    ]
    assert own["purl"] == f"pkg:pypi/ipamd@{__version__}"
    libraries = {each["purl"]: each for each in bill["components"] if "purl" in each}
    for each in libraries.values():
        assert each["version"] == metadata.version(each["name"])
        assert each["licenses"]
    needs = {each["ref"]: set(each.get("dependsOn", ())) for each in bill["dependencies"]}
    listed = [Requirement(text) for text in wheel_metadata(wheel).get_all("Requires-Dist") or ()]
    direct = {canonicalize_name(each.name) for each in listed if each.marker is None}
    assert {ref.split("/")[1].split("@")[0] for ref in needs[own["bom-ref"]] if ref.startswith("pkg:")} == direct
    reached, todo = set(), [own["bom-ref"]]
    while todo:
        ref = todo.pop()
        if ref not in reached:
            reached.add(ref)
            todo += needs[ref]
    assert reached == {own["bom-ref"]} | {each["bom-ref"] for each in bill["components"]}
    names = {ref.split("/")[1].split("@")[0] for ref in libraries}
    assert {"trio", "outcome", "sniffio", "six", "tenacity", "h11"} <= names, "what dependencies need themselves"
    assert not names & {"pytest", "hypothesis", "ziglang", "atheris", "hatchling"}


def test_the_bill_has_the_compiled_plugins(wheel: zipfile.ZipFile, bill: Any) -> None:
    """With their hashes, and with the C library that is part of them."""
    files = {each["name"]: each["hashes"][0]["content"] for each in bill["components"] if each["type"] == "file"}
    names = {f"ipamd/cni/bin/ipamd-cni-{each}" for each in build.ARCHITECTURES}
    assert files == {name: hashlib.sha256(wheel.read(name)).hexdigest() for name in names}
    needs = {each["ref"]: each.get("dependsOn") for each in bill["dependencies"]}
    assert all(needs[name] == ["musl"] for name in names)
    assert {each["name"] for each in bill["metadata"]["tools"]["components"]} == {"hatchling", "ziglang"}


# --- one version --------------------------------------------------------------------------------------------------------


def test_everybody_says_the_same_version(wheel: zipfile.ZipFile) -> None:
    """Both commands, the metric, the wheel; chart, page and changelog do not contradict."""
    for program in (("ipamd", "--version"), ("ipamd.ctl", "version", "--client")):
        command = [sys.executable, "-m", *program]
        assert (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1]
            == __version__
        )
    registry = Metrics(Ledger("node-a", ReservePolicy()), dict).registry
    assert registry.get_sample_value("ipamd_build_info", {"version": __version__}) == 1
    assert wheel_metadata(wheel)["Version"] == __version__
    assert versions.declared(ROOT) == __version__
    assert versions.problems(ROOT, []) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that say a version, of a project about to release 1.2.0."""
    for name in REPEATED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in REPEATED[:3]:
        file = tmp_path / name
        file.write_text(file.read_text().replace(__version__, "1.2.0"))
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [1.1.0] - 2026-01-02\n")
    return tmp_path


def test_a_version_that_was_forgotten_somewhere_is_told(tree: Path) -> None:
    """By file, with both versions."""
    assert versions.problems(tree, ["nightly"]) == []
    for name in REPEATED[1:3]:
        file = tree / name
        text = file.read_text()
        file.write_text(text.replace("1.2.0", "1.1.9"))
        assert versions.problems(tree, []) == [f"{name} says 1.1.9, ipamd/__init__.py 1.2.0; correct the one"]
        file.write_text(text)
    (tree / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.3.0] - 2026-01-02\n")
    assert versions.problems(tree, []) == ["CHANGELOG.md tells of 1.3.0, ipamd/__init__.py of 1.2.0; correct the one"]


def test_a_tagged_commit_has_the_version_of_its_tag_and_its_section(tree: Path) -> None:
    """A tag is a promise: what carries it is what the changelog describes."""
    assert versions.problems(tree, ["v1.2.0"]) == [
        "CHANGELOG.md does not begin with a dated section [1.2.0]; make one of [Unreleased]"
    ]
    (tree / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.0] - 2026-01-02\n")
    assert versions.problems(tree, ["v1.2.0"]) == []
    assert versions.problems(tree, ["v1.2.1"])[0] == (
        "its tag is v1.2.1, and ipamd/__init__.py says 1.2.0; tag it v1.2.0"
    )


def test_a_commit_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    """And nothing is written."""
    command = [sys.executable, "-m", "release", "--commit", "no-such", "--output", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot release: git show: ")
    assert not (tmp_path / "dist").exists()


def test_without_git_it_is_refused_in_words(tmp_path: Path) -> None:
    """As on a machine that has nothing but what running needs."""
    command = [sys.executable, "-m", "release", "--output", str(tmp_path / "dist")]
    env = {"PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "cannot release: there is no git to read the last commit with; install it\n",
    )
