"""Compiles the plugin for the wheel: one static binary for each architecture, with zig's musl.

Two ways in: ``python ipamd/cni/build.py`` (a Makefile, the tests), and hatchling, which loads this file by its path
as a build hook. So it imports nothing of ipamd, and hatchling only where hatchling asks.

musl and not glibc, because a static glibc program costs more to start than the plugin does to run; zig, because
it is one Python package that compiles for both architectures on either. The baseline CPU of each architecture is
named, so that the binary does not depend on the machine that built it.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = ("x86_64", "aarch64")
HERE = Path(__file__).resolve().parent
SOURCE = HERE / "ipamd-cni.c"
BIN = HERE / "bin"

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
LANGUAGE = ("-std=c11", "-D_GNU_SOURCE", *WARNINGS)
"""Also what the tests compile their sanitized build with."""

# -no-pie: a static program without relocations to do at its start.
OUTPUT = ("-static", "-no-pie", "-O2", "-g0", "-s", "-Wl,--build-id=none")


class BuildError(Exception):
    """The plugin was not compiled; the text holds what the compiler said."""


def binary(architecture: str) -> Path:
    """Return where the plugin for an architecture (``uname -m``) is, or will be."""
    return BIN / f"ipamd-cni-{architecture}"


def is_fresh(target: Path) -> bool:
    """Whether the binary is newer than what it is made from."""
    newest = max(SOURCE.stat().st_mtime_ns, Path(__file__).stat().st_mtime_ns)
    return target.is_file() and target.stat().st_mtime_ns > newest


def compile_plugin(architecture: str, target: Path) -> None:
    """Compile for one architecture; the binary appears whole or not at all. Raises BuildError."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")  # of this process: two builds may run at once
    # A relative source name, so that no path of the building machine can get into the binary.
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", "-mcpu=baseline"]
    command += [*LANGUAGE, *OUTPUT, "-o", str(partial), SOURCE.name]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    if done.returncode != 0:
        raise BuildError(f"cannot compile {SOURCE} for {architecture}:\n{done.stderr}")
    partial.replace(target)


def build(architectures: Sequence[str] = ARCHITECTURES) -> list[Path]:
    """Bring the binaries of the architectures up to date and return their paths. Raises BuildError."""
    BIN.mkdir(exist_ok=True)
    targets = []
    for architecture in architectures:
        target = binary(architecture)
        if not is_fresh(target):
            compile_plugin(architecture, target)
        targets.append(target)
    return targets


def get_build_hook() -> type[Any]:
    """Return the hook class; hatchling calls this name in a custom hook's file."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class CustomBuildHook(BuildHookInterface[Any]):
        """Compiles the plugin before the files of a wheel are collected."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Build for a wheel; a source distribution carries the source.

            In place (editable) only for this machine: a newcomer's first start takes half as long.
            """
            if self.target_name == "wheel":
                own = [each for each in ARCHITECTURES if each == platform.machine()]
                build(own if version == "editable" and own else ARCHITECTURES)

    return CustomBuildHook


if __name__ == "__main__":
    build()
