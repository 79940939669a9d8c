import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.grouped_linear import grouped_linear
from plait.kernels.run_length_linear import reference, run_length_linear

from .check import check


def compare(runs, M, width, outputs, bias=True, **options):
    torch.manual_seed(0)
    inputs = [torch.randn(sum(n for _, n in runs), width), torch.randn(M, outputs, width)]
    inputs += [torch.randn(M, outputs)] if bias else []
    check(
        lambda x, w, b=None: run_length_linear(x, w, runs, b),
        lambda x, w, b=None: reference(x, w, runs, b),
        inputs,
        **options,
    )


@settings(max_examples=30, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 63])), min_size=1, max_size=6
    ),
    width=st.integers(1, 33),
    outputs=st.integers(1, 9),
    bias=st.booleans(),
)
def test_equals_the_definition(runs, width, outputs, bias):
    compare(runs, 3, width, outputs, bias)


def test_odd_lengths():
    compare(((1, 1000), (0, 63), (1, 1)), 2, 24, 40)


def test_compiles():
    compare(((1, 5), (0, 0), (2, 3), (1, 2)), 3, 4, 6, compiled=True)
    compare(((1, 5), (0, 3)), 2, 4, 6, bias=False, compiled=True)


def test_equals_the_sorted_layer():
    modality_N = torch.tensor([2, 2, 0, 0, 0, 2, 1, 0])
    x_ND, w_MOD, bias_MO = torch.randn(8, 5), torch.randn(3, 4, 5), torch.randn(3, 4)
    order_N = modality_N.sort(stable=True).indices
    wanted_NO = grouped_linear(x_ND[order_N], w_MOD, (4, 1, 3), bias_MO)[order_N.argsort()]
    runs = [(2, 2), (0, 3), (2, 1), (1, 1), (0, 1)]
    torch.testing.assert_close(run_length_linear(x_ND, w_MOD, runs, bias_MO), wanted_NO)


def test_an_absent_modality_gets_zeros_not_none():
    w_MOD, bias_MO = (torch.randn(3, 4, 5, requires_grad=True), torch.zeros(3, 4).requires_grad_())
    run_length_linear(torch.randn(6, 5), w_MOD, [(0, 2), (2, 3), (0, 1)], bias_MO).sum().backward()
    assert torch.equal(w_MOD.grad[1], torch.zeros(4, 5))
    assert torch.equal(bias_MO.grad[1], torch.zeros(4))
    assert w_MOD.grad[0].abs().min() > 0


def test_autocast_keeps_gradients_in_the_inputs_precision():
    x_ND, w_MOD = torch.randn(6, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y_NO = run_length_linear(x_ND, w_MOD, [(1, 2), (0, 4)])
    assert y_NO.dtype is torch.bfloat16
    y_NO.float().sum().backward()
    assert x_ND.grad.dtype is w_MOD.grad.dtype is torch.float32


@pytest.mark.parametrize("runs", [[(0, 2), (1, 3)], [(2, 6)], [(0, 7), (1, -1)]])
def test_refuses_runs_that_do_not_fit(runs):
    with pytest.raises(ValueError, match="runs"):
        run_length_linear(torch.randn(6, 3), torch.randn(2, 4, 3), runs)
