import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.tokenizers import layouts

SHAPES = {"frames": st.integers(0, 12), "levels": st.integers(1, 6), "block": st.integers(1, 14)}


def grid(frames: int, levels: int) -> np.ndarray:
    return np.arange(frames * levels, dtype=np.int32).reshape(frames, levels)[::-1] * 7 - 3


@given(**SHAPES)
def test_every_layout_inverts_exactly(frames, levels, block):
    codes = grid(frames, levels)
    for back in (
        layouts.unflatten(layouts.flatten(codes), levels),
        layouts.undelay(layouts.delay(codes, -1)),
        layouts.from_coarse_first(layouts.coarse_first(codes, block), levels, block),
    ):
        assert back.dtype == codes.dtype
        assert np.array_equal(back, codes)


@given(**SHAPES)
def test_flat_layouts_hold_each_code_once_and_delay_only_adds_fillers(frames, levels, block):
    codes = grid(frames, levels)
    codes_sorted = np.sort(codes, axis=None)
    assert np.array_equal(np.sort(layouts.flatten(codes)), codes_sorted)
    assert np.array_equal(np.sort(layouts.coarse_first(codes, block)), codes_sorted)
    delayed = layouts.delay(codes, 10**6)
    assert np.array_equal(np.sort(delayed[delayed != 10**6]), codes_sorted)
    assert delayed.shape == ((frames + levels - 1) * (frames > 0), levels)


@given(**SHAPES)
def test_where_each_code_stands(frames, levels, block):
    codes = grid(frames, levels)
    flat, coarse = layouts.flatten(codes), layouts.coarse_first(codes, block)
    delayed = layouts.delay(codes, -1)
    for t, level in np.ndindex(frames, levels):
        first = t // block * block
        here = min(block, frames - first)
        assert flat[t * levels + level] == codes[t, level]
        assert delayed[t + level, level] == codes[t, level]
        assert coarse[first * levels + level * here + t - first] == codes[t, level]


def test_special_blocks():
    codes = grid(5, 3)
    assert np.array_equal(layouts.coarse_first(codes, 1), layouts.flatten(codes))
    assert np.array_equal(layouts.coarse_first(codes, 5), codes.T.reshape(-1))
    assert np.array_equal(layouts.coarse_first(codes, 99), codes.T.reshape(-1))


def test_what_is_no_grid():
    with pytest.raises(ValueError, match="no whole number"):
        layouts.unflatten(np.arange(5), 2)
    with pytest.raises(ValueError, match="no whole number"):
        layouts.from_coarse_first(np.arange(5), 2, 2)
    with pytest.raises(ValueError, match="no whole frame"):
        layouts.undelay(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="is \\[T, L\\]"):
        layouts.flatten(np.arange(3))
    with pytest.raises(ValueError, match="at least 1 frame"):
        layouts.coarse_first(grid(2, 2), 0)


def test_examples():
    assert doctest.testmod(layouts, extraglobs={"np": np}).failed == 0
