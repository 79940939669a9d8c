import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.schedule import Schedule
from plait.tokenizers.errors import ConfigError

weights = st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any)


def stretches_of(parts):
    ends = np.cumsum([length for length, _ in parts]).tolist()
    return [(0, [3.0, 2.0, 1.0]), *zip(ends, [w for _, w in parts], strict=True)]


schedules = st.lists(st.tuples(st.integers(1, 90), weights), max_size=4).map(stretches_of)


@settings(max_examples=80, deadline=None)
@given(schedules)
def test_shares_are_exact_in_every_stretch_and_no_row_is_lost(stretches):
    schedule = Schedule(stretches, [50, 40, 30])
    drawn = [schedule.locate(i) for i in range(300)]
    for stream in range(3):
        mine = [row for s, row in drawn if s == stream]
        assert mine == list(range(len(mine)))
        places = [i for i, (s, _) in enumerate(drawn) if s == stream]
        assert [schedule.row_of(stream, n) for n in range(len(places))] == places
    ends = [row for row, _ in stretches[1:]] + [300]
    for (first, w), end in zip(stretches, ends, strict=True):
        counts = np.zeros(3)
        for i in range(first, min(end, 300)):
            counts[drawn[i][0]] += 1
            assert np.abs(counts - (i - first + 1) * np.array(w) / sum(w)).max() < 1
    for row in (0, 1, 77, 300):
        taken = [sum(s == stream for s, _ in drawn[:row]) for stream in range(3)]
        assert schedule.taken(row) == taken


@settings(max_examples=40, deadline=None)
@given(schedules, schedules, st.integers(0, 200))
def test_the_past_stays_when_weights_change(old, new, row):
    before = Schedule(old, [50, 40, 30])
    after = Schedule(new, [50, 40, 30]).after(before.stretches, row)
    drawn = [after.locate(i) for i in range(300)]
    assert drawn[:row] == [before.locate(i) for i in range(row)]
    for stream in range(3):
        mine = [n for s, n in drawn if s == stream]
        assert mine == list(range(len(mine)))
    assert after.weights_at(row) == Schedule(new, [50, 40, 30]).weights_at(row)


def test_the_same_weights_change_nothing():
    schedule = Schedule([(0, [1, 2])], [10, 10])
    assert schedule.after([(0, [1, 2])], 5).stretches == [(0, [1, 2])]
    changed = Schedule([(0, None)], [10, 10]).after([(0, [1, 2])], 5)
    assert changed.stretches == [(0, [1, 2]), (5, None)]
    assert changed.after(changed.stretches, 9).stretches == changed.stretches


def test_a_stream_that_stops_coming():
    schedule = Schedule([(0, [1, 1]), (4, [1, 0])], [10, 10])
    assert [schedule.locate(i)[0] for i in range(4, 30)] == [0] * 26
    assert schedule.row_of(1, 1) == 3 and schedule.row_of(1, 2) is None


@pytest.mark.parametrize(
    ("stretches", "message"),
    [
        ([(1, [1, 1])], "first should be 0"),
        ([(0, [1, 1]), (5, [1, 2]), (5, [1, 1])], "each after the last"),
        ([(0, [1, 1, 1])], "3 weights for 2 streams"),
        ([(0, [1, 0]), (5, [2, 0])], "stream 1 has none"),
        ([(0, [1, -1])], "above 0"),
    ],
)
def test_schedules_that_cannot_be(stretches, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(stretches, [10, 10])
