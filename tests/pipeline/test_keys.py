import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.pipeline.keys import compact, expand

PIECES = st.sampled_from(["a", "-", "#", "0", "7", "19", "007", "\u0663", "é", ".png", "99999", ""])


def again(keys):
    return expand(json.loads(json.dumps(compact(keys))), len(keys))


@given(st.lists(st.lists(PIECES, max_size=5).map("".join), max_size=30))
def test_any_keys_come_back(keys):
    assert again(keys) == tuple(keys)


@given(
    st.tuples(PIECES, PIECES, PIECES),
    st.lists(st.integers(0, 120), max_size=60),
    st.sampled_from(["{}", "{:02d}", "{:03d}"]),
    st.booleans(),
)
def test_keys_that_count_come_back(around, numbers, form, twice):
    numbers = sorted(numbers)
    a, b, c = around
    keys = [f"{a}{form.format(n)}{b}{i if twice else ''}{c}" for i, n in enumerate(numbers)]
    assert again(keys) == tuple(keys)


@pytest.mark.parametrize(
    ("key", "size"),
    [("d{}", 70), ("set/{:08d}.jpg", 80), ("#{}", 70), ("row-{}#{}", 140), ("{}", 70)],
)
def test_keys_that_count_cost_nothing(key, size):
    keys = [key.format(*[i + 8] * key.count("{")) for i in range(4096) if i != 1000]
    assert len(json.dumps(compact(keys))) < size + 20
    assert again(keys) == tuple(keys)


def test_names_beside_line_numbers_stay_readable():
    keys = [f"{n}.md#{i}" for i, n in enumerate(["quick", "brown", "fox", "jumps", "over", "it"])]
    value = compact(keys)
    assert isinstance(value, dict)
    assert value["before"] == [k.partition("#")[0] + "#" for k in keys]
    assert value["numbers"] == [[0, 6]]


RANGE = {"before": "a", "numbers": [[0, 4]], "digits": 0, "after": ""}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "abcd",
        ["a", "b"],
        {**RANGE, "numbers": [[0, 5]]},
        {**RANGE, "numbers": [[0, 10**15]]},
        {**RANGE, "numbers": [[4, 0]]},
        {**RANGE, "numbers": [[-2, 2]]},
        {**RANGE, "numbers": [["0", "4"]]},
        {**RANGE, "numbers": 4},
        {**RANGE, "digits": 10**9},
        {**RANGE, "digits": "4"},
        {**RANGE, "after": "x" * 5000},
        {**RANGE, "before": "x" * 5000},
        {**RANGE, "before": {**RANGE, "before": RANGE}},
        {k: v for k, v in RANGE.items() if k != "after"},
    ],
)
def test_damaged_keys_are_refused(value):
    """And nothing large is made of few bytes."""
    with pytest.raises((ValueError, TypeError, KeyError)):
        expand(value, 4)
