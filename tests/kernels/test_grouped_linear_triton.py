"""The Triton grouped linear layer in the interpreter, and the choice between what GPUs have."""

import pytest
import torch

from plait.kernels import grouped_linear
from plait.kernels.grouped_linear import linear_op, reference, weight_op

from .check import check, check_op
from .triton_checks import check_bfloat16, compiled, fence, interpreted

pytest.importorskip("triton")


def inputs(counts, width, outputs, bias=True):
    torch.manual_seed(0)
    M = len(counts)
    shapes = [(sum(counts), width), (M, outputs, width), *([(M, outputs)] if bias else [])]
    return [torch.randn(shape) for shape in shapes]


@interpreted
@pytest.mark.parametrize(
    ("counts", "width", "outputs", "bias"),
    [((70, 0, 1, 63), 35, 66, True), ((0, 0), 3, 5, True), ((0, 1, 0), 1, 1, False),
     ((64, 128), 64, 64, False)],
)  # fmt: skip
def test_equals_the_definition(counts, width, outputs, bias):
    check(
        lambda x, w, b=None: linear_op(fence(x), w, b, list(counts), "triton"),
        lambda x, w, b=None: reference(x, w, counts, b),
        inputs(counts, width, outputs, bias),
    )


@interpreted
@pytest.mark.parametrize(("width", "outputs"), [(70, 133), (80, 144)])
def test_bfloat16_is_within_a_rounding_of_float32(width, outputs):
    counts = (130, 0, 9)
    check_bfloat16(
        lambda x, w, b: linear_op(fence(x), w, b, list(counts), "triton"),
        lambda x, w, b: reference(x, w, counts, b),
        inputs(counts, width, outputs),
    )


@interpreted
def test_the_op_holds_together():
    x, w, b = (t.requires_grad_() for t in inputs((3, 0, 2), 4, 5))
    check_op(linear_op, (x, w, b, [3, 0, 2], "triton"))
    check_op(weight_op, (torch.randn(5, 6), x.detach(), [3, 0, 2], "triton"))


@interpreted
def test_grouped_mm_in_its_place():
    """torch's own runs on CPUs too; the weights' gradient is Triton's."""
    counts = (5, 0, 19)
    check(
        lambda x, w: linear_op(x, w, None, list(counts), "grouped_mm"),
        lambda x, w: reference(x, w, counts),
        inputs(counts, 16, 8, bias=False),
    )


@compiled
def test_the_choice(monkeypatch):
    """By device, precision, sizes and bias."""
    fastest, bf16 = grouped_linear._fastest, torch.bfloat16
    assert fastest("cpu", torch.float32, (8, 8, 0)) == "products in place"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert fastest("cuda", bf16, (8, 8, 0)) == "grouped_mm"
    assert fastest("cuda", bf16, (8, 12, 0)) == "triton"
    assert fastest("cuda", bf16, (8, 8, 1)) == "triton"
    assert fastest("cuda", torch.float64, (8, 8, 0)) == "products in place"
    assert fastest("cuda", None, (8, 8, 0)) == "products in place"
    assert fastest("cuda", torch.float32, (8, 8, 0)) == "products in place"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert fastest("cuda", torch.float32, (8, 8, 0)) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert fastest("cuda", bf16, (8, 8, 0)) == "triton"
