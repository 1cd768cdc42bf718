"""Input of the plugin's source that is led by the code it reaches: by libFuzzer (clang), with the kernel's part played."""

import shutil
import subprocess
from pathlib import Path

from ipamd.cni import build
from tests.fuzz.calls import Call, Calls
from tests.fuzz.guided import Outcome, lead

SAMPLES = 400
"""Calls of the plugin from which others are made."""

HARNESS = Path(__file__).with_name("guided_plugin.c")
VARIABLES = (
    *(b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME", b"CNI_ARGS", b"CNI_PATH", b"IPAMD_SOCKET"),
    *(b"IPAMD_TIMEOUT", b"IPAMD_CONNECT_TIMEOUT", b"IPAMD_SPOOL_DIR"),
)
"""In the order of the harness."""
UNSET = b"\x1f"
"""Stands for a variable that is not there."""


def run(directory: Path, seed: int, inputs: int, source: Path = build.SOURCE) -> Outcome:
    """Give the plugin's source inputs, in one process that plays what it asks of the kernel. Needs clang."""
    program, corpus = directory / "guided-plugin", directory / "plugin"
    shutil.copy(source, directory / "ipamd-cni.c")
    checks = ["-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    command: list[str | Path] = ["clang", "-std=c11", "-D_GNU_SOURCE", *checks, "-I", directory, "-o", program, HARNESS]
    subprocess.run(command, check=True, timeout=120)
    corpus.mkdir()
    calls = Calls(seed)
    for number in range(SAMPLES):
        (corpus / str(number)).write_bytes(_sample(calls.call(away=number % 4 == 0, answers=1.0), number))
    outcome = Outcome()
    lead(outcome, "plugin", [str(program), str(corpus)], seed, inputs)
    return outcome


def _sample(call: Call, flags: int) -> bytes:
    """A call as the harness in C reads it."""
    texts = [call.environment.get(name, UNSET) for name in VARIABLES]
    answer = call.answer.text if call.answer is not None else b""
    return bytes([flags % 64]) + b"\0".join([*texts, call.name, (call.stdin or b"").replace(b"\0", b""), answer])
