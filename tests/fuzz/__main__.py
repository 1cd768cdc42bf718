"""``python -m tests.fuzz TARGET``: hostile input from a seed; the last line has the figures.

1 if anything was wrong: then it is told, with the command that draws the same input again.
"""

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ipamd.cni import build
from tests.cni.sanitized import compile_sanitized
from tests.fuzz import campaign, guided, guided_plugin, parsers, plugin_campaign


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "target",
        choices=("socket", "plugin", "sanitized", "parsers", "guided", "guided-plugin"),
        help="requests at a daemon's socket; starts of the plugin, or of its sanitized build; input of every parser, by "
        "chance or led by the code it reaches; input of the plugin's source that is led by that",
    )
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="what all of them are drawn from (default: 1)")
    parser.add_argument("--processes", type=int, default=2, help="that send or start (default: 2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipamd-fuzz-") as directory:
        figures, findings = _run(arguments, Path(directory))
    for finding in findings[:20]:
        sys.stdout.write(f"{finding}\n")
    options = f"--requests {arguments.requests} --seed {arguments.seed} --processes {arguments.processes}"
    if findings:
        sys.stdout.write(f"again: python -m tests.fuzz {arguments.target} {options}\n")
    sys.stdout.write(f"{arguments.target} {options}: {figures}, findings {len(findings)}\n")
    return bool(findings)


def _run(arguments: argparse.Namespace, directory: Path) -> tuple[str, Sequence[str]]:
    """Figures and findings."""
    requests, seed, processes = arguments.requests, arguments.seed, arguments.processes
    if arguments.target == "parsers":
        parsed = parsers.run(seed, requests)
        refused = {f"{name} ({parsed.refused[name]} refused)": count for name, count in parsed.inputs.items()}
        return _figures(sum(parsed.inputs.values()), parsed.seconds, refused), parsed.findings
    if arguments.target.startswith("guided"):
        led = (guided if arguments.target == "guided" else guided_plugin).run(directory, seed, requests)
        reached = {f"{name}, branches": text for name, text in led.reached.items()}
        return _figures(led.inputs, led.seconds, reached), led.findings
    if arguments.target == "socket":
        asked = campaign.run(directory, seed, requests, processes)
        figures = (
            f"{_figures(asked.requests, asked.seconds, asked.statuses)}; at most {asked.memory >> 20} MiB and "
            f"{asked.descriptors} descriptors, {asked.addresses} addresses held at the end and released"
        )
        return figures, asked.findings
    if arguments.target == "plugin":
        build.build([platform.machine()])
        program = build.binary(platform.machine())
    else:
        program = compile_sanitized(directory / "ipamd-cni")
    called = plugin_campaign.run(directory, program, seed, requests, processes)
    figures = (
        f"{_figures(called.calls, called.seconds, called.outcomes)}; {called.addresses} addresses held at the end and "
        "released"
    )
    return figures, called.findings


def _figures(count: int, seconds: float, outcomes: Mapping[str, object]) -> str:
    each = ", ".join(f"{name}: {number}" for name, number in sorted(outcomes.items()))
    return f"{count} in {seconds:.0f} s, {count / seconds:.0f} a second; {each}"


if __name__ == "__main__":
    sys.exit(main())
