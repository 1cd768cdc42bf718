"""Hostile requests from a seed: what the daemon is sent over its socket, whole requests and what is no request."""

import json
import random
from collections.abc import Callable
from enum import Enum, auto
from urllib.parse import quote

import msgspec
from msgspec import Struct

TEXTS = (
    *("", " ", "a", "k8s-pod-network", "10.0.0.0/24", "192.168.0.0/16", "default-ipv4-ippool", "no-such-pool", "::/0"),
    *("fd00::/64", "0.0.0.0/0", "255.255.255.255", "::", "fe80::1%eth0", "::ffff:1.2.3.4", "10.0.0.1/99", "1" * 400),
    *(
        "\u2028",
        "\x7f",
        "é",
        "🦀",
        "a/../../b",
        "%s%n",
        "null",
        "usePodCIDR",
        "-1",
        "1e400",
        "true",
        "0x10",
        "/dev/zero",
    ),
    *(
        "calico-ipam",
        "host-local",
        "1.1.0",
        "0.1.0",
        "9.9.9",
        "all()",
        "\\ud800",
        "10.9.0.0/30",
        "10.9.0.2",
        "a" * 4000,
    ),
)
NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**64), 10**40, 0.5, 1e308, -0.0, True, False, None)
IPAM_KEYS = (
    *("type", "assign_ipv4", "assign_ipv6", "ipv4_pools", "ipv6_pools", "gateway", "routes", "subnet", "rangeStart"),
    *("rangeEnd", "ranges", "resolvConf", "dataDir", "socket"),
)
TOP_KEYS = (
    *("name", "type", "cniVersion", "ipam", "args", "runtimeConfig", "prevResult", "cni.dev/valid-attachments"),
    *("cni.dev/attachments", "dns", "x"),
)
NETWORKS = ("k8s-pod-network", "other", "a.b", "a")
VERSIONS = ("0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
VERBS = ("ADD",) * 6 + ("DEL",) * 4 + ("CHECK", "STATUS", "GC")
ROUTES = (
    *("/", "/healthz", "/readyz", "/metrics", "/v1/status", "/v1/config", "/v1/pools", "/v1/blocks", "/v1/allocations"),
    *(
        "/v1/reserve",
        "/v1/events",
        "/v1/explain?node",
        "/v1/tunnel-addresses",
        "/v1/cni",
        "/no/such/path",
        "/v1/cni/",
        "/%00",
        "/../v1/cni",
        "//",
    ),
)
TUNNELS = ("ipipTunnelAddress", "vxlanTunnelAddress", "vxlanV6TunnelAddress", "wireguardTunnelAddress", "none")
HOST_LOCAL = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/120"}]]}
CONTAINERS = 400
"""How many container ids there are: few, so that calls meet what earlier ones left."""


def damage(dice: random.Random, text: bytes) -> bytes:
    """Flip bits, cut, repeat."""
    damaged = bytearray(text)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        at, roll = dice.randrange(len(damaged) + 1), dice.random()
        if roll < 0.5 and at < len(damaged):
            damaged[at] ^= 1 << dice.randrange(8)
        elif roll < 0.7:
            damaged[at:at] = dice.choice((b"\xff", b"\x00", b'"', b"[", b"{", b"\\ud800", b"9" * 30, b"\r\n", b":"))
        elif roll < 0.85:
            del damaged[at : at + dice.randrange(20)]
        else:
            damaged[at:at] = damaged[max(0, at - 30) : at]
    return bytes(damaged)


class End(Enum):
    """What a client does when it has sent everything."""

    WAIT = auto()
    """It waits until every whole request is answered."""
    HALF_CLOSE = auto()
    """It says at once that no more will come."""
    HANG_UP = auto()
    """It goes, and reads nothing."""


class Batch(Struct, frozen=True):
    """What one connection sends: ``whole`` requests, whatever they ask, and perhaps a last piece that may be anything."""

    pieces: list[bytes]
    whole: int
    end: End


class Hostile:
    """Draws requests. The same seed gives the same ones in the same order."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - a failing seed must repeat
        self._configurations: tuple[Callable[[], bytes], ...] = (
            *(self._spoilt,) * 9, *(self._damaged,) * 5, *(self._any_json,) * 3,
        )  # fmt: skip
        self._one_of: tuple[Callable[[], bytes], ...] = (
            *(self._call,) * 17, self._route, self._tunnel, self._query, self._records, self._import,
        )  # fmt: skip

    def batch(self) -> Batch:
        """What one connection sends."""
        dice = self._dice
        pieces = [dice.choice(self._one_of)() for _ in range(dice.randint(1, 24))]
        whole = len(pieces)
        if dice.random() < 0.7:
            pieces.append(self._broken(dice.choice(self._one_of)()))
        return Batch(pieces, whole, dice.choices((End.WAIT, End.HALF_CLOSE, End.HANG_UP), (90, 5, 5))[0])

    def configuration(self) -> bytes:
        """A network configuration: sound, with other values, or damaged."""
        return self._dice.choice(self._configurations)()

    # --- network configurations -------------------------------------------------------------------------------

    def _spoilt(self) -> bytes:
        dice = self._dice
        config = self._config()
        for _ in range(dice.choice((0, 0, 0, 1, 1, 2))):
            self._spoil(config)
        return json.dumps(config, ensure_ascii=dice.random() < 0.5).encode()

    def _damaged(self) -> bytes:
        return damage(self._dice, json.dumps(self._config()).encode())

    def _any_json(self) -> bytes:
        dice = self._dice
        if dice.random() < 0.1:
            depth = dice.choice((5, 900, 990, 1000, 5000))
            inner = b"[" * depth + b"]" * depth
            key = dice.choice((*TOP_KEYS, *IPAM_KEYS)).encode()
            return b'{"name":"a","cniVersion":"1.1.0","%b":%b,"ipam":{"%b":%b}}' % (key, inner, key, inner)
        return json.dumps({**self._config(), **{dice.choice(TOP_KEYS): self._value(0) for _ in range(3)}}).encode()

    # --- whole requests ---------------------------------------------------------------------------------------

    def _call(self) -> bytes:
        return self._plugin(self.configuration())

    def _route(self) -> bytes:
        dice = self._dice
        method = dice.choice(("GET", "GET", "GET", "HEAD", "POST", "DELETE", "PUT", "X" * 50))
        path = dice.choice(ROUTES[:11] if method == "GET" else ROUTES) + dice.choice(("", "?", "?a=b", "?" + "x" * 300))
        return self._request(f"{method} {path} HTTP/1.1", [], b"")

    def _tunnel(self) -> bytes:
        dice = self._dice
        body: object = {"type": dice.choice(TUNNELS), "pools": ["default-ipv4-ippool"] if dice.random() < 0.3 else []}
        if dice.random() < 0.5:
            body = self._value(0)
        text = json.dumps(body).encode()
        method = dice.choice(("POST", "DELETE"))
        return self._request(
            f"{method} /v1/tunnel-addresses HTTP/1.1", [], damage(self._dice, text) if dice.random() < 0.5 else text
        )

    def _query(self) -> bytes:
        """Why, and what was done; at most a second of waiting."""
        dice = self._dice
        names = ("pod", "address", "node", "config", "after", "wait", "podd", "%ff")
        values = (f"default/pod-{dice.randrange(50)}", self._address(), self.configuration().decode(errors="replace"))
        pairs = [
            (dice.choice(names), dice.choice((*values, dice.choice(TEXTS), "0", "1")))
            for _ in range(dice.choice((1, 1, 2)))
        ]
        query = "&".join(f"{name}={quote(value) if dice.random() < 0.9 else 'x%'}" for name, value in pairs)
        return self._request(f"GET {dice.choice(('/v1/explain', '/v1/events'))}?{query} HTTP/1.1", [], b"")

    def _records(self) -> bytes:
        """Records of the store, read and changed: never one that means anything."""
        dice = self._dice
        key = dice.choice(("/calico/fuzz/a", "/calico/fuzz/b", "/calico/", "/etc", "", "/calico/fuzz/" + "x" * 3000))
        number = dice.choice((0, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, "1"))
        window = {"start": key, "end": dice.choice((key + "\0", "/calico0", "")), "limit": number}
        change = {"key": key, "value": dice.choice((b"{}", None, b"x" * 3000)), "expected": number}
        path, body = dice.choice(
            (
                ("read", {"keys": [key] * dice.choice((0, 1, 600)), "names_only": False}),
                ("read", {"window": window, "names_only": dice.random() < 0.5}),
                ("commit", {"alternatives": [[change] * dice.choice((1, 1, 2))] * dice.choice((1, 2))}),
                ("commit", {"alternatives": [[change]], "window": window}),
            )
        )
        text = msgspec.msgpack.encode(body)
        if dice.random() < 0.1:
            text = b"\x81\xa1x" + b"\x91" * dice.choice((100, 1100, 5000)) + b"\xc0"
        elif dice.random() < 0.3:
            text = damage(dice, text)
        return self._request(f"POST /v1/store/{path} HTTP/1.1", [], text)

    def _import(self) -> bytes:
        """What the plugin host-local held; a few of the same addresses."""
        dice = self._dice
        held = [
            {"address": self._address(), "container": self._container(), "interface": "eth0"}
            for _ in range(dice.randint(0, 3))
        ]
        networks: list[object] = [{"name": dice.choice(NETWORKS), "held": held, "last": {"0": self._address()}}]
        body = json.dumps(
            {"networks": networks if dice.random() < 0.8 else self._value(0), "dry_run": dice.random() < 0.5}
        )
        text = body.encode()
        return self._request(
            "POST /v1/import/host-local HTTP/1.1", [], damage(dice, text) if dice.random() < 0.3 else text
        )

    # --- a call of the plugin ---------------------------------------------------------------------------------

    def _config(self) -> dict[str, object]:
        dice = self._dice
        config: dict[str, object] = {
            "cniVersion": dice.choice(VERSIONS),
            "name": NETWORKS[0] if dice.random() < 0.8 else dice.choice(NETWORKS),
            "type": "calico",
            "ipam": dict(HOST_LOCAL) if dice.random() < 0.2 else {"type": dice.choice(("calico-ipam", "ipamd"))},
        }
        roll = dice.random()
        if roll < 0.2:
            config["ipam"] = {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}
        elif roll < 0.25:
            config["args"] = {"cni": {"ips": [self._address()]}}
        elif roll < 0.3:
            config["runtimeConfig"] = {"ips": [self._address()], "ipRanges": [[{"subnet": "10.9.1.0/24"}]]}
        elif roll < 0.4:
            valid = [{"containerID": self._container(), "ifname": "eth0"} for _ in range(dice.randint(0, 3))]
            config |= {"cni.dev/valid-attachments": valid, "prevResult": {"ips": [{"address": self._address()}]}}
        return config

    def _spoil(self, config: dict[str, object]) -> None:
        dice = self._dice
        ipam = config["ipam"]
        if isinstance(ipam, dict) and dice.random() < 0.6:
            ipam[dice.choice(IPAM_KEYS)] = self._value(1)
        else:
            key = dice.choice([key for key in TOP_KEYS if key != "ipam"])
            config[key] = self._value(0)

    def _value(self, depth: int) -> object:
        dice = self._dice
        roll = dice.random()
        if depth > 4 or roll < 0.4:
            return dice.choice(TEXTS)
        if roll < 0.55:
            return dice.choice(NUMBERS)
        if roll < 0.75:
            return [self._value(depth + 1) for _ in range(dice.randint(0, 3))]
        keys = (
            *IPAM_KEYS,
            "cni",
            "ips",
            "ipRanges",
            "dst",
            "gw",
            "mtu",
            "address",
            "containerID",
            "ifname",
            "interface",
        )
        return {dice.choice(keys): self._value(depth + 1) for _ in range(dice.randint(0, 4))}

    def _address(self) -> str:
        dice = self._dice
        tail = dice.randrange(200)
        form = dice.choice(
            ("10.9.0.%d", "192.168.0.%d", "fd09::%x", "fd00:10:244::%x", "::ffff:10.9.0.%d", "1.2.3.%d/24")
        )
        return form % tail if dice.random() < 0.9 else dice.choice(TEXTS)

    def _container(self) -> str:
        return f"c{self._dice.randrange(CONTAINERS)}"

    def _plugin(self, body: bytes) -> bytes:
        dice = self._dice
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{dice.randrange(50)}"
        fields = [
            ("Cni-Command", dice.choice(VERBS)),
            ("Cni-Containerid", self._container()),
            ("Cni-Netns", "/run/netns/x"),
            ("Cni-Ifname", "eth0" if dice.random() < 0.95 else "eth1"),
            ("Cni-Path", "/opt/cni/bin"),
            ("Cni-Args", args),
            ("Ipamd-Started", ""),
        ]
        roll = dice.random()
        if roll < 0.05:
            fields[5] = ("Cni-Args", f"{args};IP={self._address()},{self._address()}")
        elif roll < 0.15:
            at = dice.randrange(len(fields))
            fields[at] = (fields[at][0], self._text())
        elif roll < 0.2:
            dice.shuffle(fields)
            fields.pop()
        return self._request("POST /v1/cni HTTP/1.1", fields, body)

    def _text(self) -> str:
        """A field's value that keeps the request whole: no control character, and not too long."""
        dice = self._dice
        if dice.random() < 0.5:
            return "".join(c for c in dice.choice(TEXTS) if c.isprintable())
        return "".join(chr(dice.choice((dice.randrange(32, 127), dice.randrange(160, 0x800)))) for _ in range(20))

    @staticmethod
    def _request(line: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"{line}\r\nHost: ipamd\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    # --- what is no whole request -----------------------------------------------------------------------------

    def _broken(self, request: bytes) -> bytes:
        dice = self._dice
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        roll = dice.randrange(9)
        if roll == 0:
            return request[: dice.randrange(len(request))]
        if roll == 1:
            lines.insert(dice.randint(1, len(lines)), dice.choice(lines[1:]))
        elif roll == 2:
            lines[-1] = b"Content-Length: " + dice.choice(
                (b"-1", b"1e3", b"9" * 20, b"", b"+5", b"999", b"0", b"1048577")
            )
        elif roll == 3:
            lines.append(b"X: " + b"x" * dice.choice((9000, 40000)))
        elif roll == 4:
            lines.append(
                dice.choice((b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Expect: x", b" folded", b":"))
            )
        elif roll == 5:
            lines[0] = dice.choice(
                (b"GET / HTTP/2.0", b"\x16\x03\x01", b"", b"A" * 9000, b"GET http://x/ HTTP/1.1", b"PRI * HTTP/1.1")
            )
        elif roll == 6 and dice.random() < 0.05:
            body = b" " * dice.choice((1 << 20, 1 << 21))
            lines[-1] = b"Content-Length: %d" % len(body)
        else:
            return damage(self._dice, request)
        return b"\r\n".join(lines) + b"\r\n\r\n" + body
