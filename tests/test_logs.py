"""Log lines: one event is one line whatever is in it, and logging neither blocks nor raises."""

import fcntl
import json
import logging
import os
import pty
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ipamd import logs

_PAIR = re.compile(r'([\w.-]+)=("(?:[^"\\]|\\.)*"|[^" ]+)(?: |$)', re.ASCII)


def parse(line: str) -> dict[str, str]:
    """An independent reader of logfmt: pairs with nothing between them but one space; unquotes values."""
    found = list(_PAIR.finditer(line))
    assert "".join(match.group() for match in found) == line
    return {m[1]: json.loads(m[2]) if m[2].startswith('"') else m[2] for m in found}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave structlog and the root logger as they were found."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TextIO]:
    """A file to log to."""
    with (tmp_path / "log").open("w") as file:
        yield file


def lines(stream: TextIO) -> list[str]:
    """What was logged to the file."""
    return Path(stream.name).read_text().splitlines()


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The two ends of a pipe that holds four pages."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
    with os.fdopen(writer, "w") as file:
        yield reader, file
    os.close(reader)


def test_a_line_of_logfmt_has_time_level_component_event_and_values(stream: TextIO) -> None:
    """The fixed parts come first, the values in the order given."""
    logs.configure("info", "logfmt", stream)
    logs.get_logger("flush").info("batch sent", operations=3, block="10.0.0.0/26", borrowed=False, seconds=0.5, to=None)
    (line,) = lines(stream)
    assert re.fullmatch(
        r'ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info component=flush event="batch sent" '
        r"operations=3 block=10\.0\.0\.0/26 borrowed=false seconds=0\.5 to=null",
        line,
    )


def test_a_line_of_json_is_an_object_with_typed_values(stream: TextIO) -> None:
    """Numbers stay numbers; what JSON has no scalar for is its text, nan included."""
    logs.configure("info", "json", stream)
    logs.get_logger("flush").info("batch sent", operations=3, path=Path("/x"), ratio=float("nan"), to=None, new=True)
    (line,) = lines(stream)
    values = json.loads(line)
    assert list(values) == ["ts", "level", "component", "event", "operations", "path", "ratio", "to", "new"]
    assert list(values.values())[1:] == ["info", "flush", "batch sent", 3, "/x", "nan", None, True]


_HOSTILE = st.text(max_size=30) | st.sampled_from(
    ["a\nlevel=error event=forged", 'x" level="error', "\\", "\\n", "\r\n", "\x1b[2J", "\x00", "\u2028", "\ud800", ""]
)


@given(event=_HOSTILE, key=st.text(min_size=1, max_size=10), value=_HOSTILE)
@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_nothing_that_is_logged_can_forge_a_line_or_a_key(
    tmp_path_factory: pytest.TempPathFactory, form: Any, event: str, key: str, value: str
) -> None:
    """Whatever is in event, key and value: one line of printable ASCII, out of which both texts can be read again."""
    key = f"k{key}"
    with (tmp_path_factory.getbasetemp() / "log").open("w") as stream:
        logs.configure("info", form, stream)
        getattr(logs.get_logger("c"), "info")(event, **{key: value})  # noqa: B009 - keys that no keyword can spell
    raw = Path(stream.name).read_bytes()
    assert re.fullmatch(rb"[ -~]+\n", raw)
    line = raw.decode().rstrip("\n")
    read = json.loads(line) if form == "json" else parse(line)
    assert list(read)[:4] == ["ts", "level", "component", "event"]
    assert (read["level"], read["component"], read["event"]) == ("info", "c", event)
    assert list(read.values())[4:] == [value]


def test_an_exception_is_part_of_its_line(stream: TextIO) -> None:
    """A traceback does not spread over lines that somebody else's lines come between."""
    logs.configure("info", "logfmt", stream)
    try:
        compile("foo bar", "x", "exec")
    except SyntaxError:
        logs.get_logger("api").error("request failed", exc_info=True)
    (line,) = lines(stream)
    traceback = parse(line)["exception"].splitlines()
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1].startswith("SyntaxError: ")


def test_a_value_without_end_is_cut_in_the_middle(stream: TextIO) -> None:
    """One event cannot fill the log; its beginning and its end are what helps."""
    logs.configure("info", "logfmt", stream)
    logs.get_logger("api").info("body", text="<" + "x" * 1_000_000 + ">")
    (line,) = lines(stream)
    text = parse(line)["text"]
    assert len(line) < 9000
    assert (text[0], text[-1]) == ("<", ">")
    assert "[991810 characters left out]" in text


def test_events_below_the_level_are_left_out(stream: TextIO) -> None:
    """The level is the least that is logged."""
    logs.configure("warning", "logfmt", stream)
    log = logs.get_logger("api")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)(level)
    assert [parse(line)["event"] for line in lines(stream)] == ["warning", "error"]


def test_a_logger_made_and_used_before_configure_follows_it(stream: TextIO, tmp_path: Path) -> None:
    """Modules make their loggers when they are imported, long before the configuration is known."""
    log = logs.get_logger("api").bind(peer="pid 1")
    with (tmp_path / "other").open("w") as other:
        logs.configure("info", "logfmt", other)
        unbound = logs.get_logger("api")
        unbound.info("first")
        logs.configure("debug", "json", stream)
        unbound.debug("second")
    log_after = logs.get_logger("api").bind(peer="pid 1")
    log_after.info("third")
    assert [json.loads(line)["event"] for line in lines(stream)] == ["second", "third"]
    assert json.loads(lines(stream)[1])["peer"] == "pid 1"
    assert log is not log_after


def test_records_of_the_standard_logging_come_out_in_the_same_form(stream: TextIO) -> None:
    """Libraries log too, and their lines must obey the same rules; a broken record is no reason to fail."""
    logging.getLogger().handlers.clear()  # pytest's own fail a test on a broken record
    logs.configure("info", "logfmt", stream)
    logs.configure("info", "logfmt", stream)
    logging.getLogger("grpc").warning("lost %s\nof %d", "a", 2)
    logging.getLogger("grpc").debug("not this")
    logging.getLogger("grpc").critical("no %d", "number")
    assert [list(parse(line).values())[1:] for line in lines(stream)] == [
        ["warning", "grpc", "lost a\nof 2"],
        ["error", "grpc", "no %d"],
    ]


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_lines_for_the_journal_have_a_priority_and_no_time(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    """When stderr is what JOURNAL_STREAM says, the journal adds the time and reads the priority."""
    reader, writer = pipe
    status = os.fstat(writer.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    logs.configure("debug", form, writer)
    log = logs.get_logger("api")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("x")
    read = os.read(reader, 65536).decode().splitlines()
    assert [line[:3] for line in read] == ["<7>", "<6>", "<4>", "<3>"]
    assert "ts" not in read[0]


def test_a_redirected_stderr_is_not_the_journal(stream: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """JOURNAL_STREAM is inherited by whatever the service runs: only the numbers of the file itself count."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    logs.configure("info", "logfmt", stream)
    logs.get_logger("api").info("x")
    assert lines(stream)[0].startswith("ts=")


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_only_a_terminal_that_wants_them_gets_colours(
    stream: TextIO, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], coloured: bool
) -> None:
    """A terminal shows the level in colour; a file never does."""
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as tty:
        logs.configure("info", "logfmt", tty)
        logs.get_logger("api").error("x")
        assert (b"level=\x1b[31merror\x1b[0m component" in os.read(controller, 4096)) is coloured
    os.close(controller)
    logs.configure("info", "logfmt", stream)
    logs.get_logger("api").error("x")
    assert "\x1b" not in lines(stream)[0]


def test_a_reader_that_stops_reading_does_not_stop_the_daemon(pipe: tuple[int, TextIO]) -> None:
    """Lines that would block are dropped and counted, and a reader that is back is first told how many."""
    reader, writer = pipe
    output = logs.configure("info", "logfmt", writer)
    log = logs.get_logger("api")

    def flood() -> None:
        for number in range(2000):
            log.info("line", number=number)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    first = os.read(reader, 65536).decode().splitlines()
    assert [parse(line)["number"] for line in first] == [str(number) for number in range(len(first))]
    assert output.dropped == 2000 - len(first) > 0
    log.info("back")
    log.info("again")
    after = [parse(line) for line in os.read(reader, 65536).decode().splitlines()]
    assert [line["event"] for line in after] == ["log lines dropped", "back", "again"]
    assert (after[0]["level"], after[0]["count"]) == ("warning", str(output.dropped))


def test_a_line_that_was_cut_off_does_not_swallow_the_next(pipe: tuple[int, TextIO]) -> None:
    """A long line whose second half found the pipe full ends before the next one begins."""
    reader, writer = pipe
    output = logs.configure("info", "logfmt", writer)
    log = logs.get_logger("api")
    log.info("long", one="x" * 8000, two="y" * 8000, three="z" * 8000)
    assert output.dropped == 1
    torn = os.read(reader, 65536)
    assert len(torn) == 16384
    log.info("next")
    ended, dropped, following = os.read(reader, 65536).decode().splitlines()
    assert ended == ""
    assert (parse(dropped)["count"], parse(following)["event"]) == ("1", "next")
    log.info("last")
    assert parse(os.read(reader, 65536).decode().rstrip("\n"))["event"] == "last"


def test_a_reader_that_is_gone_does_not_stop_the_daemon() -> None:
    """A broken pipe is counted like a full one."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        output = logs.configure("info", "logfmt", stream)
        os.close(reader)
        logs.get_logger("api").info("x")
        logs.get_logger("api").info("y")
    assert output.dropped == 2


def test_a_full_disk_does_not_stop_the_daemon() -> None:
    """An error of the device is counted like a full pipe."""
    with Path("/dev/full").open("w") as stream:
        output = logs.configure("info", "logfmt", stream)
        logs.get_logger("api").info("x")
    assert output.dropped == 1


def test_who_listens_hears_what_is_logged_meanwhile(stream: TextIO) -> None:
    """Level, event and values of each line of the level asked for; it is written all the same."""
    heard: list[tuple[str, dict[str, object]]] = []
    logs.configure("info", "logfmt", stream)
    log = logs.get_logger("api")
    log.info("before")
    with logs.heard_by(lambda level, values: heard.append((level, dict(values)))):
        log.warning("meanwhile", count=1)
        log.debug("not asked for")
    log.info("after")
    assert heard == [("warning", {"component": "api", "event": "meanwhile", "count": 1})]
    assert [parse(line)["event"] for line in lines(stream)] == ["before", "meanwhile", "after"]
