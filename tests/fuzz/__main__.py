"""``python -m tests.fuzz``: hostile requests at a real daemon's socket, or at its parsers; the last line has the figures.

1 if anything was wrong: then it is told, with the command that sends the same requests again.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import campaign, parsers


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="what all of them are drawn from (default: 1)")
    parser.add_argument("--processes", type=int, default=2, help="of clients (default: 2)")
    parser.add_argument("--parsers", action="store_true", help="damaged input at every parser in turn, in this process")
    arguments = parser.parse_args()
    return parse(arguments) if arguments.parsers else ask(arguments)


def parse(arguments: argparse.Namespace) -> int:
    """Damaged input at the parsers."""
    outcome = parsers.run(arguments.seed, arguments.requests)
    for finding in outcome.findings[:20]:
        sys.stdout.write(f"{finding}\n")
    if outcome.findings:
        sys.stdout.write(
            f"again: python -m tests.fuzz --parsers --seed {arguments.seed} --requests {arguments.requests}\n"
        )
    each = ", ".join(f"{name} {count} ({outcome.refused[name]} refused)" for name, count in outcome.inputs.items())
    total = sum(outcome.inputs.values())
    sys.stdout.write(
        f"{each}\ninputs {total}, {outcome.seconds:.0f} s, {total / outcome.seconds:.0f} a second, "
        f"findings {len(outcome.findings)}\n"
    )
    return bool(outcome.findings)


def ask(arguments: argparse.Namespace) -> int:
    """Hostile requests at a daemon's socket."""
    with tempfile.TemporaryDirectory(prefix="ipamd-fuzz-") as directory:
        outcome = campaign.run(Path(directory), arguments.seed, arguments.requests, arguments.processes)
    for finding in outcome.findings[:20]:
        sys.stdout.write(f"{finding}\n")
    if outcome.findings:
        again = f"--seed {arguments.seed} --requests {arguments.requests} --processes {arguments.processes}"
        sys.stdout.write(f"again: python -m tests.fuzz {again}\n")
    answers = ", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items()))
    sys.stdout.write(
        f"requests {outcome.requests}, {outcome.seconds:.0f} s, {outcome.requests / outcome.seconds:.0f} a second, "
        f"answers {answers}, at most {outcome.memory >> 20} MiB and {outcome.descriptors} descriptors, "
        f"{outcome.addresses} addresses held at the end and released, findings {len(outcome.findings)}\n"
    )
    return bool(outcome.findings)


if __name__ == "__main__":
    sys.exit(main())
