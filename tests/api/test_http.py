"""The HTTP subset: what is read as which request, what is refused with which status, what is sent."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.api.http import CONTINUE, BadRequestError, Parser, Request, Response, serialize

MAX_HEAD = 4096
MAX_BODY = 1000
TCHAR = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.!#$%&'*+^`|~"

ADD = (
    b"POST /v1/cni HTTP/1.1\r\nHost: ipamd\r\nCni-Command: ADD\r\nCni-Containerid: " + b"a1" * 32 + b"\r\n"
    b"Cni-Netns: /var/run/netns/x\r\nCni-Args: IgnoreUnknown=1;K8S_POD_NAMESPACE=default\r\nCni-Path: \r\n"
    b"Connection: close\r\nContent-Length: 14\r\n\r\n" + b'{"name":"k8s"}'
)


def new_parser() -> Parser:
    """Return a parser with small limits."""
    return Parser(MAX_HEAD, MAX_BODY)


def drain(parser: Parser) -> list[Request]:
    """Return all complete requests."""
    requests = []
    while (request := parser.next()) is not None:
        requests.append(request)
    return requests


def outcome(pieces: list[bytes]) -> tuple[list[Request], bool]:
    """Return the requests that come out of a parser fed piece by piece, and whether it refused in the end."""
    parser = new_parser()
    requests: list[Request] = []
    for piece in pieces:
        parser.feed(piece)
        try:
            while (request := parser.next()) is not None:
                requests.append(request)
        except BadRequestError:
            return requests, True
    return requests, False


def refusal(data: bytes) -> int:
    """Return the status with which the bytes are refused."""
    parser = new_parser()
    parser.feed(data)
    with pytest.raises(BadRequestError) as refused:
        parser.next()
    return refused.value.status


def get(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    """Return a request with these fields beside Host."""
    return b"\r\n".join((line, b"Host: x", *fields, b"", b""))


def test_request_of_the_plugin_is_read():
    """A plugin's request comes out with its method, path, lower-case fields and body."""
    parser = new_parser()
    parser.feed(ADD)
    request = parser.next()
    assert request is not None
    assert (request.method, request.path, request.query) == ("POST", "/v1/cni", "")
    assert request.body == b'{"name":"k8s"}'
    assert request.headers["cni-containerid"] == "a1" * 32
    assert request.headers["cni-args"] == "IgnoreUnknown=1;K8S_POD_NAMESPACE=default"
    assert request.headers["cni-path"] == ""
    assert not request.keep_alive
    assert parser.next() is None
    assert not parser.partial


def test_pipelined_requests_come_out_one_by_one():
    """Several requests in one piece are handed out in their order, and the rest waits for more."""
    parser = new_parser()
    parser.feed(get(line=b"GET /1 HTTP/1.1") + ADD + get(line=b"GET /3 HTTP/1.1") + b"GET /4")
    assert [request.path for request in drain(parser)] == ["/1", "/v1/cni", "/3"]
    assert parser.partial
    assert parser.buffered == len(b"GET /4")


def test_query_is_kept_apart_and_nothing_is_decoded():
    """The query begins at the first question mark; percent signs are left to the routes."""
    parser = new_parser()
    parser.feed(get(line=b"GET /v1/a%2Fb?x=1?y&z=%20 HTTP/1.1"))
    request = parser.next()
    assert request is not None
    assert (request.path, request.query) == ("/v1/a%2Fb", "x=1?y&z=%20")


def test_values_keep_bytes_that_are_not_utf8():
    """A field's value gives its bytes back, as an environment variable does."""
    parser = new_parser()
    parser.feed(get("Cni-Path: /käse".encode() + b"\xff\x80"))
    request = parser.next()
    assert request is not None
    assert request.headers["cni-path"].encode("utf-8", "surrogateescape") == "/käse".encode() + b"\xff\x80"


def test_blanks_around_a_value_are_not_part_of_it():
    """Blanks and tabs around a value are dropped, other space characters are not blanks."""
    parser = new_parser()
    parser.feed(get(b"A: \t b c \t", "B: \u00a0x".encode()))
    request = parser.next()
    assert request is not None
    assert request.headers["a"] == "b c"
    assert request.headers["b"] == "\u00a0x"


def test_list_fields_may_be_repeated():
    """Fields whose value is a list are joined, in their order."""
    parser = new_parser()
    parser.feed(get(b"Accept: a", b"Accept: b", b"Connection: keep-alive", b"Connection: Close"))
    request = parser.next()
    assert request is not None
    assert request.headers["accept"] == "a, b"
    assert not request.keep_alive


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (get(), True),
        (get(b"Connection: keep-alive"), True),
        (get(b"Connection: x, CLOSE"), False),
        (get(b"Connection: closed"), True),
        (get(line=b"GET / HTTP/1.0"), False),
        (get(b"Connection: keep-alive", line=b"GET / HTTP/1.0"), False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
    ],
)
def test_connection_is_kept_only_in_1_1_without_close(head, kept):
    """HTTP/1.1 connections are kept unless the client says close, HTTP/1.0 connections never."""
    parser = new_parser()
    parser.feed(head)
    request = parser.next()
    assert request is not None
    assert request.keep_alive is kept


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (get(line=b"GET  / HTTP/1.1"), 400),
        (get(line=b"GET / HTTP/1.1 "), 400),
        (get(line=b"GET /\tHTTP/1.1"), 400),
        (get(line=b"GET /"), 400),
        (get(line=b"G(T / HTTP/1.1"), 400),
        (get(line=b"GET http://x/ HTTP/1.1"), 400),
        (get(line=b"OPTIONS * HTTP/1.1"), 400),
        (get(line=b"CONNECT x:1 HTTP/1.1"), 400),
        (get(line=b"GET /a#b HTTP/1.1"), 400),
        (get(line=b"GET /\xc3\xa4 HTTP/1.1"), 400),
        (get(line=b"GET / http/1.1"), 400),
        (get(line="GET / HTTP/1.\u0661".encode()), 400),
        (get(line=b"GET / HTTP/2.0"), 505),
        (get(line=b"PRI * HTTP/2.0"), 505),
        (get(line=b"GET / HTTP/1.2"), 505),
        (get(line=b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1"), 414),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (get(b"Host: y"), 400),
        (get(b"Cni-Command: ADD", b"cni-command: DEL"), 400),
        (get(b" folded"), 400),
        (get(b"A: b", b"\tfolded: x"), 400),
        (get(b"A : b"), 400),
        (get(b": b"), 400),
        (get(b"A"), 400),
        (get("Ä: b".encode()), 400),
        (get(b"A: b\x00"), 400),
        (get(b"A: b\x1b[0m"), 400),
        (get(b"A: b\x7f"), 400),
        (get(b"A: b\nC: d"), 400),
        (get(b"A: b\rC: d"), 400),
        (get(b"A: b\r\r\nC: d"), 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (get(b"A: " + b"b" * MAX_HEAD), 431),
        (get(b"Transfer-Encoding: chunked"), 501),
        (get(b"Transfer-Encoding: gzip, chunked"), 501),
        (get(b"Transfer-Encoding: chunked", b"Content-Length: 1"), 400),
        (get(b"Content-Length: 1", b"Content-Length: 1"), 400),
        (get(b"Content-Length: 1, 1"), 400),
        (get(b"Content-Length: +1"), 400),
        (get(b"Content-Length: -1"), 400),
        (get(b"Content-Length: 1_0"), 400),
        (get(b"Content-Length: 0x1"), 400),
        (get(b"Content-Length:"), 400),
        (get("Content-Length: \u0663".encode()), 400),
        (get(b"Content-Length: %d" % (MAX_BODY + 1)), 413),
        (get(b"Content-Length: " + b"9" * 3000), 413),
        (get(b"Expect: 200-ok", b"Content-Length: 1"), 417),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
    ],
)
def test_what_is_refused_with_which_status(data, status):
    """Everything outside the subset is refused, and refused again when asked again."""
    assert refusal(data) == status
    parser = new_parser()
    parser.feed(data)
    for _ in range(2):
        with pytest.raises(BadRequestError) as refused:
            parser.next()
        assert refused.value.status == status


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nH", b"\n", b"\r", b"\r\n", b"GET / HTTP/1.1\r\nA: \x00", b"G\rE"])
def test_a_hopeless_beginning_is_refused_before_its_end(data):
    """A client that cannot complete its head any more is told so without waiting for more."""
    assert refusal(data) == 400


def test_head_may_be_exactly_as_long_as_the_limit():
    """A head of the limit's length is taken, one byte more is refused, whether complete or not."""
    room = MAX_HEAD - len(get(b"A: "))
    exact = get(b"A: " + b"b" * room)
    assert len(exact) == MAX_HEAD
    assert outcome([exact])[1] is False
    assert len(outcome([exact])[0]) == 1
    assert refusal(get(b"A: " + b"b" * (room + 1))) == 431
    assert outcome([exact[:-1]]) == ([], False)


def test_length_of_any_number_of_digits_is_refused():
    """A Content-Length beyond what Python turns into an integer is too large, not an error of ours."""
    parser = Parser(max_head=10_000, max_body=MAX_BODY)
    parser.feed(get(b"Content-Length: " + b"9" * 5000))
    with pytest.raises(BadRequestError) as refused:
        parser.next()
    assert refused.value.status == 413


def test_body_may_be_exactly_as_long_as_the_limit():
    """A body of the limit's length is taken, and nothing is handed out before its last byte."""
    body = b"\r\n\r\n" * (MAX_BODY // 4)
    data = get(b"Content-Length: %d" % MAX_BODY) + body
    requests, refused = outcome([data[:-1]])
    assert (requests, refused) == ([], False)
    requests, refused = outcome([data])
    assert not refused
    assert requests[0].body == body


def test_limits_hold_for_each_request_of_a_pipeline():
    """The limit on heads counts from the beginning of each request, not of the piece it came in."""
    one = get(b"A: " + b"b" * (MAX_HEAD // 2))
    requests, refused = outcome([one * 10])
    assert (len(requests), refused) == (10, False)


def test_expect_continue_is_told_while_the_body_is_awaited():
    """A client that waits for 100 is seen once its head is complete, until told or until the body came anyway."""
    head = get(b"Content-Length: 2", b"Expect: 100-Continue")
    parser = new_parser()
    parser.feed(head[:-1])
    assert parser.next() is None
    assert not parser.expects_continue
    parser.feed(head[-1:])
    assert parser.next() is None
    assert parser.expects_continue
    assert parser.partial
    parser.continued()
    assert not parser.expects_continue
    parser.feed(b"hi" + head + b"ho")
    assert [request.body for request in drain(parser)] == [b"hi", b"ho"]
    assert not parser.expects_continue


def test_expect_without_a_body_or_in_1_0_is_not_waited_for():
    """No 100 is due to a client that has no body to send, or does not know of it."""
    for data in (
        get(b"Expect: 100-continue"),
        get(b"Expect: 100-continue", b"Content-Length: 5", line=b"GET / HTTP/1.0"),
    ):
        parser = new_parser()
        parser.feed(data)
        parser.next()
        assert not parser.expects_continue


def test_post_without_length_has_no_body():
    """A request without Content-Length ends with its head (RFC 9112 6.3)."""
    requests, _ = outcome([get(line=b"POST /v1/drain HTTP/1.1")])
    assert requests[0].body == b""


names = st.text(TCHAR, min_size=1, max_size=10).map(lambda name: f"x-{name}")
values = st.binary(max_size=40).map(
    lambda value: bytes(b for b in value if (b >= 32 and b != 127) or b == 9).strip(b" \t")
)


@st.composite
def valid_requests(draw: st.DrawFn) -> bytes:
    """Return a request as h11 sends it."""
    fields = draw(st.dictionaries(names.map(str.lower), values, max_size=5))
    body = draw(st.binary(max_size=50))
    headers = [("Host", "ipamd"), *((name.title(), value) for name, value in fields.items())]
    if body or draw(st.booleans()):
        headers.append(("Content-Length", str(len(body))))
    if draw(st.booleans()):
        headers.append(("Connection", "close"))
    client = h11.Connection(h11.CLIENT)
    method = draw(st.sampled_from(["GET", "POST", "DELETE", "PUT"]))
    target = "/" + draw(st.text("abz09-._~%/?=&", max_size=30))
    data = client.send(h11.Request(method=method, target=target, headers=headers))
    data += (client.send(h11.Data(body)) or b"") if body else b""
    return data + (client.send(h11.EndOfMessage()) or b"")


@given(valid_requests())
def test_requests_of_h11_are_read_as_h11_reads_them(data):
    """Any request that h11 sends means the same to us as to h11 as a server."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    event = server.next_event()
    assert isinstance(event, h11.Request)
    body = b""
    while isinstance(part := server.next_event(), h11.Data):
        body += bytes(part.data)
    ((request,), refused) = outcome([data])
    assert not refused
    assert request.method.encode() == event.method
    assert f"{request.path}?{request.query}".rstrip("?") == event.target.decode().rstrip("?")
    assert {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in request.headers.items()} == dict(
        event.headers
    )
    assert request.body == body
    assert request.keep_alive is ((b"connection", b"close") not in list(event.headers))


soup = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n",
            b"Host: x\r\n",
            b"\r\n",
            b"\r",
            b"\n",
            b"Content-Length: 3\r\n",
            b"abc",
            b" ",
            b":",
            b"\0",
            b"Content-Length: 1001\r\n",
            b"A" * 1500,
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"\xff",
        ]
    )
    | st.binary(max_size=8)
).map(b"".join)


@given(st.lists(valid_requests() | soup, max_size=4).map(b"".join), st.data())
def test_any_split_gives_the_same_requests(data, draws):
    """How the bytes were cut into pieces changes neither the requests nor whether they end in a refusal."""
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=20)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    whole = outcome([data])
    assert outcome(pieces) == whole
    assert outcome([data[at : at + 1] for at in range(len(data))]) == whole


AWKWARD = st.sampled_from(
    [b"", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\nHost: y", b"\x7f", b"\xff", b"\xc3\xa9", b"0", b"014"]
)
VALUES = st.lists(AWKWARD | st.sampled_from([b"ADD", b"a1", b"K=v;L=w", b"14", b"a b", b"/x:y"]), max_size=3).map(
    b"".join
)
FIELDS = (
    b"Connection", b"Cni-Command", b"Cni-Containerid", b"Cni-Netns", b"Cni-Ifname", b"Cni-Args", b"Cni-Path", b"Ipamd-Plugin",
    b"Ipamd-Started",
)  # fmt: skip


@st.composite
def plugin_like_requests(draw):
    """Draw what the plugin sends, or nearly: fields left out, and values that no sane runtime has."""
    fields = [
        (b"Host", b"ipamd"),
        *((name, draw(st.just(b"close") | VALUES)) for name in FIELDS if draw(st.booleans())),
    ]
    length = draw(st.sampled_from([b"0", b"3", b"003", b"1000", b"1001", b"999999", b"1000000"]) | VALUES)
    return (
        b"POST /v1/cni HTTP/1.1\r\n",
        [*fields, (b"Content-Length", length)],
        draw(st.sampled_from([b"abc", b"a" * 1001, ADD])),
    )


@given(plugin_like_requests())
def test_the_plugin_s_requests_mean_what_they_mean_from_others(drawn):
    """The short cut for what the plugin sends changes nothing: with names in lower case, which go without it, all is the same."""
    line, fields, rest = drawn
    usual, other = (
        line + b"".join(b"%b: %b\r\n" % (spell(name), value) for name, value in fields) + b"\r\n" + rest
        for spell in (bytes, bytes.lower)
    )
    assert outcome([usual]) == outcome([other])


@given(soup | st.binary(max_size=200))
def test_any_bytes_give_requests_nothing_or_a_refusal(data):
    """No bytes make the parser raise anything but BadRequestError, and limits hold for what comes out."""
    requests, _ = outcome([data])
    for request in requests:
        assert len(request.body) <= MAX_BODY
        assert "\n" not in "".join(request.headers.values())


def answer_of(data: bytes, *, method: bytes = b"GET") -> tuple[h11.Response, bytes, h11.Connection]:
    """Return what h11 as a client reads from our response."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target=b"/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(part := client.next_event(), h11.Data):
        body += bytes(part.data)
    assert isinstance(part, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return response, body, client


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("status", [200, 201, 204, 400, 404, 500, 503])
def test_responses_are_read_by_h11(status, keep_alive):
    """h11 reads status, body, type and further fields of our responses, and whether the connection is kept."""
    body = b"" if status == 204 else b'{"a": 1}'
    response = Response(status, body, "text/plain", (("Allow", "GET, POST"), ("Retry-After", "1")))
    answer, read, client = answer_of(serialize(response, keep_alive=keep_alive))
    assert answer.status_code == status
    assert read == body
    headers = dict(answer.headers)
    assert headers[b"allow"] == b"GET, POST"
    assert headers[b"retry-after"] == b"1"
    assert headers.get(b"content-type") == (None if status == 204 else b"text/plain")
    assert client.their_state is (h11.DONE if keep_alive else h11.MUST_CLOSE)


def test_handler_can_end_the_connection():
    """A response that asks for the close announces it, although the client would keep the connection."""
    assert b"\r\nConnection: close\r\n" in serialize(Response(200, close=True), keep_alive=True)
    assert b"Connection" not in serialize(Response(200), keep_alive=True)


def test_head_is_answered_without_the_body():
    """The answer to HEAD says how long the body is that GET would bring, and sends none."""
    answer, body, _ = answer_of(serialize(Response(200, b"abc"), keep_alive=True, omit_body=True), method=b"HEAD")
    assert dict(answer.headers)[b"content-length"] == b"3"
    assert body == b""


@pytest.mark.parametrize("field", [("A b", "c"), ("", "c"), ("A", "b\r\nC: d"), ("A", "b\n"), ("A", "\0"), ("A:", "b")])
def test_fields_that_would_break_the_head_are_not_sent(field):
    """A handler's field cannot end its line or begin another."""
    with pytest.raises(ValueError, match="cannot send the field"):
        serialize(Response(200, headers=(field,)), keep_alive=True)


def test_continue_is_an_interim_response():
    """h11 reads our 100 as the permission to send on."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "1")]))
    client.receive_data(CONTINUE)
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse)
    assert event.status_code == 100
