"""What must be true of the plugin's exit code and standard output, told from the call alone."""

import json
import os

from tests.fuzz.calls import Answer, Call

OF_THE_DAEMON = (
    "cannot reach ipamd at ",
    "cannot read the answer ",
    "cannot get an answer ",
    "cannot understand the answer ",
)
"""How the plugin's own words begin when the daemon does not answer as it should."""

OF_THE_CALL = ("cannot send ", "cannot read the network configuration ")
"""How they begin when something is wrong with what the runtime gave."""

HEAD_LIMIT = 64 << 10
BODY_LIMIT = 64 << 20
AGAIN = 11
CODES = {4, 5, 7, AGAIN}
"""The codes that the plugin itself gives."""


class WrongError(Exception):
    """The plugin did what it must never do."""


def judge(call: Call, status: int, stdout: bytes, *, away: bool) -> str:
    """A word for what came of the call; raises WrongError. ``status`` is as waitpid returns it."""
    if os.WIFSIGNALED(status):
        raise WrongError(f"ended by signal {os.WTERMSIG(status)}")
    code = os.waitstatus_to_exitcode(status)
    if call.stdout:  # nobody reads
        return "unread"
    if call.answer is not None and call.verb not in (b"", b"VERSION"):
        return _of_answer(call, call.answer, code, stdout)
    if code == 1:
        error = _error(stdout)
        if not away and not call.strays and str(error["msg"]).startswith(OF_THE_DAEMON):
            raise WrongError(f"a daemon that serves did not answer: {stdout!r}")
        return f"code {error['code']}"
    if code != 0:
        raise WrongError(f"exit code {code}")
    if call.verb == b"VERSION":
        if not json.loads(stdout)["supportedVersions"]:
            raise WrongError(f"no version is supported: {stdout!r}")
        return "VERSION"
    if call.verb == b"ADD":
        _result(stdout)
        return "ADD"
    if stdout:
        raise WrongError(f"success of {call.verb!r} says {stdout!r}")
    return call.verb.decode() + (" kept" if away else "")


def _error(stdout: bytes) -> dict[str, object]:
    """The error object, decoded."""
    try:
        error = json.loads(stdout)
    except ValueError:
        raise WrongError(f"exit code 1 without an error object: {stdout!r}") from None
    sound = isinstance(error, dict) and type(error.get("code")) is int and error.get("msg") and "cniVersion" in error
    if not sound:
        raise WrongError(f"exit code 1 with what is no error object: {stdout!r}")
    return dict(error)


def _result(stdout: bytes) -> None:
    """A result with an address, of whatever version."""
    try:
        result = json.loads(stdout)
    except ValueError:
        raise WrongError(f"success of ADD without a result: {stdout!r}") from None
    if not (result.get("ips") or result.get("ip4") or result.get("ip6")):
        raise WrongError(f"success of ADD without an address: {stdout!r}")


def _of_answer(call: Call, answer: Answer, code: int, stdout: bytes) -> str:
    """The answer as it stands, or a refusal: of the answer, or of the call if something is wrong with that."""
    expected = read_answer(answer.text)
    if (code, stdout) == expected:
        return "answer passed on"
    refusable = expected is None or call.strays or len(answer.text) > HEAD_LIMIT
    if refusable and (code, stdout) == (0, b"") and call.verb == b"DEL":
        return "DEL kept"
    error = _error(stdout) if code == 1 else {}
    if error.get("code") in CODES and (refusable or str(error["msg"]).startswith(OF_THE_CALL)):
        return f"refused with code {error['code']}"
    raise WrongError(f"answer {answer.text!r} gave exit code {code} and {stdout!r}, not {expected}")


def read_answer(text: bytes) -> tuple[int, bytes] | None:
    """Exit code and body of an answer, or None for what must be refused: the plugin's rules, written once more."""
    head, end, body = text.partition(b"\r\n\r\n")
    if not end or not text.startswith(b"HTTP/1."):
        return None
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or (name in found and name in (b"content-length", b"ipamd-exit")):
            return None
        found[name] = value.strip(b" \t")
    length, code = _number(found.get(b"content-length")), _number(found.get(b"ipamd-exit"))
    if length is None or code is None or code > 255 or length > min(BODY_LIMIT, len(body)):
        return None
    return code, body[:length]


def _number(text: bytes | None) -> int | None:
    """Digits only; of any number of them only the first that count."""
    return int(text.lstrip(b"0")[:20] or b"0") if text and text.isdigit() else None
