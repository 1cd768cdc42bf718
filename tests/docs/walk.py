"""The commands of a page, run one block after the other, as somebody types them who works through it.

Where a block of output follows a block of commands at once, it is what they printed: blanks count as one, ``...`` in a
line of its own stands for any lines, and times, ages, revisions and names of state files for others of their kind.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
LONG = pytest.mark.skipif("CI" not in os.environ, reason="takes a minute of real programs; CI runs it")

_BLOCK = re.compile(
    r"(?P<skip><!-- test: skip, [^>]+ -->\n)?^```sh\n(?P<commands>.*?)^```$(?:\n\n```(?:json|yaml)?\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_VARIES = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)", "TIME"),
    (r"(?<=ipamd-reserve-)([\w-]+)\.[0-9a-f]{8}", r"\1.FILE"),
)


class Walk:
    """A page of ``docs``; at the end of the context all its commands must have been run.

    ``folder``: where they are run; ``environment``: what they have beside the programs of this environment; ``places``:
    folders to use in place of the system's.
    """

    def __init__(
        self, page: str, folder: Path, environment: Mapping[str, str], places: Mapping[str, str] | None = None
    ) -> None:
        text = (DOCS / page).read_text()
        self._places = places or {}
        self._blocks = [found for found in _BLOCK.finditer(text) if not found["skip"]]
        self._page, self._folder = page, folder
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        for name, module in (("ipamctl", "ipamd.ctl"), ("ipamd", "ipamd")):
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            script.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IPAMD_")}
        self._environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "COLUMNS": "100",
            **environment,
        }

    def __enter__(self) -> "Walk":
        assert self._blocks, f"{self._page} has no commands"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            assert [found["commands"] for found in self._blocks] == [], f"not run, of {self._page}"

    def run(self, times: int = 1, code: int = 0, **environment: str) -> str:
        """Run the next block, or blocks: each in a shell that stops at the first failure; returns what was printed."""
        printed = ""
        for _ in range(times):
            found = self._blocks.pop(0)
            commands = found["commands"]
            for name, place in self._places.items():
                commands = commands.replace(name, place)
            done = subprocess.run(
                ["sh", "-euc", commands],
                cwd=self._folder,
                env={**self._environment, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == code, f"{self._page}:\n{found['commands']}\n{done.stdout}\n{done.stderr}"
            if found["shown"] is not None:
                same(found["shown"], done.stdout or done.stderr)
            printed += done.stdout
        return printed


def same(shown: str, printed: str) -> None:
    """What a page shows is what was printed."""
    parts = [re.escape(part).replace(r"\ ", " ") for part in re.split(r"^\.\.\.\n", plain(shown), flags=re.MULTILINE)]
    assert re.fullmatch(r"(?:.*\n)*".join(parts), plain(printed)), f"the page shows\n{shown}\nprinted was\n{printed}"


def plain(text: str) -> str:
    """A text without what differs from run to run."""
    for pattern, name in _VARIES:
        text = re.sub(pattern, name, text)
    return "".join(re.sub(r"[ \t]+", " ", line).rstrip() + "\n" for line in text.strip("\n").splitlines())
