"""kubectl's templates, on the documents of its reference page and on what goes wrong."""

import pytest

from ipamd.ctl.jsonpath import TemplateError, expand, parse_template

NODES = {
    "kind": "List",
    "items": [
        {"kind": "None", "metadata": {"name": "127.0.0.1", "labels": {"kubernetes.io/hostname": "a"}}, "n": 4},
        {"kind": "None", "metadata": {"name": "127.0.0.2"}, "ready": True, "n": 8},
    ],
    "users": [{"name": "myself", "user": {}}, {"name": "e2e", "user": {"username": "admin"}}],
}

EXPANDED = {
    "{.kind} {@.kind} {$.kind} {['kind']}": "List List List List",
    "type is {.kind}": "type is List",
    "{.items[*].metadata.name}": "127.0.0.1 127.0.0.2",
    "{.items[0].metadata.name},{.items[-1].metadata.name},{.items[7].metadata.name}": "127.0.0.1,127.0.0.2,",
    "{.items[0:1].metadata.name} {.items[1:].n} {.items[0,1].n}": "127.0.0.1 8 4 8",
    "{.items[*]['metadata'].name}": "127.0.0.1 127.0.0.2",
    "{.users[*]['name','user']}": 'myself {} e2e {"username":"admin"}',
    '{.users[?(@.name=="e2e")].user.username}': "admin",
    "{.items[?(@.n>4)].metadata.name} {.items[?(@.n<=4)].n} {.items[?(@.n!=4)].n}": "127.0.0.2 4 8",
    "{.items[?(@.ready)].metadata.name}{.items[?(@.ready==true)].n}": "127.0.0.28",
    r"{.items[*].metadata.labels.kubernetes\.io/hostname}": "a",
    "{..name}": "127.0.0.1 127.0.0.2 myself e2e",
    '{range .items[*]}[{.metadata.name}, {.n}] {end}{"\\n"}': "[127.0.0.1, 4] [127.0.0.2, 8] \n",
    "{range .users[*]}{range $.items[*]}{.n}{end};{end}": "48;48;",
    "{.items[*].ready}{.nothing.at.all}{.kind.name}": "true",
    '{"{tab}\\t"}': "{tab}\t",
    "{'a'}{.}": 'a{"kind":"List"',
}


@pytest.mark.parametrize("template", EXPANDED)
def test_what_a_template_gives(template: str) -> None:
    """Paths, ranges, filters, texts: as kubectl prints them."""
    assert expand(parse_template(template), NODES).startswith(EXPANDED[template])
    if not template.endswith("{.}"):
        assert expand(parse_template(template), NODES) == EXPANDED[template]


REFUSED = {
    "{.a": "'{' at character 1 has no partner",
    "a}": "'}' at character 2 has no partner",
    "{range .a[*]}": "a {range} has no {end}",
    "x{end}": "{end} at character 2 ends no {range}",
    "ab{.a[}": "cannot read '[' in the path at character 3",
    '{.a[?(@.b=="c"]}': "cannot read '[?(@.b==\"c\"]' in the path at character 1",
    "{.a[?(@.b==c)]}": "cannot compare with c at character 1; put a text in quotes",
    "{.a[?(b)]}": "cannot read the filter 'b' at character 1; write as ?(@.spec.node=='a')",
    '{"\\q"}': '"\\q" at character 1 is no text in quotes',
}


@pytest.mark.parametrize("template", REFUSED)
def test_what_cannot_be_read(template: str) -> None:
    """The error says what stands where."""
    with pytest.raises(TemplateError) as caught:
        parse_template(template)
    assert str(caught.value) == REFUSED[template]
