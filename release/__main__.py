"""``make release``: wheel, source distribution, SBOM and checksums of a commit.

They are byte for byte the same wherever they are made, and made from the commit, not from the checkout: nothing that is
not committed gets in. What can differ between two machines is named in the SBOM: what they were built with.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from release import sbom, versions
from release.archives import unpack

ROOT = Path(__file__).resolve().parent.parent
SUMS = "SHA256SUMS"


class ReleaseError(Exception):
    """No release was made; the text says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make a release of a commit; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    parser.add_argument("--commit", default="HEAD", help="what to make it of (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where to put it (default: dist)")
    arguments = parser.parse_args(argv)
    try:
        made = release(arguments.commit, arguments.output)
    except ReleaseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"{path}\n" for path in made)
    return 0


def release(commit: str, output: Path) -> list[Path]:
    """Make all files of a release in ``output`` and return their paths. Raises ReleaseError."""
    epoch = int(_git("show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}"))
    with tempfile.TemporaryDirectory() as directory:
        tree, built = Path(directory, "tree"), Path(directory, "built")
        _export(commit, tree)
        problems = versions.problems(tree, _git("tag", "--points-at", commit).split())
        if problems:
            raise ReleaseError("\n".join(f"cannot release {commit}: {each}" for each in problems))
        _build(tree, built, epoch)
        (wheel,) = built.glob("*.whl")
        bill = wheel.with_name(f"ipamd-{versions.declared(tree)}.cdx.json")
        bill.write_text(sbom.of_wheel(wheel, epoch))
        made = sorted(built.iterdir())
        sums = built / SUMS
        sums.write_text("".join(f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}\n" for each in made))
        output.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(each, output)) for each in (*made, sums)]


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    except FileNotFoundError as error:
        raise ReleaseError("cannot release: there is no git to read the last commit with; install it") from error
    if done.returncode != 0:
        raise ReleaseError(
            f"cannot release: git {arguments[0]}: {done.stderr.strip()}; do it in a clone of the repository"
        )
    return done.stdout


def _export(commit: str, tree: Path) -> None:
    archive = tree.with_suffix(".tar")
    _git("archive", "--format=tar", f"--output={archive}", commit)
    unpack(archive, tree)


def _build(tree: Path, built: Path, epoch: int) -> None:
    # Nothing of this environment decides but what is installed in it.
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "SOURCE_DATE_EPOCH": str(epoch)}
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(built)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - the same
    if done.returncode != 0:
        raise ReleaseError(f"cannot build the release:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
