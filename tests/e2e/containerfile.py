"""Carries out ``helm/Containerfile`` without a registry: the same steps, on a root file system of the system's packages.

Understood is what that file has; anything else is refused. A RUN sees what this machine's own pip is told: where to look
and whom to trust.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = "python3,python3-pip,ca-certificates"
TOLD = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")

_CHROOT = """
set -e
root=$1; shift
for file in $FILES; do
    [ -e "$file" ] || continue
    if [ -d "$file" ]; then mkdir -p "$root$file"; else mkdir -p "$root${file%/*}"; touch "$root$file"; fi
    mount --bind "$file" "$root$file"
done
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
exec chroot "$root" /bin/sh -c "$1"
"""


def base(root: Path, network: Sequence[str]) -> None:
    """A root file system with what images of Python have: ``python3`` and a pip that may install into it.

    ``network``: what to put before a command that is to reach the packages.
    """
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = system.get("VERSION_CODENAME", "stable")
    command = [*network, "debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for file in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        file.unlink()
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / folder)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction with its words, on one line."""
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        if line.strip():
            name, _, words = line.strip().partition(" ")
            yield name, words.strip()


class Build:
    """The stages of a file; ``root`` and ``config`` are the image's when ``run`` has ended."""

    def __init__(self, base_root: Path, context: Path, folder: Path, network: Sequence[str]) -> None:
        self._base, self._context, self._folder, self._network = base_root, context, folder, network
        self._stages: dict[str, Path] = {}
        self.root = folder
        self.config: dict[str, Any] = {}

    def run(self, file: Path) -> None:
        """Carry out all of it."""
        known = {"ARG": self._arg, "FROM": self._from, "COPY": self._copy, "RUN": self._run, "ENV": self._env}
        for name, words in instructions(file.read_text()):
            if name in ("ENTRYPOINT", "CMD"):
                self.config[name.capitalize()] = json.loads(words)
            else:
                known[name](words)

    def _arg(self, words: str) -> None:
        assert words.startswith("BASE="), f"ARG {words} is not known"

    def _from(self, words: str) -> None:
        source, _, name = words.partition(" AS ")
        assert source == "${BASE}", f"{source} is not the base"
        self.root = self._stages[name] = self._folder / f"stage-{len(self._stages)}"
        self.config = {"Env": [f"PATH={PATH}"], "Entrypoint": [], "Cmd": []}
        subprocess.run(["cp", "-a", self._base, self.root], check=True, timeout=300)

    def _copy(self, words: str) -> None:
        parts = words.split()
        source = self._stages[parts.pop(0).removeprefix("--from=")] if parts[0].startswith("--from=") else self._context
        what, target = parts
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        found = source / what.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True)
        else:
            shutil.copy2(found, place)

    def _run(self, words: str) -> None:
        told = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT", "REQUESTS_CA"))
        }
        files = [*TOLD, *(word for value in told.values() for word in value.split() if word.startswith("/"))]
        env = {
            "HOME": "/root",
            **told,
            **dict(each.split("=", 1) for each in self.config["Env"]),
            "FILES": " ".join(map(shlex.quote, files)),
        }
        command = [*self._network, "unshare", "--mount", "sh", "-c", _CHROOT, "chroot", self.root, words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"

    def _env(self, words: str) -> None:
        self.config["Env"] += shlex.split(words)
