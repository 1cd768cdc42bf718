"""The build of the plugin, by hand and by hatchling."""

import os
import shutil

import pytest
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.plugin.utils import load_plugin_from_script

from ipamd.cni import build
from ipamd.cni.build import BuildError

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
PT_INTERP = 3


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Give the module a source folder of its own."""
    shutil.copy(build.SOURCE, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "SOURCE", tmp_path / build.SOURCE.name)
    monkeypatch.setattr(build, "BIN", tmp_path / "bin")
    return tmp_path


@pytest.fixture
def compiled(monkeypatch):
    """Record what would be compiled, and leave an empty file for it."""
    calls = []

    def compile_plugin(architecture, target):
        calls.append(architecture)
        target.touch()

    monkeypatch.setattr(build, "compile_plugin", compile_plugin)
    return calls


@pytest.mark.parametrize("architecture", build.ARCHITECTURES)
def test_each_binary_is_static_and_for_its_architecture(release, architecture):
    """No interpreter is asked for: the host needs no libc of any kind."""
    elf = build.binary(architecture).read_bytes()
    assert elf[:6] == b"\x7fELF\x02\x01"
    assert int.from_bytes(elf[18:20], "little") == ELF_MACHINES[architecture]
    start, size, count = (int.from_bytes(elf[at : at + length], "little") for at, length in [(32, 8), (54, 2), (56, 2)])
    kinds = [int.from_bytes(elf[start + i * size :][:4], "little") for i in range(count)]
    assert kinds
    assert PT_INTERP not in kinds


def test_the_same_source_makes_the_same_bytes_anywhere(release, sources):
    """No path, time or machine gets into the binary."""
    for architecture in build.ARCHITECTURES:
        target = sources / architecture
        build.compile_plugin(architecture, target)
        shipped = build.binary(architecture)
        assert target.read_bytes() == (build.Path(build.__file__).parent / "bin" / shipped.name).read_bytes()
        assert str(sources).encode() not in target.read_bytes()


def test_only_what_is_older_than_its_source_is_compiled(sources, compiled):
    """A second build costs nothing; a changed source, a changed build and a missing binary are noticed."""
    build.build()
    assert compiled == ["x86_64", "aarch64"]
    newest = max(build.SOURCE.stat().st_mtime, os.stat(build.__file__).st_mtime)  # noqa: PTH116
    for architecture in build.ARCHITECTURES:
        os.utime(build.binary(architecture), (newest + 10, newest + 10))
    build.build()
    assert compiled == ["x86_64", "aarch64"]
    os.utime(build.SOURCE, (newest + 20, newest + 20))
    build.build()
    assert compiled == ["x86_64", "aarch64"] * 2


def test_a_compiler_error_is_shown_and_leaves_no_binary(sources):
    """The words of the compiler reach whoever builds."""
    build.SOURCE.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(BuildError, match=r"cannot compile .*for x86_64:[\s\S]*nothing"):
        build.build()
    assert not list((sources / "bin").iterdir())


@pytest.mark.parametrize(("target", "architectures"), [("wheel", ["x86_64", "aarch64"]), ("sdist", [])])
def test_hatchling_builds_the_plugin_for_a_wheel_only(sources, compiled, target, architectures):
    """Hatchling finds the hook in the file, and a source distribution needs no compiler."""
    assert issubclass(
        load_plugin_from_script(build.__file__, "hook", BuildHookInterface, "build_hook"), BuildHookInterface
    )
    hook = build.get_build_hook()(str(sources), {}, None, None, str(sources), target)
    hook.initialize("standard", {})
    assert compiled == architectures
