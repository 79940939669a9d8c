import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.pipeline.order import WINDOW_DOCUMENTS, grouped, order_of, windows


@given(st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1), max_size=50))
def test_hashes_are_sorted_and_equal_ones_keep_their_order(values):
    order = order_of(np.array(values, np.uint64))
    assert order.tolist() == sorted(range(len(values)), key=lambda i: values[i])


@given(st.lists(st.integers(0, 9) | st.integers(0, 2**31), max_size=50))
def test_groups_keep_the_order_within(values):
    order = grouped(np.array(values, np.int64))
    assert order.tolist() == sorted(range(len(values)), key=lambda i: values[i])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60_000), min_size=1, max_size=80), st.integers(0, 9))
def test_windows_are_large_and_alike(documents, seed):
    groups = windows(np.array(documents), seed)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(documents)))
    sizes = [sum(documents[s] for s in group.tolist()) for group in groups]
    total = sum(documents)
    assert len(groups) <= max(1, total // WINDOW_DOCUMENTS)
    if len(groups) > 1:
        assert max(sizes) - min(sizes) <= 2 * max(documents)


@pytest.mark.parametrize(("shards", "each"), [(10, 20_000), (125, 8_000), (40, 50_000)])
def test_neighbours_are_rarely_near(shards, each):
    """Drawn at random from a window, two documents come from within 1,000 in 2 % of cases."""
    for group in windows(np.full(shards, each), 1):
        assert 2000 / (len(group) * each) <= 0.02
