import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import modality_norm as module
from plait.kernels.modality_norm import modality_norm, reference

from .check import check

EPS = 0.1
"""Large, so that the gradient of a row of one element does not cancel."""


def inputs(counts, *shape):
    torch.manual_seed(0)
    return [torch.randn(sum(counts), *shape), torch.randn(len(counts), shape[-1])]


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 33]), min_size=1, max_size=4),
    shape=st.sampled_from([(1,), (7,), (64,), (3, 5)]),
)
def test_is_the_root_mean_square_of_each_row(counts, shape):
    def equation(x, w):
        group = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        gain = w[group].view(len(x), *[1] * (x.ndim - 2), x.shape[-1])
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain

    check(lambda x, w: modality_norm(x, w, counts, EPS), equation, inputs(counts, *shape))


def test_compiles():
    x, w = inputs((5, 0, 3), 4)
    check(
        lambda x, w: modality_norm(x, w, (5, 0, 3), EPS),
        lambda x, w: reference(x, w, (5, 0, 3), EPS),
        [x, w],
        compiled=True,
    )


def test_refuses_counts_that_do_not_fit():
    x, w = inputs((5, 3), 4)
    for counts in ((5, 2), (8,), (9, -1)):
        with pytest.raises(ValueError, match="counts"):
            modality_norm(x, w, counts, EPS)


def test_the_choice():
    assert module._fastest("cpu", torch.float32, 64) == "reference"
    assert module._fastest("cuda", torch.float64, 64) == "reference"
    assert module._fastest("cuda", torch.float32, module.WIDEST + 1) == "reference"
