import doctest
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.tokenizers.sampling import choose


@given(st.lists(st.integers(1, 30)), st.integers(1, 200), st.integers(0, 3))
def test_a_choice_keeps_the_order_and_the_limit(sizes, limit, seed):
    samples = list(enumerate(sizes))
    kept = choose(iter(samples), lambda sample: sample[1], limit, seed=seed)
    assert kept == sorted(kept)
    assert set(kept) <= set(samples)
    if sum(sizes) <= limit:
        assert kept == samples
    else:
        assert len(kept) == 1 or sum(size for _, size in kept) <= limit
    assert kept == choose(samples, lambda sample: sample[1], limit, seed=seed)


def test_every_sample_is_as_likely():
    counts = [0] * 10
    for seed in range(600):
        for sample in choose(range(10), lambda _: 1, 3, seed=seed):
            counts[sample] += 1
    assert sum(counts) == 1800
    assert min(counts) > 130


@pytest.mark.parametrize("name", ["text", "byte_patch", "units"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(import_module(f"plait.tokenizers.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
