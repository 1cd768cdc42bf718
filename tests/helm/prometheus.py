"""A real Prometheus with our rules that scrapes a real daemon, both of the test's own."""

import itertools
import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.daemon_process import POOLS, Daemon, network, wait_for
from tests.etcd_process import free_port
from tests.systemd.service_manager import missing

FILES = Path(__file__).resolve().parent.parent.parent / "helm" / "ipamd" / "files"
RULES = FILES / "rules.yaml"
PANELS = [each for each in json.loads((FILES / "dashboard.json").read_text())["panels"] if each["type"] != "row"]
"""Of the dashboard as it is in the chart."""

NODES = 25
"""As which a daemon is scraped, where it matters that there are many."""
RANGES = {**network(kind="host-local", ranges=[[{"subnet": "10.9.0.0/16"}]]), "name": "ranges"}


def named(expression: str) -> set[str]:
    """The metrics in an expression; a histogram by its own name, not by those of its parts."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bipamd[\w:]+", expression)}


def promtool(*arguments: str) -> None:
    """Run promtool, which must be content."""
    if shutil.which("promtool") is None:
        missing("cannot check the rules without promtool; install prometheus (tests/system.sh)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """Scrapes and evaluates once a second, one daemon as so many nodes.

    Use it as a context manager; ``address`` is that of its pages.
    """

    def __init__(self, directory: Path, nodes: int = 1) -> None:
        scraped, own = free_port(), free_port()
        self.address = f"http://127.0.0.1:{own}"
        self.daemon = Daemon(directory / "d", "node-a", *POOLS, "--metrics-address", f"127.0.0.1:{scraped}")
        self._directory, self._scraped, self._own, self._nodes = directory, scraped, own, nodes
        self._numbers = itertools.count()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._directory.mkdir(exist_ok=True)
        shutil.copy(RULES, self._directory)
        names = ({"instance": f"10.0.0.{number}:9178", "node": f"node-{number}"} for number in range(self._nodes))
        scraped = [{"targets": [f"127.0.0.1:{self._scraped}"], "labels": labels} for labels in names]
        job = {"job_name": "ipamd", "static_configs": scraped}
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yaml"]}
        file, log = self._directory / "prometheus.yml", self._directory / "log"
        file.write_bytes(msgspec.yaml.encode({**config, "scrape_configs": [job]}))
        command = [
            "prometheus", f"--config.file={file}", f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._own}", "--enable-feature=exemplar-storage",
        ]  # fmt: skip
        with self._stack as stack:
            stack.enter_context(self.daemon)
            output = stack.enter_context(log.open("wb"))
            process = subprocess.Popen(command, stdout=output, stderr=output)
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_for(lambda: self.ask("vector(1)") is not None, 60, lambda: log.read_text()[-3000:])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def ask(self, expression: str) -> list[dict[str, Any]] | None:
        """What it answers to an expression, now; None if it does not listen yet."""
        found = self._get("query", query=expression)
        return None if found is None else found["result"]

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """What it has of exemplars of the last minute, by series."""
        now = time.time()
        return self._get("query_exemplars", query=expression, start=now - 60, end=now) or []

    def _get(self, what: str, **parameters: object) -> Any:
        url = f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except OSError:
            return None

    def value(self, expression: str) -> float | None:
        """The number of the first series that an expression finds; None if there is none or it is not a number."""
        found = self.ask(expression)
        number = float(found[0]["value"][1]) if found else math.nan
        return None if math.isnan(number) else number

    def load(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Start pods, some of them from host-local ranges, and end some, until a condition holds."""

        def step() -> bool:
            number = next(self._numbers)
            self.daemon.post("ADD", f"c{number}")
            if number % 4 == 0:
                self.daemon.post("ADD", f"r{number}", json.dumps(RANGES).encode())
            if number % 3 == 0:
                self.daemon.post("DEL", f"c{number // 2}")
            return until()

        wait_for(step, seconds, lambda: f"after {next(self._numbers)} pods")
