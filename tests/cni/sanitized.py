"""The plugin as the system's compiler builds it with sanitizers: it ends with a report at the first thing that is wrong."""

import subprocess
from pathlib import Path

from ipamd.cni import build

CHECKS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""Bad accesses, leaks and undefined operations."""


def compile_sanitized(target: Path, source: Path = build.SOURCE) -> Path:
    """Compile it; returns where it is."""
    subprocess.run(["cc", *build.LANGUAGE, *CHECKS, "-o", target, source], check=True, timeout=120)
    return target
