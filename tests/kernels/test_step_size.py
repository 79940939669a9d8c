import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.compile_c import library
from plait.kernels.step_size import reference, step_op, step_size

from .check import check, check_op

needs_c = pytest.mark.skipif(library("step_size") is None, reason="no C compiler")


def inputs(counts, width):
    torch.manual_seed(0)
    return [4 * torch.randn(sum(counts), width), torch.randn(len(counts), width)]


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 5, 64, 130]), min_size=1, max_size=4),
    width=st.sampled_from([1, 7, 8, 33, 64]),
)
def test_equals_the_definition(counts, width):
    counts = tuple(counts)
    check(
        lambda x, b: step_size(x, b, counts),
        lambda x, b: reference(x, b, counts),
        inputs(counts, width),
    )


def test_one_bias_is_for_all_and_it_compiles():
    x, bias = inputs((9,), 12)
    check(
        lambda x, b: step_size(x, b, (4, 5)),
        lambda x, b: reference(x, b, (9,)),
        [x, bias],
        compiled=True,
    )


@needs_c
def test_precision_of_small_steps_and_odd_values():
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([-1e30, 1e30, 0.0, -0.0])])
    y = step_size(x[:, None], torch.zeros(1, 1), (len(x),))[:, 0]
    exact = torch.nn.functional.softplus(x.double(), threshold=1000)
    error = (y.double() - exact).abs() / exact.clamp(min=1e-37)
    assert (error <= 5e-7 + 1e-7 * x.double().abs().clamp(max=80)).all()
    odd = torch.tensor([[torch.nan, 1.0, torch.inf, -torch.inf]])
    y = step_size(odd, torch.zeros(1, 4), (1,))[0]
    assert y[0].isnan() and y[1:3].isfinite()[0] and y[2] == torch.inf and y[3] == 0


@needs_c
def test_the_op_holds_together():
    x, bias = (t.requires_grad_() for t in inputs((3, 0, 2), 5))
    check_op(step_op, (x, bias, [3, 0, 2]))


def test_threads_change_nothing():
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x, bias = (t.requires_grad_() for t in inputs((500, 1, 499), 33))
            y = step_size(x, bias, (500, 1, 499))
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, bias))])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_refuses():
    with pytest.raises(ValueError, match="disagree"):
        step_size(torch.zeros(3, 2), torch.zeros(2, 2), (1, 1))
