import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import value_table
from plait.kernels.value_table import (
    Ledger,
    Reading,
    RowAdam,
    adam_rows,
    bag_op,
    dots_op,
    index_op,
    reference,
    row_squares,
    table_op,
    weighted_bag,
)

from .check import check, check_op


def inputs(R, D, N, J):
    torch.manual_seed(0)
    return torch.randn(R, D), torch.randint(R, (N, J)), torch.randn(N, J)


def noted(values, index, weight):
    """As weighted_bag, with the table's gradient from a ledger."""
    return _Noted.apply(values, weight, index)


class _Noted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, index):
        ctx.ledger = Ledger()
        ctx.leaf, ctx.shape = weight.detach().requires_grad_(), values.shape
        with torch.enable_grad():
            ctx.y = weighted_bag(values, index, ctx.leaf, ledger=ctx.ledger)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, dy):
        (dweight,) = torch.autograd.grad(ctx.y, ctx.leaf, dy)
        rows = ctx.ledger.rows(ctx.shape[0])
        dvalues = torch.zeros(ctx.shape)
        dvalues[rows.row_U] = rows.gradients()
        return dvalues, dweight, None


def compare(sizes, ledger, **options):
    values, index, weight = inputs(*sizes)
    check(
        lambda v, w: noted(v, index, w) if ledger else weighted_bag(v, index, w),
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
    ledger=st.booleans(),
)
def test_equals_the_definition(R, D, N, J, ledger):
    compare((R, D, N, J), ledger)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(value_table, "library", lambda name: None)
    compare((50, 7, 300, 3), ledger=False)
    compare((50, 7, 300, 3), ledger=True)


def test_the_ops_hold_together():
    values, index, weight = inputs(50, 8, 20, 3)
    dy = torch.randn(20, 8)
    leaves = (values.requires_grad_(), index, weight.requires_grad_())
    check_op(bag_op, (*leaves, 0))
    check_op(table_op, (dy, index, weight.detach(), 50))
    check_op(dots_op, (values.detach(), index, weight.detach(), dy, 0))


def test_float64_and_gradcheck():
    values, index, weight = inputs(9, 4, 3, 2)
    leaves = (values.double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda v, w: weighted_bag(v, index, w), leaves)


def test_a_thousand_positions():
    compare((500, 20, 1000, 4), ledger=False)
    compare((500, 20, 1000, 4), ledger=True)


def test_compiles():
    compare((50, 8, 20, 3), ledger=False, compiled=True)


def test_the_ledger_gathers_layers_and_micro_batches():
    values, index, weight = inputs(1000, 8, 30, 4)
    ledger, whole = Ledger(), values.clone().requires_grad_()
    for i in (index, index.flip(0), index + 500 - index):
        leaf = weight.clone().requires_grad_()
        weighted_bag(values, i, leaf, ledger=ledger).square().sum().backward()
        reference(whole, i, weight).square().sum().backward()
    rows = ledger.rows(1000)
    assert torch.equal(rows.row_U, torch.cat([index.flatten(), torch.tensor([500])]).unique())
    torch.testing.assert_close(rows.gradients(), whole.grad[rows.row_U])
    squares = whole.grad[rows.row_U].double().square().sum(1)
    torch.testing.assert_close(row_squares(rows), squares, rtol=1e-5, atol=0)
    ledger.clear()
    assert ledger.rows(1000) is None


@pytest.mark.parametrize("rows", [1, 2, 2048, 2049, 2**22 + 1])
def test_reverse_index(rows, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 5000):
        index = torch.randint(rows, (count,), generator=generator)
        index[: count // 2] = rows - 1
        found = index_op(index, rows)
        with monkeypatch.context() as patch:
            patch.setattr(value_table, "library", lambda name: None)
            assert all(map(torch.equal, found, index_op(index, rows)))


@pytest.mark.parametrize("compiler", [True, False])
def test_adam_on_rows(compiler, monkeypatch):
    """Each row by itself, from the equations (arXiv:1412.6980, algorithm 1)."""
    if not compiler:
        monkeypatch.setattr(value_table, "library", lambda name: None)
    R, D = 40, 7
    values = torch.randn(R, D, generator=torch.Generator().manual_seed(1))
    state = torch.zeros(R, D), torch.zeros(R), torch.zeros(R, dtype=torch.int32)
    numbers = RowAdam(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-3, scale=0.5)
    wanted, first, second = values.double(), torch.zeros(R, D).double(), torch.zeros(R).double()
    reads = [0] * R
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        index = torch.randint(R // 2, (9, 3), generator=generator)
        weight, dy = torch.randn(9, 3, generator=generator), torch.randn(9, D, generator=generator)
        ledger = Ledger([Reading(index_NJ=index, weight_NJ=weight, dy_ND=dy)])
        rows = ledger.rows(R)
        kept = torch.rand(len(rows.row_U), generator=generator)
        adam_rows(rows, numbers, row_squares(rows) / D, kept, values, *state)
        for r, keep in zip(rows.row_U.tolist(), kept.double(), strict=True):
            g = 0.5 * sum(
                weight[n, j].double() * dy[n].double() for n, j in (index == r).nonzero().tolist()
            )
            reads[r] += 1
            first[r] = 0.8 * first[r] + 0.2 * g
            second[r] = 0.9 * second[r] + 0.1 * (g * g).mean()
            m, v = first[r] / (1 - 0.8 ** reads[r]), second[r] / (1 - 0.9 ** reads[r])
            wanted[r] = keep * wanted[r] - 0.1 * m / (v.sqrt() + 1e-3)
    torch.testing.assert_close(values, wanted.float(), rtol=1e-5, atol=1e-6)
    assert state[2].tolist() == reads and not state[0][R // 2 :].any()


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
