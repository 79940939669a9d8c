import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.pipeline.json_text import read_json

NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.booleans())
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(st.characters())),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_it_reads_as_the_standard_library(value, escaped):
    text = json.dumps(value, ensure_ascii=escaped).encode(errors="surrogatepass")
    found = read_json(text)
    assert found == json.loads(text) and repr(found) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": 1e400}',
        '\ufeff{"a": 1}',
        '{"a": "\\ud800"}',
        '{"a": [1, {"b": 18446744073709551617}]}',
        "[" * 600 + "1" + "]" * 600,
    ],
)
def test_what_orjson_refuses_or_changes_is_read_all_the_same(text):
    assert repr(read_json(text.encode())) == repr(json.loads(text.encode()))


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 01}', b'"\n"', b"\xff", b"[1] 2"])
def test_the_reason_is_the_standard_library_s(text):
    with pytest.raises(ValueError) as wanted:
        json.loads(text)
    with pytest.raises(ValueError) as found:
        read_json(text)
    assert str(found.value) == str(wanted.value)
