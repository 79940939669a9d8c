"""The Triton product keys in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import product_keys as module
from plait.kernels.product_keys import best_op, product_key_topk, reference

from .check import check, check_op, nan_filled
from .test_product_keys import scores
from .triton_checks import check_bfloat16, compiled, fence, fenced, interpreted

pytest.importorskip("triton")


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "_fastest", lambda *facts: "triton")


def fenced_topk(k):
    return lambda *lists: product_key_topk(*map(fence, lists), k)[0]


@interpreted
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("N", "H", "n", "k"), [(2, 3, 37, 7), (1, 1, 1, 1), (0, 2, 4, 3), (1, 1, 70, 33), (5, 1, 9, 1)]
)
def test_equals_the_definition(N, H, n, k):
    inputs = scores(N, H, n)
    with nan_filled():
        slots = product_key_topk(*map(fenced, inputs), k)[1]
    assert torch.equal(slots, reference(*inputs, k)[1])
    check(fenced_topk(k), lambda *x: reference(*x, k)[0], inputs)


@interpreted
@pytest.mark.usefixtures("on_a_gpu")
def test_ties_and_infinities_and_all_winners_in_one_row_or_column():
    far = torch.tensor([[[0.0, 100.0, 200.0, 50.0, -0.0]]])
    near = torch.tensor([[[4.0, -torch.inf, 3.0, 2.0, -torch.inf]]])
    for first, second in ((far, near), (near, far), (far * 0, near), (far * 0, far * 0)):
        picked, slots = product_key_topk(fenced(first), fenced(second), 5)
        assert torch.equal(picked, reference(first, second, 5)[0])
        assert torch.equal((first[..., :, None] + second[..., None, :]).flatten()[slots], picked)
        assert slots.unique().numel() == 5


@interpreted
@pytest.mark.usefixtures("on_a_gpu")
def test_nan_comes_first_and_stays_with_its_head():
    first, second = scores(2, 2, 12)
    wanted, _ = reference(first, second, 5)
    first[0, 1, 3] = -torch.tensor(torch.nan)
    picked, slots = product_key_topk(fenced(first), fenced(second), 5)
    assert picked.isnan().all(-1).tolist() == [[False, True], [False, False]]
    assert torch.equal(picked[~picked.isnan()], wanted[~picked.isnan()])
    assert (slots[0, 1] // 12 == 3).all()


@interpreted
@pytest.mark.usefixtures("on_a_gpu")
def test_bfloat16_and_lists_that_lie_head_by_head():
    """As the memory layer makes them: the lists of one head side by side."""
    first, second = (fenced(x.bfloat16().transpose(0, 1)).transpose(0, 1) for x in scores(3, 2, 17))
    assert first.stride(0) < first.stride(1)
    picked, slots = product_key_topk(first, second, 6)
    assert torch.equal(picked, reference(first, second, 6)[0])
    sum_NHnn = first[..., :, None] + second[..., None, :]
    assert torch.equal(sum_NHnn.flatten(-2).gather(-1, slots), picked)
    distinct = torch.rand(2, 3, 2, 12).argsort(-1).float()  # no two sums are equal, all exact
    inputs = [distinct[0], 12 * distinct[1]]
    check_bfloat16(fenced_topk(6), lambda *x: reference(*x, 6)[0], inputs)


@interpreted
def test_the_op_holds_together():
    check_op(best_op, (*(x.requires_grad_() for x in scores(2, 1, 6)), 4, "triton"))


@compiled
def test_the_choice():
    def chosen(device="cuda", dtype=torch.float32, n=module.WIDEST, k=module.MOST):
        return module._fastest(device, dtype, n, k)

    assert chosen() == chosen(dtype=torch.bfloat16) == "triton"
    assert chosen(n=module.WIDEST + 1) == chosen(k=module.MOST + 1) == "staircase"
    assert chosen(dtype=torch.float64) == chosen("cpu", torch.float64) == "staircase"
