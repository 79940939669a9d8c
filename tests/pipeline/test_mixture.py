import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.mixture import LONGEST_PERIOD, Mixture, sequence, shares
from plait.tokenizers.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_never_a_row_from_the_share(counts):
    order = sequence(counts)
    total = sum(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    for s, count in enumerate(counts):
        drift = np.cumsum(order == s) - np.arange(1, total + 1) * count / total
        assert np.abs(drift).max() < 1


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_weights_make_a_short_period(weights):
    counts = shares(weights)
    assert sum(counts) <= LONGEST_PERIOD
    for count, weight in zip(counts, weights, strict=True):
        assert count / sum(counts) == pytest.approx(weight / sum(weights), abs=2 / LONGEST_PERIOD)


def test_rows_of_a_stream_are_counted_on_over_periods():
    mixture = Mixture([3, 2])
    drawn = [mixture.locate(i) for i in range(40)]
    for stream in (0, 1):
        rows = [row for s, row in drawn if s == stream]
        assert rows == list(range(len(rows)))


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [float("nan")], [1e-9, 1.0]])
def test_impossible_weights(weights):
    with pytest.raises(ConfigError):
        shares(weights)
