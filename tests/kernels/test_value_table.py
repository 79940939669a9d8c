import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import value_table
from plait.kernels.value_table import dots_op, reference, rows_op, weighted_bag

from .check import check, check_op


def inputs(R, D, N, J):
    torch.manual_seed(0)
    return torch.randn(R, D), torch.randint(R, (N, J)), torch.randn(N, J)


def compare(sizes, sparse, **options):
    values, index, weight = inputs(*sizes)
    check(
        lambda v, w: weighted_bag(v, index, w, sparse_grad=sparse),
        lambda v, w: reference(v, index, w),
        [values, weight],
        **options,
    )


@settings(max_examples=40, deadline=None)
@given(
    R=st.sampled_from([1, 2, 50, 3000]),
    D=st.sampled_from([1, 7, 8, 48, 65]),
    N=st.sampled_from([0, 1, 63]),
    J=st.integers(1, 9),
    sparse=st.booleans(),
)
def test_equals_the_definition(R, D, N, J, sparse):
    compare((R, D, N, J), sparse)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(value_table, "library", lambda name: None)
    compare((50, 7, 300, 3), sparse=False)
    compare((50, 7, 300, 3), sparse=True)


def test_the_ops_hold_together():
    values, index, weight = inputs(50, 8, 20, 3)
    dy = torch.randn(20, 8)
    check_op(rows_op, (dy, index, weight))
    check_op(dots_op, (values, index, dy))


def test_float64_and_gradcheck():
    values, index, weight = inputs(9, 4, 3, 2)
    leaves = (values.double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda v, w: weighted_bag(v, index, w), leaves)


def test_a_thousand_positions():
    compare((500, 20, 1000, 4), sparse=False)
    compare((500, 20, 1000, 4), sparse=True)


def test_compiles():
    compare((50, 8, 20, 3), sparse=False, compiled=True)


def test_the_sparse_gradient_holds_the_rows_that_were_read():
    values, index, weight = inputs(1000, 8, 30, 4)
    values.requires_grad_()
    weighted_bag(values, index, weight, sparse_grad=True).sum().backward()
    assert values.grad.is_sparse
    rows = values.grad._indices()[0]
    assert torch.equal(rows, index.unique())
    expected = torch.zeros(1000).index_add_(0, index.flatten(), weight.flatten())
    torch.testing.assert_close(values.grad._values()[:, 0], expected[rows])


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_of_several_uses_add_up(sparse):
    values, index, weight = inputs(100, 8, 30, 4)
    values.requires_grad_()
    y = sum(weighted_bag(values, i, weight, sparse_grad=sparse) for i in (index, index.flip(0)))
    (got,) = torch.autograd.grad(y.square().sum(), values)
    y = sum(reference(values, i, weight) for i in (index, index.flip(0)))
    (expected,) = torch.autograd.grad(y.square().sum(), values)
    torch.testing.assert_close(got.to_dense() if sparse else got, expected)


def test_threads_change_nothing():
    values, index, weight = inputs(200, 33, 500, 8)
    values.requires_grad_(), weight.requires_grad_()
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = weighted_bag(values, index, weight)
            results.append([y, *torch.autograd.grad(y.square().sum(), (values, weight))])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_refuses():
    values, index, weight = inputs(10, 4, 3, 2)
    with pytest.raises(ValueError, match="values"):
        weighted_bag(values, index, weight[:2])
    with pytest.raises((IndexError, RuntimeError)):
        weighted_bag(values, index + 10, weight)
