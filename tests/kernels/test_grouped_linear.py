import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.grouped_linear import grouped_linear, reference

from .check import check


def compare(counts, width, outputs, bias=True, **options):
    torch.manual_seed(0)
    M = len(counts)
    inputs = [torch.randn(sum(counts), width), torch.randn(M, outputs, width)]
    inputs += [torch.randn(M, outputs)] if bias else []
    check(
        lambda x, w, b=None: grouped_linear(x, w, counts, b),
        lambda x, w, b=None: reference(x, w, counts, b),
        inputs,
        **options,
    )


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 63]), min_size=1, max_size=5),
    width=st.integers(1, 33),
    outputs=st.integers(1, 9),
    bias=st.booleans(),
)
def test_equals_the_definition(counts, width, outputs, bias):
    compare(counts, width, outputs, bias)


def test_odd_lengths():
    compare((1000, 63, 1), 24, 40)


def test_compiles():
    compare((5, 0, 3), 4, 6, compiled=True)
    compare((5, 0, 3), 4, 6, bias=False, compiled=True)


def test_an_absent_modality_gets_zeros_not_none():
    w_MOD, bias_MO = (torch.randn(3, 4, 5, requires_grad=True), torch.zeros(3, 4).requires_grad_())
    grouped_linear(torch.randn(6, 5), w_MOD, (2, 0, 4), bias_MO).sum().backward()
    assert torch.equal(w_MOD.grad[1], torch.zeros(4, 5))
    assert torch.equal(bias_MO.grad[1], torch.zeros(4))
    assert w_MOD.grad[0].abs().min() > 0


def test_one_modality_is_a_plain_linear():
    x_ND, w_MOD, bias_MO = torch.randn(7, 5), torch.randn(1, 4, 5), torch.randn(1, 4)
    expected = F.linear(x_ND, w_MOD[0], bias_MO[0])
    assert torch.equal(grouped_linear(x_ND, w_MOD, (7,), bias_MO), expected)


def test_gradcheck_in_float64():
    x_ND = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    w_MOD = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, (2, 0, 3)), (x_ND, w_MOD))


def test_a_view_as_input():
    x_ND = torch.randn(5, 6).T
    w_MOD = torch.randn(2, 5, 4).transpose(1, 2)
    torch.testing.assert_close(grouped_linear(x_ND, w_MOD, (2, 4)), reference(x_ND, w_MOD, (2, 4)))


def test_autocast_computes_in_its_precision_and_keeps_gradients_in_the_inputs():
    x_ND, w_MOD = torch.randn(6, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y_NO = grouped_linear(x_ND, w_MOD, (2, 4))
        expected = reference(x_ND, w_MOD, (2, 4))
    assert y_NO.dtype is torch.bfloat16
    torch.testing.assert_close(y_NO, expected)
    y_NO.float().sum().backward()
    assert x_ND.grad.dtype is w_MOD.grad.dtype is torch.float32


@pytest.mark.parametrize("counts", [(2, 3), (2, 2, 2), (7, -1)])
def test_refuses_counts_that_do_not_fit(counts):
    with pytest.raises(ValueError, match="counts"):
        grouped_linear(torch.randn(6, 3), torch.randn(2, 4, 3), counts)
