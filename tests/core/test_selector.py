"""Selectors: what they mean, against an evaluation of the tree they were printed from, and what is said of bad ones."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.core.selector import SelectorError, parse_labels, parse_selector

NAMES = ("rack", "zone", "in", "has", "all", "not", "contains", "projectcalico.org/node-role_1", "0")
VALUES = ("", "0", "a", "b", "ab", "all()", "a && b", ") || (")
Labels = dict[str, str]
Tree = tuple[str, Callable[[Labels], bool]]
"""An expression with blanks marked by ~ (optional) and _ (needed), and what it means."""

names = st.sampled_from(NAMES)
quoted = st.tuples(st.sampled_from(VALUES), st.sampled_from("'\""))
labels = st.dictionaries(names, st.sampled_from(VALUES))


def _is_in(name: str, values: list[tuple[str, str]]) -> Tree:
    return f"{name}_in~{_braces(values)}", lambda labels: name in labels and labels[name] in [v for v, _ in values]


def _not_in(name: str, values: list[tuple[str, str]]) -> Tree:
    return (
        f"{name}_not_in~{_braces(values)}",
        lambda labels: not (name in labels and labels[name] in [v for v, _ in values]),
    )


def _braces(values: list[tuple[str, str]]) -> str:
    return "{~" + "~,~".join(f"{quote}{value.replace('_', '')}{quote}" for value, quote in values) + "~}"


def _compare(name: str, value: tuple[str, str], operator: str) -> Tree:
    text, quote = value
    meaning: dict[str, Callable[[str], bool]] = {
        "~==~": lambda found: found == text,
        "_contains~": lambda found: text in found,
        "_starts_with~": lambda found: found[: len(text)] == text,
        "_ends_with~": lambda found: text == "" or found[-len(text) :] == text,
    }
    if operator == "~!=~":
        return f"{name}~!=~{quote}{text}{quote}", lambda labels: labels.get(name) != text
    return f"{name}{operator}{quote}{text}{quote}", lambda labels: name in labels and meaning[operator](labels[name])


simple = st.one_of(
    st.just(("all(~)", lambda _labels: True)),
    st.just(("global(~)", lambda _labels: True)),
    names.map(lambda name: (f"has(~{name}~)", lambda labels: name in labels)),
    st.builds(_is_in, names, st.lists(quoted, max_size=3)),
    st.builds(_not_in, names, st.lists(quoted, max_size=3)),
    st.builds(_compare, names, quoted, st.sampled_from(["~==~", "~!=~", "_contains~", "_starts_with~", "_ends_with~"])),
)


def _negation(inner: Tree) -> Tree:
    return f"!~(~{inner[0]}~)", lambda labels: not inner[1](labels)


def _conjunction(parts: list[Tree]) -> Tree:
    return "~&&~".join(f"(~{text}~)" for text, _ in parts), lambda labels: all(true(labels) for _, true in parts)


def _loose(terms: list[list[tuple[bool, Tree]]]) -> Tree:
    """Without parentheses: || of && of comparisons, each perhaps with a !."""
    text = "~||~".join("~&&~".join(f"{'!~' * negated}{part}" for negated, (part, _) in term) for term in terms)
    return text, lambda labels: any(all(true(labels) != negated for negated, (_, true) in term) for term in terms)


trees = st.recursive(
    st.builds(
        _loose, st.lists(st.lists(st.tuples(st.booleans(), simple), min_size=1, max_size=3), min_size=1, max_size=3)
    ),
    lambda inner: st.one_of(
        inner.map(_negation),
        st.lists(inner, min_size=1, max_size=3).map(_conjunction),
        st.lists(inner, min_size=2, max_size=3).map(
            lambda parts: (
                "~||~".join(f"(~{text}~)" for text, _ in parts),
                lambda labels: any(true(labels) for _, true in parts),
            )
        ),
    ),
    max_leaves=6,
)


def printed(tree: Tree, draw: st.DataObject) -> str:
    """The expression with some blanks where it may have some."""
    text = ""
    protected = {name: f"\0{index}" for index, name in enumerate(NAMES) if "_" in name}
    source = tree[0]
    for name, mark in protected.items():
        source = source.replace(name, mark)
    for character in source:
        if character == "~":
            text += draw.draw(st.sampled_from(["", " ", "\t "]))
        elif character == "_":
            text += draw.draw(st.sampled_from([" ", "  ", "\t"]))
        else:
            text += character
    for name, mark in protected.items():
        text = text.replace(mark, name)
    return draw.draw(st.sampled_from(["", " "])) + text + draw.draw(st.sampled_from(["", " \t"]))


@given(tree=trees, labels=labels, data=st.data())
def test_a_selector_means_what_its_tree_means(tree: Tree, labels: Labels, data: st.DataObject) -> None:
    """However deep, with whatever blanks and quotes: it selects exactly the labels for which the tree is true."""
    assert parse_selector(printed(tree, data)).matches(labels) == tree[1](labels)


@given(text=st.text(st.sampled_from("ab()!&|='\"{}, hasinotall\n"), max_size=30), labels=labels)
def test_any_text_is_read_or_refused_at_a_character(text: str, labels: Labels) -> None:
    """No text makes the parser fail in another way than by saying where."""
    try:
        selector = parse_selector(text)
    except SelectorError as error:
        says = str(error)
    else:
        assert selector.matches(labels) in (True, False)
        return
    position = int(says.rpartition(" at character ")[2].partition(",")[0])
    assert 1 <= position <= len(text) + 1
    assert says.endswith("not the end") == (position == len(text) + 1)


@pytest.mark.parametrize(
    ("text", "labels", "selects"),
    [
        ("", {}, True),
        ("  \t", {}, True),
        ("all()", {}, True),
        ("global()", {}, True),
        ("!all()", {}, False),
        ("!!all()", {}, True),
        ('rack == "0"', {"rack": "0"}, True),
        ("rack=='0'", {"rack": "1"}, False),
        ("rack == '0'", {}, False),
        ("rack != '0'", {}, True),
        ("rack in {'0', \"1\"}", {"rack": "1"}, True),
        ("rack in {'0','1',}", {"rack": "1"}, True),
        ("rack in {}", {"rack": "1"}, False),
        ("rack in {'0'}", {}, False),
        ("rack not in {'0'}", {}, True),
        ("rack notin{'0'}", {"rack": "0"}, False),
        ("has(rack)", {"rack": ""}, True),
        ("has(rack)", {}, False),
        ("rack contains 'x'", {}, False),
        ("rack contains ''", {"rack": "0"}, True),
        ("rack starts with 'r-'", {"rack": "r-1"}, True),
        ("rack ends with 'r-'", {"rack": "r-1"}, False),
        ("rack startswith 'r-'", {"rack": "r-1"}, True),
        ("a == 'x' || b == 'x' && c == 'x'", {"a": "x"}, True),
        ("(a == 'x' || b == 'x') && c == 'x'", {"a": "x"}, False),
        ("!a == 'x' && b == 'x'", {"b": "x"}, True),
        ("!(a == 'x' && b == 'x')", {"b": "x"}, True),
        ("has == 'in' && in in {'in'}", {"has": "in", "in": "in"}, True),
        ("topology.kubernetes.io/zone == 'b'", {"topology.kubernetes.io/zone": "b"}, True),
    ],
)
def test_the_grammar(text: str, labels: Labels, selects: bool) -> None:
    """Each operator, both quotes, precedence, absent labels, and words that are labels where they stand as labels."""
    assert parse_selector(text).matches(labels) is selects


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rack = 1", 'expected ==, !=, in, not in, contains, starts with or ends with at character 6, not "= 1"'),
        ("rack", "expected ==, !=, in, not in, contains, starts with or ends with at character 5, not the end"),
        ("rack == 1", 'expected a value in quotes at character 9, not "1"'),
        ("rack ==", "expected a value in quotes at character 8, not the end"),
        ('rack == "0', "expected a value in quotes, with the second quote at character 9, not '\"0'"),
        ("rack in '0'", "expected { at character 9, not \"'0'\""),
        ("rack in {'0' '1'}", "expected , or } at character 14, not \"'1'}\""),
        ("rack in {'0', 1}", 'expected a value in quotes or } at character 15, not "1}"'),
        ("has(rack", "expected ) at character 9, not the end"),
        ("has()", "expected a label's name at character 5, not \")\""),
        ("all(rack)", 'expected ) at character 5, not "rack)"'),
        ("(all()", "expected &&, || or ) at character 7, not the end"),
        ("all())", 'expected &&, || or the end at character 6, not ")"'),
        ("all() all()", 'expected &&, || or the end at character 7, not "all()"'),
        ("all() & all()", 'expected &&, || or the end at character 7, not "& all()"'),
        ("all() && ", "expected a label's name, has(), all(), global(), ! or ( at character 10, not the end"),
        ("räck == '0'", 'expected ==, !=, in, not in, contains, starts with or ends with at character 2, not "äck == \'0\'"'),
        ("a == '0' || (b == '1' && c !! '2' and all the rest)", "expected ==, !=, in, not in, contains, starts with or ends with at character 28, not \"!! '2' and all the r\""),
    ],
)  # fmt: skip
def test_an_error_points_at_the_character(text: str, says: str) -> None:
    """What was expected, at which character counted from 1, and what stands there."""
    with pytest.raises(SelectorError) as refused:
        parse_selector(text)
    assert str(refused.value) == says


def test_nesting_is_bounded_by_nothing() -> None:
    """A hundred thousand parentheses and negations are read and evaluated like one."""
    deep = 100_000
    assert parse_selector("!(" * deep + "has(a)" + ")" * deep).matches({"a": ""})
    assert not parse_selector("(" * deep + "has(a)" + ")" * deep).matches({})
    with pytest.raises(SelectorError, match="at character 200007, not the end"):
        parse_selector("!(" * deep + "has(a)")


def test_a_long_selector_is_shortened_where_it_is_shown() -> None:
    """A message repeats no more than a hundred characters of it."""
    text = " || ".join(["has(rack)"] * 50)
    assert str(parse_selector(text)) == text[:97] + "..."
    assert str(parse_selector("has(rack)")) == "has(rack)"


def test_labels_are_read_from_a_text() -> None:
    """Blanks around a comma and a comma at the end do not matter; a value may be empty."""
    assert parse_labels("rack=0, topology.kubernetes.io/zone=b_1.c,empty=,") == {
        "rack": "0",
        "topology.kubernetes.io/zone": "b_1.c",
        "empty": "",
    }
    assert parse_labels("") == {}
