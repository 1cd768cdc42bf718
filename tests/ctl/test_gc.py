"""``gc`` where something looks leaked: shown, and released only by who says so."""

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.places import Done

LEAK = {
    "handle": "net.c",
    "addresses": ["10.0.0.1"],
    "why": "Kubernetes has no pod a/b on this node",
    "seconds_left": 90.0,
}
SHOWN = (
    "ADDRESSES   HANDLE   RELEASED IN   WHY\n"
    "10.0.0.1    net.c    90s           Kubernetes has no pod a/b on this node\n"
)


class Answers(http.server.BaseHTTPRequestHandler):
    """A daemon with a leak, which notes the methods it was called with."""

    asked: list[str]

    def _answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        body = json.dumps({"released": self.command == "POST", "problem": "", "leaks": [LEAK]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def address_string(self) -> str:
        """There is none."""
        return ""


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[list[str]]:
    """What a daemon at ``sock`` is asked."""
    calls: list[str] = []
    handler = type("Handler", (Answers,), {"asked": calls})
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "sock"), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield calls
        server.shutdown()
        thread.join()


def test_what_looks_leaked_is_shown(ipamctl: Callable[..., Done], tmp_path: Path, asked: list[str]) -> None:
    """With its reason, and when the daemon releases it by itself; nothing is released by looking."""
    assert ipamctl("--socket", str(tmp_path / "sock"), "gc") == (0, SHOWN, "")
    assert ipamctl("--socket", str(tmp_path / "sock"), "gc", "-o", "name") == (0, "handle/net.c\n", "")
    assert asked == ["GET /v1/gc"] * 2


def test_who_releases_says_so(ipamctl: Callable[..., Done], tmp_path: Path, asked: list[str]) -> None:
    """A script has to say --yes, as nobody can be asked; then it is released, and what was is shown."""
    flags = ("--socket", str(tmp_path / "sock"), "gc", "--release")
    done = ipamctl(*flags)
    assert (done.code, done.out) == (2, "")
    assert done.err == "ipamctl: cannot ask whether to release them: standard input is no terminal; say --yes\n"
    assert asked == ["GET /v1/gc"]
    assert ipamctl(*flags, "--yes") == (0, SHOWN, "released 1 allocation\n")
    assert asked[1:] == ["GET /v1/gc", "POST /v1/gc"]
