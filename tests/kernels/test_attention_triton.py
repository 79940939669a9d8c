"""The Triton attention in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import attention as module
from plait.kernels.attention import AttentionLayout, attention, attention_op, reference
from plait.kernels.permute import permute_rows

from .check import check, check_op
from .test_attention import qkv, rows
from .triton_checks import check_bfloat16, compiled, fence, fenced, interpreted

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "_fastest", lambda *sizes: "triton")


def fast(document_BT, order=None):
    """The public function with the choice of a GPU, on positions that stand in an order."""
    layout = AttentionLayout.of(document_BT)
    if order is None:
        layout = layout._map(fenced)
        return lambda *qkv: attention(*map(fence, qkv), layout)
    layout = layout.sorted(*order)._map(fenced)

    def moved(*qkv):
        o_BTHK = attention(*(fence(permute_rows(x, *order)) for x in qkv), layout)
        return permute_rows(o_BTHK, *order[::-1])

    return moved


def slow(document_BT):
    return lambda q, k, v: reference(q, k, v, document_BT)


def shuffled(positions):
    torch.manual_seed(0)
    permutation_N = torch.randperm(positions)
    return permutation_N, permutation_N.argsort()


@interpreted
@pytest.mark.parametrize(
    ("lengths", "seq_len", "sizes"),
    [((1, 129, 3), 135, (1, 20)), ((45,), 45, (1, 65)), ((2, 1), 3, (2, 1))],
)
@pytest.mark.parametrize("moved", [False, True])
def test_equals_the_definition(lengths, seq_len, sizes, moved):
    document_BT = rows(*lengths, seq_len=seq_len)
    order = shuffled(seq_len) if moved else None
    check(fast(document_BT, order), slow(document_BT), qkv(document_BT, *sizes))


@interpreted
def test_padding_before_and_between_and_nothing_else():
    document_BT = torch.tensor([[-1, -1, 0, 0, -1, 1], [0, 1, 1, 1, 1, -1], [-1] * 6])
    check(fast(document_BT, shuffled(18)), slow(document_BT), qkv(document_BT, 1))
    padding = torch.full((2, 3), -1)
    check(fast(padding), slow(padding), qkv(padding))
    for shape in ((0, 5), (2, 0), (0, 0)):
        nothing = torch.zeros(shape).int()
        inputs = [x.requires_grad_() for x in qkv(nothing)]
        o_BTHK = fast(nothing)(*inputs)
        gradients = torch.autograd.grad(o_BTHK.sum(), inputs)
        assert {x.shape for x in (o_BTHK, *gradients)} == {(*shape, 2, 4)}


@interpreted
@pytest.mark.parametrize("size", [16, 36, 128])
def test_bfloat16_in_which_shares_of_attention_are_rounded_too(size):
    document_BT = rows(70, 5, seq_len=80)
    attend, inputs = fast(document_BT, shuffled(80)), qkv(document_BT, 1, size)
    check_bfloat16(attend, slow(document_BT), inputs, tolerance=2**-8)


@interpreted
def test_the_op_holds_together():
    in_order = AttentionLayout.of(rows(3, 2, seq_len=6))
    packed = [x.flatten(0, 1).requires_grad_() for x in qkv(in_order.document_BT, 1)]
    for layout in (in_order, in_order.sorted(*shuffled(6))):
        check_op(attention_op, (*packed, layout.tile_G3, layout.sorted_N, layout.padding_N))


@interpreted
def test_compiles():
    document_BT = rows(5, 9, seq_len=16)
    layout = AttentionLayout.of(document_BT)
    x = qkv(document_BT)
    check(lambda *x: attention(*x, layout), slow(document_BT), x, compiled=True)


@interpreted
def test_views_and_autocast():
    """Queries, keys and values of one projection are read where they stand."""
    document_BT = rows(40, 9, seq_len=50)
    layout = AttentionLayout.of(document_BT)
    x_BT3HK = torch.stack(qkv(document_BT), 2)
    views = x_BT3HK.unbind(2)
    torch.testing.assert_close(attention(*views, layout), slow(document_BT)(*views))
    last = [x.mT.contiguous().mT for x in views]
    torch.testing.assert_close(attention(*last, layout), slow(document_BT)(*views))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(views[0].bfloat16(), *views[1:], layout).dtype is torch.bfloat16


@interpreted
@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN)")
def test_nothing_of_another_document_or_of_padding_is_read():
    document_BT = rows(30, 34, seq_len=70)
    order = shuffled(70)
    inputs = [x.requires_grad_() for x in qkv(document_BT)]
    attend = fast(document_BT, order)
    wanted = attend(*inputs)[:, 30:64]
    gradients = torch.autograd.grad(wanted.sum(), inputs)
    with torch.no_grad():
        for x in inputs:
            x[:, :30] = x[:, 64:] = torch.nan
    o = attend(*inputs)
    assert torch.equal(o[:, 30:64], wanted)
    assert not o[:, 64:].any()
    for dx, dx_wanted in zip(
        torch.autograd.grad(o[:, 30:64].sum(), inputs), gradients, strict=True
    ):
        assert torch.equal(dx[:, 30:64], dx_wanted[:, 30:64])
        assert not dx[:, 64:].any()


@compiled
def test_the_choice(monkeypatch):
    """By device, precision and head size."""
    monkeypatch.undo()
    fastest, fp32, bf16 = module._fastest, torch.float32, torch.bfloat16
    assert fastest("cpu", fp32, 64) == "buckets"
    assert fastest("cuda", fp32, 1) == fastest("cuda", bf16, 128) == "triton"
    assert fastest("cuda", bf16, 129) == fastest("cuda", None, 64) == "buckets"
    assert fastest("cuda", torch.float16, 64) == "buckets"
