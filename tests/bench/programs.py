"""The benchmark's own programs, in C so that the harness is not what is measured; compiled when they are needed.

Static, with the same compiler and options as the plugin: ``spawner`` starts plugins, ``echo`` is the least that a
daemon can be, ``load`` asks a daemon over open connections. What each is told and prints stands at its top.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipamd.cni.build import LANGUAGE, OUTPUT

HERE = Path(__file__).resolve().parent
NAMES = ("spawner", "echo", "load")


def compile_programs(directory: Path) -> None:
    """Compile all programs into ``directory``, each under its name."""
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    common = (HERE / "common.h").stat().st_mtime_ns
    for name in NAMES:
        source, target = HERE / f"{name}.c", directory / name
        if target.is_file() and target.stat().st_mtime_ns > max(source.stat().st_mtime_ns, common):
            continue
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{os.uname().machine}-linux-musl"]
        # From here, as the plugin from its folder: where zig's own library lies below, it compiles musl once more.
        command = [*compiler, *LANGUAGE, *OUTPUT, "-o", target, source.name]
        subprocess.run(command, check=True, timeout=300, cwd=HERE)


def run_program(program: Path, *arguments: str, told: str = "", timeout: float = 600.0) -> list[str]:
    """Run a program to its end; returns the lines it printed. Raises RuntimeError with its words if it failed."""
    done = subprocess.run(
        [program, *arguments], input=told, capture_output=True, text=True, check=False, timeout=timeout
    )
    if done.returncode:
        raise RuntimeError(f"cannot measure: {program.name} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.splitlines()


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside runs on this core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
