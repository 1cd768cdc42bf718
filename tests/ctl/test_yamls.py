"""YAML: what is printed reads back, looks as Calico's tools print it, and mistakes are told with their place."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ipamd.ctl.yamls import YamlError, dump, load_all

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=4))
def test_what_is_printed_reads_back(document: dict[str, object]) -> None:
    """Every document comes back as it was, by our reader and by PyYAML's own."""
    text = dump(document)
    assert list(load_all(text)) == [document]
    assert yaml.safe_load(text) == document


PRINTED = {
    'rack == "0"': 'rack == "0"',
    "!all()": "'!all()'",
    "all()": "all()",
    "2026-11-20T23:47:45Z": '"2026-11-20T23:47:45Z"',
    "0": '"0"',
    "1e3": '"1e3"',
    "true": '"true"',
    "yes": '"yes"',
    "N": '"N"',
    "": '""',
    "null": '"null"',
    "10.0.0.0/26": "10.0.0.0/26",
    "fd00::/64": "fd00::/64",
    "a: b": "'a: b'",
}


@pytest.mark.parametrize("text", PRINTED)
def test_quotes_are_those_of_go(text: str) -> None:
    """A text that would be read as something else is in double quotes, one that could not stand bare in single ones."""
    assert dump({"k": text}) == f"k: {PRINTED[text]}\n"


def test_times_stay_texts() -> None:
    """A time that is not in quotes is read as the text that it is."""
    assert list(load_all("a: 2022-05-12T14:34:03Z\n---\n---\nb: 1\n")) == [{"a": "2022-05-12T14:34:03Z"}, {"b": 1}]


REFUSED = {
    "a: [1": "line 1, column 6: expected ',' or ']', but got '<stream end>'",
    "a: 1\na: 2": "line 2, column 1: the key 'a' stands twice",
    "1: a": "line 1, column 1: the key 1 is no text; put it in quotes",
    "a: \x00": "unacceptable character",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_read(text: str) -> None:
    """The error says where and why."""
    with pytest.raises(YamlError) as caught:
        list(load_all(text))
    assert REFUSED[text] in str(caught.value)
