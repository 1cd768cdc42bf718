"""Calls of the plugin from a seed: what a runtime gives it, and what the other side of its socket answers.

They are made from the calls that Calico's own plugin was captured with, sound or with some part of them spoilt.
"""

import json
import random
from typing import Any

from msgspec import Struct

from tests.core.captured import DATA, steps
from tests.fuzz.hostile import TEXTS, VERBS, Hostile, damage

NODE = "node-a"
"""The node that every call is for, unless that is spoilt."""

NAMES = (*("calico-ipam",) * 40, "host-local", "ipamd", "/opt/cni/bin/calico-ipam", "/", "a/", "\x7f", "x" * 300)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\nIpamd-Exit: %d\r\n\r\nhello"
PIECES = (
    *(b"\r\n", b"\r\n\r\n", b":", b" ", b"\t", b"-", b"\x00", b"\n", b"HTTP/1.1 ", b"9" * 20, b"0" * 70_000),
    *(b"Content-Length: ", b"Ipamd-Exit: ", b"content-length:5\r\n", b"IPAMD-EXIT:1\r\n", b"Content-Length: 67108864"),
)


class Answer(Struct, frozen=True):
    """What is sent on each connection of the plugin, and whether the connection then stays open."""

    text: bytes
    hangs: bool


class Call(Struct, frozen=True):
    """One start of the plugin."""

    name: bytes
    environment: dict[bytes, bytes]
    """Without the plugin's own variables, but for those that are spoilt."""
    stdin: bytes | None
    """None: it is closed."""
    stdout: str
    """A path instead of what reads it, or "closed"; empty: it is read."""
    answer: Answer | None
    """None: the call is for the daemon."""

    @property
    def verb(self) -> bytes:
        """The CNI command."""
        return self.environment.get(b"CNI_COMMAND", b"")

    @property
    def strays(self) -> bool:
        """Whether it may ask somebody else than it should, or not wait as long."""
        return b'"socket"' in (self.stdin or b"") or any(name.startswith(b"IPAMD_") for name in self.environment)


def _captured(step: dict[str, Any]) -> tuple[dict[bytes, bytes], bytes]:
    """The environment and the standard input of a captured call."""
    environment = {name.encode(): value.encode() for name, value in step["env"].items()}
    return environment, json.dumps({**step["stdin"], "nodename": NODE}).encode()


class Calls:
    """Draws calls. The same seed gives the same ones in the same order."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - a failing seed must repeat
        self._hostile = Hostile(seed)
        self._captured = [_captured(step) for path in sorted(DATA.glob("*.json")) for step in steps(path.stem)]

    def call(self, *, away: bool, answers: float) -> Call:
        """A call of a daemon that serves or is ``away``; of ``answers`` is the share that others answer."""
        dice = self._dice
        environment, stdin = dict(self._captured[dice.randrange(len(self._captured))][0]), self._configuration()
        environment[b"CNI_COMMAND"] = (
            b"DEL" if away and dice.random() < 0.5 else dice.choice((*VERBS, "VERSION")).encode()
        )
        if dice.random() < 0.9:
            environment[b"CNI_CONTAINERID"] = b"c%d" % dice.randrange(400)
        for _ in range(dice.choice((0,) * 7 + (1, 1, 3))):
            self._spoil(environment)
        answer = self._answer() if dice.random() < answers else None
        stdout = dice.choice(("closed", "/dev/full")) if dice.random() < 0.01 else ""
        name = dice.choice(NAMES).encode()
        return Call(name, environment, None if dice.random() < 0.005 else stdin, stdout, answer)

    def _configuration(self) -> bytes:
        dice = self._dice
        roll, text = dice.random(), dice.choice(self._captured)[1]
        if roll < 0.4:
            return text
        if roll < 0.55:
            return damage(dice, text)
        if roll < 0.6:
            other = dice.choice(self._captured)[1]
            return text[: dice.randrange(len(text))] + other[dice.randrange(len(other)) :]
        if roll < 0.65:
            socket = json.dumps(dice.choice(TEXTS), ensure_ascii=dice.random() < 0.5).encode()
            return text.replace(b'"ipam": {', b'"ipam": {"socket": %b, ' % socket)
        if roll < 0.655:
            return text + b" " * dice.choice((65_536, 300_000, 2 << 20))
        return self._hostile.configuration()

    def _spoil(self, environment: dict[bytes, bytes]) -> None:
        """Another value for a variable, or none."""
        dice = self._dice
        roll = dice.random()
        if roll < 0.85:
            name = dice.choice((*sorted(environment), b"CNI_ARGS", b"CNI_NETNS"))
            old = environment.pop(name, b"")
            if dice.random() < 0.8:
                value = dice.choice(
                    (damage(dice, old), dice.choice(TEXTS).encode(), b"x" * dice.choice((300, 9000, 70_000)))
                )
                environment[name] = value.replace(b"\x00", b"\x01")
        elif roll < 0.95:
            name = dice.choice((b"IPAMD_TIMEOUT", b"IPAMD_CONNECT_TIMEOUT"))
            environment[name] = dice.choice((b"0", b"1", b"3", b"5s", b"-1", b"9" * 30, b"\x01", b"86400001"))
        elif roll < 0.97:
            environment[b"IPAMD_SPOOL_DIR"] = dice.choice((b"nowhere", b"/proc/self/fdinfo", b"/dev/null", b"x" * 5000))
        else:
            environment[b"IPAMD_SOCKET"] = dice.choice(
                (b"nowhere", b"/dev/null", b"/", b"x" * 108, b'a"\\\n\xff', b"\x01")
            )

    def _answer(self) -> Answer:
        dice = self._dice
        text = OK % dice.choice((0, 0, 1, 3, 255))
        for _ in range(dice.choice((0, 1, 1, 2, 6))):
            at, to = sorted(dice.randint(0, len(text)) for _ in range(2))
            piece = dice.choice((*PIECES, text[at:to])) * dice.choice((0, 1, 1, 1, 3))
            text = text[:at] + piece + text[dice.choice((at, at, to)) :]
        if dice.random() < 0.2:
            text = damage(dice, text)
        return Answer(b"" if dice.random() < 0.02 else text, hangs=dice.random() < 0.02)
