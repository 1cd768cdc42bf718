"""Input of the parsers that is led by the code it reaches: each by libFuzzer (atheris) in a process of its own.

``python -m tests.fuzz.guided PARSER CORPUS [libFuzzer's options]`` is one of them. Its exit code is libFuzzer's: 0 if
nothing was raised that the parser does not declare. Nothing of ipamd may be imported before atheris watches the imports.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

LONGEST = 4096
"""Bytes of the longest input."""


class Outcome(Struct):
    """How many inputs, what of the code they reached by parser, and in libFuzzer's words what was wrong."""

    inputs: int = 0
    seconds: float = 0.0
    reached: dict[str, str] = {}
    """Branches reached by the samples, and by what came of them."""
    findings: list[str] = []


def main() -> None:
    """One parser. Never returns: libFuzzer ends the process."""
    import atheris  # type: ignore[import-untyped]  # an extra of its own, not in the development environment

    with atheris.instrument_imports(include=["ipamd"], enable_loader_override=False):
        from tests.fuzz import parsers

    name, corpus, *options = sys.argv[1:]
    target = parsers.targets(1)[name]
    for number, sample in enumerate(target.samples):
        (Path(corpus) / str(number)).write_bytes(sample)

    def read(data: bytes) -> None:
        with suppress(*target.declared):
            target.read(data)

    atheris.Setup([sys.argv[0], *options, corpus], read)
    atheris.Fuzz()


def run(directory: Path, seed: int, inputs: int, names: Sequence[str] = ()) -> Outcome:
    """Give each parser, or those of these names, its share of the inputs in a process of its own."""
    from tests.fuzz import parsers

    outcome = Outcome()
    names = names or list(parsers.targets(1))
    for name in names:
        corpus = directory / name
        corpus.mkdir()
        lead(outcome, name, [sys.executable, "-m", "tests.fuzz.guided", name, str(corpus)], seed, inputs // len(names))
    return outcome


def lead(outcome: Outcome, name: str, command: Sequence[str], seed: int, inputs: int) -> None:
    """Let libFuzzer have its way. The last of the command is the directory of samples."""
    directory = Path(command[-1]).parent
    options = (f"-runs={inputs}", f"-seed={seed}", f"-max_len={LONGEST}", f"-artifact_prefix={directory}/")
    began = time.monotonic()
    done = subprocess.run([*command, *options], capture_output=True, text=True, errors="replace", check=False)
    outcome.seconds += time.monotonic() - began
    progress = re.findall(r"^#(\d+)\s.*cov: (\d+)", done.stderr, re.MULTILINE)
    if done.returncode != 0 or not progress:
        said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("INFO:")]
        outcome.findings.append("\n".join((f"{name}:", *said[-60:])))
        return
    outcome.inputs += int(progress[-1][0])
    outcome.reached[name] = f"{progress[0][1]} to {progress[-1][1]}"


if __name__ == "__main__":
    main()
