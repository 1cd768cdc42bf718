"""Photographs Prometheus' own page with the main queries of the dashboard: ``python -m tests.helm.screenshot FILE``.

A real daemon under a little load for two minutes, a real Prometheus, a headless browser (Debian's chromium).
"""

import itertools
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tests.daemon_process import Daemon
from tests.helm.prometheus import PANELS, Prometheus

TITLES = ("Requests", "Time to a reply, 99th percentile", "Reserve: smallest of the nodes", "Addresses by state")
SECONDS = 120
SIZE = (1000, 3120)


def serve(daemon: Daemon) -> None:
    """A node's pods: some start each second and many at once now and then, and each lives for half a minute."""
    began, alive = time.monotonic(), deque[tuple[float, str]]()
    for number in itertools.count():
        now = time.monotonic() - began
        if now > SECONDS:
            return
        daemon.post("ADD", f"c{number}")
        alive.append((now, f"c{number}"))
        while now - alive[0][0] > 30:
            daemon.post("DEL", alive.popleft()[1])
        time.sleep(0.01 if now % 40 < 2 else 0.25)


def main(argv: Sequence[str]) -> None:
    """Write the picture."""
    by_title = {panel["title"]: panel["targets"][0]["expr"] for panel in PANELS}
    fields: dict[str, str] = {}
    for number, title in enumerate(TITLES):
        expression = by_title[title].replace("$instance", ".*").replace("$pool", ".*")
        fields |= {f"g{number}.expr": expression, f"g{number}.tab": "0", f"g{number}.range_input": f"{SECONDS}s"}
    with tempfile.TemporaryDirectory() as directory, Prometheus(Path(directory, "p")) as prometheus:
        serve(prometheus.daemon)
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--window-size={SIZE[0]},{SIZE[1]}", "--force-device-scale-factor=0.7", "--virtual-time-budget=20000",
            f"--user-data-dir={directory}/browser", f"--screenshot={Path(argv[0]).resolve()}",
            f"{prometheus.address}/graph?{urllib.parse.urlencode(fields)}",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main(sys.argv[1:])
