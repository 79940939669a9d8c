"""The Triton convolution in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import causal_conv
from plait.kernels.causal_conv import conv_op, reference

from .check import check, check_op
from .test_causal_conv import inputs
from .triton_checks import check_bfloat16, compiled, fence, fenced, interpreted

pytest.importorskip("triton")


def triton_conv(document_BT):
    document_BT = fenced(document_BT)

    def run(x, w, bias):
        return conv_op(fence(x), fence(w.T.contiguous()), fence(bias), document_BT, "triton")

    return run


@interpreted
@pytest.mark.parametrize("sizes", [(2, 67, 131, 4), (1, 1, 1, 1), (1, 2, 3, 5), (3, 33, 7, 3)])
def test_equals_the_definition(sizes):
    tensors, document_BT = inputs(*sizes)
    check(triton_conv(document_BT), lambda *x: reference(*x, document_BT), tensors, tolerance=5e-5)


@interpreted
def test_bfloat16():
    tensors, document_BT = inputs(2, 40, 9, 4)
    check_bfloat16(triton_conv(document_BT), lambda *x: reference(*x, document_BT), tensors)


@interpreted
def test_no_tap_reaches_another_document():
    (x, w, bias), _ = inputs(1, 40, 6, 4)
    document_BT = torch.tensor([[0] * 15 + [1] * 20 + [-1] * 5], dtype=torch.int32)
    expected = reference(x, w, bias, document_BT)
    x[:, :15], x[:, 35:] = torch.nan, torch.nan
    x.requires_grad_()
    y = triton_conv(document_BT)(x, w, bias)
    torch.testing.assert_close(y[:, 15:35], expected[:, 15:35])
    y[:, 15:35].sum().backward()
    assert x.grad.isfinite().all() and x.grad[:, :15].abs().max() == 0


@interpreted
def test_nothing_to_do_is_done():
    (x, w, bias), document_BT = inputs(2, 0, 3, 4)
    check(triton_conv(document_BT), lambda *x: reference(*x, document_BT), [x, w, bias])


@interpreted
def test_the_op_holds_together():
    (x, w, bias), document_BT = inputs(1, 5, 3, 2)
    tensors = [t.requires_grad_() for t in (x, w.T.contiguous(), bias)]
    check_op(conv_op, (*tensors, document_BT, "triton"))


@compiled
def test_the_choice():
    fastest = causal_conv._fastest
    assert fastest("cuda", torch.bfloat16) == fastest("cuda", torch.float32) == "triton"
    assert fastest("cuda", torch.float64) == fastest("cuda", None) == "reference"
    assert fastest("cpu", torch.bfloat16) == "reference"
