import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import product_keys
from plait.kernels.product_keys import best_op, product_key_topk, reference

from .check import check, check_op


def scores(N, H, n):
    torch.manual_seed(0)
    return [torch.randn(N, H, n) for _ in range(2)]


@settings(max_examples=30, deadline=None)
@given(N=st.sampled_from([0, 1, 63]), H=st.integers(1, 3), n=st.integers(1, 40), data=st.data())
def test_equals_the_definition(N, H, n, data):
    k = data.draw(st.integers(1, n))
    inputs = scores(N, H, n)
    assert torch.equal(product_key_topk(*inputs, k)[1], reference(*inputs, k)[1])
    check(lambda *x: product_key_topk(*x, k)[0], lambda *x: reference(*x, k)[0], inputs)


@pytest.mark.parametrize(
    ("n", "k"), [(1024, 32), (515, 32), (600, 1), (700, 43), (330, 300), (67, 16)]
)
def test_many_half_keys(n, k):
    first, second = scores(20, 2, n)
    first[0, 0], second[1, 1] = 1.0, first[1, 1].round()  # many equal ones
    first[2, 0, ::2] = -torch.inf
    picked, slots = product_key_topk(first, second, k)
    best = [x.sort(descending=True).values[..., : min(n, 2 * k)] for x in (first, second)]
    assert torch.equal(picked, reference(*best, k)[0])
    assert torch.equal(first.gather(-1, slots // n) + second.gather(-1, slots % n), picked)
    assert all(len(row.unique()) == k for row in slots.flatten(0, 1))


def test_without_a_compiler_and_not_a_number(monkeypatch):
    first, second = scores(9, 3, 300)
    slots = product_key_topk(first, second, 17)[1]
    poisoned = first.clone()
    poisoned[4] = torch.nan
    others = torch.arange(9) != 4
    assert torch.equal(product_key_topk(poisoned, second, 17)[1][others], slots[others])
    monkeypatch.setattr(product_keys, "library", lambda name: None)
    assert torch.equal(product_key_topk(first, second, 17)[1], slots)


def test_the_op_holds_together():
    check_op(best_op, (*(x.requires_grad_() for x in scores(5, 2, 40)), 7, "c"))


def test_a_thousand_positions_and_compilation():
    inputs = scores(1000, 1, 64)
    assert torch.equal(product_key_topk(*inputs, 32)[1], reference(*inputs, 32)[1])
    check(
        lambda *x: product_key_topk(*x, 8)[0],
        lambda *x: reference(*x, 8)[0],
        scores(5, 2, 16),
        compiled=True,
    )


def test_all_winners_in_one_row_or_column_and_ties():
    first = torch.tensor([[[0.0, 100.0, 200.0, 50.0]]])
    second = torch.tensor([[[4.0, 1.0, 3.0, 2.0]]])
    for a, b in ((first, second), (second, first), (first, first * 0), (first * 0, first * 0)):
        picked, slots = product_key_topk(a, b, 4)
        assert torch.equal(picked, reference(a, b, 4)[0])
        assert slots.unique().numel() == 4
        assert torch.equal((a[..., :, None] + b[..., None, :]).flatten()[slots], picked)


def test_refuses():
    with pytest.raises(ValueError, match="5 best"):
        product_key_topk(*scores(2, 1, 4), 5)
    with pytest.raises(ValueError, match="best pairs"):
        product_key_topk(scores(2, 1, 4)[0], scores(2, 1, 5)[0], 2)
