"""Log lines on stderr: one event a line, as logfmt or JSON, through structlog.

Promises:

- A value cannot forge a line or a key: whatever is in it, an event is one line, and what could be misread is quoted.
- Logging neither blocks nor raises. When whoever reads stderr stops reading, lines are dropped and counted, and the
  next line that gets through is preceded by one that says how many are missing.
- Under systemd (stderr is the journal's socket) lines carry the priority that the journal reads (``<6>``) and no
  time, as the journal has its own; elsewhere they begin with the time in UTC.

Order of calls: ``configure`` once, before the first event; ``get_logger`` at any time. Records of the standard
``logging`` (grpc's, for one) come out in the same form.

May import nothing of ipamd.
"""

import json
import logging
import math
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TextIO

from msgspec import Struct

# Where rich is installed, structlog loads it to draw tracebacks in colour: 6 MiB and a tenth of the start, for nothing
# that a daemon shows.
_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment] # what makes an import fail, as if it were not installed
import structlog  # noqa: E402 - see above

if _hidden:
    del sys.modules["rich"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # sd-daemon(3)
_COLOURS = {"debug": 2, "info": 32, "warning": 33, "error": 31, "critical": 31}  # ECMA-48, SGR

_PIECE = select.PIPE_BUF
"""Bytes in one write: a pipe that is writable takes as many without blocking, pipe(7)."""
_LONGEST = 8192
"""Characters of one value; of a longer one the middle is left out."""
_PLAIN = re.compile(r"[\w!#$%&'()*+,./:;<>?@\[\]^`{|}~-]+", re.ASCII)
"""Values that logfmt needs no quotes for."""
_KEY = re.compile(r"[^\w.-]", re.ASCII)

Format = Literal["logfmt", "json"]


class Logger(Protocol):
    """What ``get_logger`` gives: an event is a fixed text, what varies goes into the values."""

    def debug(self, event: str, /, **values: Any) -> Any:
        """Something of use to whoever works on ipamd."""

    def info(self, event: str, /, **values: Any) -> Any:
        """Something that an administrator wants to find later."""

    def warning(self, event: str, /, **values: Any) -> Any:
        """Something that may need attention."""

    def error(self, event: str, /, **values: Any) -> Any:
        """Something that needs attention."""

    def bind(self, **values: Any) -> "Logger":
        """A logger that adds these values to each event."""


def get_logger(name: str) -> Logger:
    """The logger of a part of the daemon (``flush``, ``api``)."""
    logger: Logger = structlog.get_logger(component=name)
    return logger


def configure(level: str, format: Format, stream: TextIO) -> "Output":  # noqa: A002 - the word of the configuration key
    """Send events of ``level`` (a key of LEVELS) and above to ``stream``, which must have a file descriptor.

    Returns where they go, for the count of those dropped.
    """
    output = Output(stream.fileno(), Style.of(format, stream, os.environ))
    structlog.configure(
        processors=[structlog.processors.format_exc_info, _tell, output.process],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,  # else a logger used before a second configure() keeps the first one's output
    )
    root = logging.getLogger()
    root.setLevel(LEVELS[level])
    if not any(isinstance(handler, _FromStandard) for handler in root.handlers):
        root.addHandler(_FromStandard())
    return output


_listeners: list[Callable[[str, Mapping[str, Any]], None]] = []


@contextmanager
def heard_by(listener: Callable[[str, Mapping[str, Any]], None]) -> Iterator[None]:
    """Tell each event that is logged meanwhile to a listener too, as its level and its values."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _tell(_: object, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog's last processor but one."""
    for listener in _listeners:
        listener(method, event_dict)
    return event_dict


def sentence(error: Exception) -> str:
    """What an error says, without the "[Errno 98]" that Python puts before a sentence of our own."""
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror
    return str(error)


class Style(Struct, frozen=True):
    """What a line looks like, which depends on who reads it."""

    render: Callable[[Mapping[str, Any]], str]
    journal: bool
    colours: bool

    @staticmethod
    def of(format: Format, stream: TextIO, env: Mapping[str, str]) -> "Style":  # noqa: A002 - as for configure
        """The style for a stream, given the environment (``JOURNAL_STREAM``, ``NO_COLOR``, ``TERM``)."""
        status = os.fstat(stream.fileno())
        journal = env.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        plain = bool(env.get("NO_COLOR")) or env.get("TERM", "dumb") == "dumb"
        colours = format == "logfmt" and not journal and not plain and stream.isatty()
        return Style(render_json if format == "json" else render_logfmt, journal, colours)

    def line(self, level: str, values: Mapping[str, Any]) -> str:
        """One event as a line, without its end."""
        if self.journal:
            return f"<{_PRIORITIES[level]}>{self.render({'level': level, **values})}"
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = self.render({"ts": now, "level": level, **values})
        if not self.colours:
            return line
        return line.replace(f"level={level}", f"level=\x1b[{_COLOURS[level]}m{level}\x1b[0m", 1)


class Output:
    """Where lines go: a file descriptor that is asked before each write whether it would block."""

    def __init__(self, descriptor: int, style: Style) -> None:
        self.dropped = 0
        """Lines lost since the start, because nobody read them or they could not be written."""
        self._descriptor = descriptor
        self._style = style
        self._reported = 0
        self._torn = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def process(self, _: object, method: str, event_dict: MutableMapping[str, Any]) -> Any:
        """Structlog's last processor: write the event, and leave nothing for the logger's method to do."""
        first = {key: event_dict.pop(key) for key in ("component", "event") if key in event_dict}
        self.write(method, {**first, **event_dict})
        raise structlog.DropEvent

    def write(self, level: str, values: Mapping[str, Any]) -> None:
        """Write one event, or count it as dropped."""
        if self.dropped > self._reported:
            missing = self.dropped - self._reported
            if not self._put(self._style.line("warning", {"event": "log lines dropped", "count": missing})):
                self.dropped += 1
                return
            self._reported += missing
        if not self._put(self._style.line(level, values)):
            self.dropped += 1

    def _put(self, line: str) -> bool:
        """Whether the whole line was written; the end of a torn one is supplied before the next."""
        data = f"{line}\n".encode(errors="backslashreplace")
        if self._torn:
            data = b"\n" + data
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            try:
                written = os.write(self._descriptor, piece) if self._poll.poll(0) else 0
            except OSError:  # the reader is gone, or the disk is full: there is nobody to tell
                return False
            if written:
                self._torn = not piece[:written].endswith(b"\n")
            if written < len(piece):
                return False
        return True


def render_logfmt(values: Mapping[str, Any]) -> str:
    """``key=value`` pairs; a value with anything but plain characters is a JSON string."""
    return " ".join(f"{_KEY.sub('_', key)}={_logfmt_value(_scalar(value))}" for key, value in values.items())


def render_json(values: Mapping[str, Any]) -> str:
    """One JSON object, in ASCII; what JSON has no scalar for is a string."""
    return json.dumps({key: _scalar(value) for key, value in values.items()})


def _logfmt_value(value: str | float | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _scalar(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    text = str(value)
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"
    return text


class _FromStandard(logging.Handler):
    """Hands records of the standard ``logging`` on, under the name of their logger."""

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), "debug")
        values: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            event = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the text, in a library
            event = str(record.msg)
        getattr(get_logger(record.name), level)(event, **values)
