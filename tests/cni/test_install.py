"""The plugin's installation into a directory that a runtime is using."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from ipamd.cni import install as module
from ipamd.cni.install import NAMES, InstallError, binary_for, install


@pytest.fixture(autouse=True)
def _built(release):
    """Compile the plugin if it is not there."""


def test_the_plugin_is_installed_under_all_its_names(tmp_path, release):
    """Without a choice, each name is a program with the bytes of this machine's binary."""
    paths = install(tmp_path)
    assert paths == [tmp_path / "ipamd", tmp_path / "calico-ipam", tmp_path / "host-local"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for path in paths:
        assert path.read_bytes() == release.read_bytes()
        assert path.stat().st_mode & 0o7777 == 0o755


def test_a_choice_of_names_leaves_the_others_alone(tmp_path):
    """What is not named is not touched: host-local may be somebody else's."""
    (tmp_path / "host-local").write_text("theirs")
    assert install(tmp_path, ["calico-ipam", "calico-ipam"]) == [tmp_path / "calico-ipam"]
    assert (tmp_path / "host-local").read_text() == "theirs"
    assert not (tmp_path / "ipamd").exists()


def test_an_installed_plugin_runs(tmp_path):
    """The program answers VERSION under its new name."""
    (path,) = install(tmp_path, ["ipamd"])
    done = subprocess.run(
        [path], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True, timeout=30
    )
    assert done.stdout.startswith(b'{"cniVersion":"1.1.0"')


def test_the_mode_does_not_depend_on_the_umask(tmp_path):
    """A hardened root shell installs a program that the runtime can still run."""
    before = os.umask(0o077)
    try:
        (path,) = install(tmp_path, ["ipamd"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o755


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    """Another plugin that a name points to keeps its bytes."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "calico-ipam").symlink_to("theirs")
    install(tmp_path, ["calico-ipam"])
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "calico-ipam").is_symlink()


def test_a_runtime_never_meets_a_missing_or_half_written_plugin(tmp_path):
    """While the plugin is installed over and over, every run of it succeeds."""
    install(tmp_path, ["ipamd"])
    loop = 'while [ ! -e "$0.stop" ]; do "$0" </dev/null >/dev/null || exit 1; echo; done'
    script = subprocess.Popen(
        ["/bin/sh", "-c", loop, tmp_path / "ipamd"], env={"CNI_COMMAND": "VERSION"}, stdout=subprocess.PIPE
    )
    assert script.stdout is not None
    for _ in range(100):
        install(tmp_path, ["ipamd"])
        assert script.stdout.readline() == b"\n", "a run failed"
    (tmp_path / "ipamd.stop").touch()
    script.communicate(timeout=30)
    assert script.returncode == 0


@pytest.mark.parametrize("names", [["bridge"], ["ipamd", "../ipamd"], []])
def test_other_names_are_refused(tmp_path, names):
    """The daemon would not know what to answer; nothing is installed, not even the good names."""
    with pytest.raises(InstallError, match="choose from ipamd, calico-ipam, host-local"):
        install(tmp_path, names)
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_refused(tmp_path):
    """The words say which directory is wanted; a file in its place is no better."""
    with pytest.raises(InstallError, match=r"not a directory.*opt/cni/bin"):
        install(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="not a directory"):
        install(tmp_path / "file")


def test_a_directory_of_a_plugins_name_is_refused(tmp_path):
    """It cannot be replaced by a file, and is found before the first name changes."""
    (tmp_path / "host-local").mkdir()
    with pytest.raises(InstallError, match="that is a directory"):
        install(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["host-local"]


def test_a_directory_that_cannot_be_written_is_refused():
    """The words say so, for root on a read-only file system as for anybody else."""
    with pytest.raises(InstallError, match=r"/proc.*(not writable|writable and its disk has space)"):
        install(Path("/proc/self"))


def test_a_full_disk_leaves_the_old_plugin_and_no_debris(tmp_path, monkeypatch):
    """A failure between the first byte and the rename changes nothing that a runtime sees."""
    (tmp_path / "ipamd").write_text("old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(InstallError, match="No space left on device"):
        install(tmp_path, ["ipamd"])
    assert [path.name for path in tmp_path.iterdir()] == ["ipamd"]
    assert (tmp_path / "ipamd").read_text() == "old"


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("aarch64", "aarch64"), ("arm64", "aarch64")],
)
def test_each_machine_gets_its_binary(machine, architecture):
    """All the usual names of the two architectures are known."""
    assert binary_for(machine).name == f"ipamd-cni-{architecture}"


def test_an_unknown_machine_is_refused(tmp_path, monkeypatch):
    """The words name the machine and what there is."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(InstallError, match="none for riscv64; it is built for x86_64 and aarch64"):
        install(tmp_path)


def test_a_plugin_that_was_not_built_is_explained(tmp_path, monkeypatch):
    """The words say how to build it."""
    monkeypatch.setattr(module, "BINARIES", tmp_path / "bin")
    with pytest.raises(InstallError, match=r"python -m ipamd\.cni\.build"):
        install(tmp_path)
