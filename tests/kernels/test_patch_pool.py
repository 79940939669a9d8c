import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import patch_pool as module
from plait.kernels.patch_pool import patch_pool

from .check import check


def inputs(lengths, D):
    torch.manual_seed(0)
    return torch.randn(sum(lengths), D), torch.tensor([0, *lengths]).cumsum(0)


def by_patch(x, first, reduce):
    """A loop over the patches."""
    parts = []
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        part = x[begin:end]
        if begin == end:
            parts.append(part.sum(0))
        else:
            parts.append(part.mean(0) if reduce == "mean" else part.amax(0))
    return torch.stack(parts) if parts else x[:0]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 9, 33]), max_size=5),
    D=st.sampled_from([1, 7, 33]),
    reduce=st.sampled_from(["mean", "max"]),
)
def test_equals_a_loop(lengths, D, reduce):
    x, first = inputs(lengths, D)
    check(lambda x: patch_pool(x, first, reduce), lambda x: by_patch(x, first, reduce), [x])


def test_equal_rows_share_the_gradient_also_of_a_maximum_of_zero():
    x = torch.tensor([-1.0, 0.0, 0.0, 5.0, 5.0, 5.0])[:, None].requires_grad_()
    patch_pool(x, torch.tensor([0, 3, 6]), "max").sum().backward()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0, 1 / 2, 1 / 2, *[1 / 3] * 3]))


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_compiles(reduce):
    x, first = inputs([3, 0, 2], 4)
    check(
        lambda x: patch_pool(x, first, reduce),
        lambda x: by_patch(x, first, reduce),
        [x],
        compiled=True,
    )


def test_refuses():
    x, first = inputs([3, 2], 4)
    for wrong in ((x[0], first, "max"), (x, first.int(), "max"), (x, first, "sum")):
        with pytest.raises(ValueError, match=r"patch_pool|reduce"):
            patch_pool(*wrong)


def test_the_choice():
    assert module._fastest("cuda", torch.bfloat16) == "triton"
    assert module._fastest("cuda", torch.float64) == "reference"
    assert module._fastest("cpu", torch.float32) == "reference"
