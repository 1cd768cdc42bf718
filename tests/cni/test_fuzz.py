"""Random input on the sanitized build, and the configuration's scanner against a real JSON decoder."""

import json
import random

import pytest

PIECES = [
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"\x00", b"\xff", b"1", b"null", b"\\u0041"),
    *(b'"cniVersion"', b'"ipam"', b'"socket"', b'"/nowhere"', b'"1.0.0"', b'{"ipam":{"socket":', b'{"cniVersion":'),
]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nIpamd-Exit: 3\r\n\r\nhello"
TOKENS = [
    b"\r\n",
    b"\r\n\r\n",
    b":",
    b"Content-Length: ",
    b"Ipamd-Exit: ",
    b"9" * 20,
    b"-",
    b"\x00",
    b"HTTP/1.1 ",
    b" ",
]


@pytest.fixture
def plugin(sanitized):
    """Return the build that reports what the release build might survive by luck."""
    return sanitized


def mutated(dice, text, pieces):
    """Return the text with some of its bytes cut out, replaced and inserted."""
    for _ in range(dice.randint(1, 6)):
        at, to = sorted(dice.randint(0, len(text)) for _ in range(2))
        text = text[:at] + dice.choice(pieces) * dice.choice([0, 1, 1, 1, 3]) + text[dice.choice([at, at, to]) :]
    return text


@pytest.mark.parametrize("seed", range(4))
def test_any_configuration_is_carried_or_refused_in_json(run, where, seed):
    """Whatever is on stdin, the plugin ends with a decodable object; nothing listens, so there is no other end."""
    dice = random.Random(seed)  # noqa: S311 - a failing seed must repeat
    for _ in range(40):
        configuration = b"".join(dice.choices(PIECES, k=dice.randint(0, 60)))
        if dice.random() < 0.5:
            configuration = b'{"cniVersion": "0.4.0", "ipam": {"socket": "/nowhere"}}'
            configuration = mutated(dice, configuration, PIECES)
        command = dice.choice(["ADD", "VERSION"])
        code, stdout = run(configuration, CNI_COMMAND=command, IPAMD_CONNECT_TIMEOUT="0")
        result = json.loads(stdout)
        assert code == (0 if command == "VERSION" else 1), configuration
        assert ("supportedVersions" in result) == (command == "VERSION"), configuration
        assert command == "VERSION" or result["code"] in (5, 7, 11), configuration


@pytest.mark.parametrize("seed", range(4))
def test_any_answer_is_printed_whole_or_refused_in_json(run, serve, seed):
    """Whatever the daemon sends, stdout is a body of the stated length or one error object of the plugin."""
    dice = random.Random(seed)  # noqa: S311 - a failing seed must repeat
    sent = [mutated(dice, ANSWER, TOKENS) for _ in range(40)]
    serve(*sent, b"")
    for answer in sent:
        code, stdout = run(IPAMD_CONNECT_TIMEOUT="0")
        body = answer.partition(b"\r\n\r\n")[2]
        if body.startswith(stdout) and b"Ipamd-Exit" in answer:
            continue
        assert code == 1, answer
        assert json.loads(stdout)["code"] in (5, 11), answer


def document(dice, depth):
    """Return a random JSON value full of the names that the scanner looks for."""
    names = ["cniVersion", "ipam", "socket", "x", '"', "\\", "{", "}", "é"]
    kind = dice.choice(["text", "text", "number", "list", "object", "object"]) if depth else "object"
    if depth > 3 or kind == "text":
        return dice.choice([*names, "0.4.0", "1.0.0", "/run/a", "/run/b"])
    if kind == "number":
        return dice.choice([None, True, -1.5e3, 7])
    if kind == "list":
        return [document(dice, depth + 1) for _ in range(dice.randint(0, 3))]
    return {dice.choice(names): document(dice, depth + 1) for _ in range(dice.randint(0, 5))}


@pytest.mark.parametrize("seed", range(4))
def test_the_scanner_agrees_with_a_json_decoder(run, seed):
    """In any valid document the plugin finds the version and the socket that a JSON decoder finds, and no other."""
    dice = random.Random(seed)  # noqa: S311 - a failing seed must repeat
    for _ in range(60):
        value = document(dice, 0)
        configuration = json.dumps(value, ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, 1])).encode()
        _, stdout = run(configuration, IPAMD_CONNECT_TIMEOUT="0", IPAMD_SOCKET="/run/none")
        error = json.loads(stdout)
        version = value.get("cniVersion")
        assert error["cniVersion"] == (
            version if version in ("0.4.0", "1.0.0", "x", "ipam", "socket", "cniVersion") else "1.1.0"
        )
        ipam = value.get("ipam")
        named = ipam.get("socket", "/run/none") if isinstance(ipam, dict) else "/run/none"
        if (
            not isinstance(named, str)
            or "\\" in json.dumps(named, ensure_ascii=False)
            or (named == "é" and b"\\u" in configuration)
        ):
            assert error["code"] == 7, configuration
        else:
            assert f"at {named}: ".encode().decode("latin-1") in error["msg"], configuration
