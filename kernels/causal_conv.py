"""A short causal convolution of each channel with itself, in which no tap reaches another document.

Special here: where the document of the position `j` back is another one, the tap reads zero, so a
packed row equals its documents alone. On a CPU one C loop does it in place of a dozen passes over
memory, on a GPU one Triton kernel; else it is the definition, shifts and masks. Letters:
models/README.md; here `I` is the width and `K` the number of taps, of which the last is the
position's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs
from plait.kernels.compile_c import call, library
from plait.kernels.permute import permute_rows

STEPS = 64
"""Positions of a task; the same number stands in causal_conv.c."""


def causal_conv(
    x_BTI: Tensor,
    w_IK: Tensor,
    bias_I: Tensor,
    document_BT: Tensor,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """y[t] = bias + sum over j < K of w[K-1-j] x[t-j], where t-j is in t's document; [B, T, I].

    Padding (any negative document) counts as a document. ValueError where shapes disagree. With
    `places`, x and y are in another order, as in `selective_scan`.

    >>> ones = torch.ones(1, 4, 1)
    >>> causal_conv(ones, torch.ones(1, 3), torch.zeros(1), torch.tensor([[0, 0, 1, 1]])).flatten()
    tensor([1., 2., 1., 2.])
    """
    shapes = tuple(w_IK.shape[:1]), tuple(bias_I.shape), tuple(document_BT.shape)
    if w_IK.ndim != 2 or shapes != (x_BTI.shape[2:], x_BTI.shape[2:], x_BTI.shape[:2]):
        raise ValueError(f"x {tuple(x_BTI.shape)}, w, bias and document {shapes} disagree")
    dtype = x_BTI.dtype if x_BTI.dtype == w_IK.dtype == bias_I.dtype else None
    path = choose("causal_conv", _fastest(x_BTI.device.type, dtype))
    if places is not None and path != "c":
        y_BTI = causal_conv(permute_rows(x_BTI, *places), w_IK, bias_I, document_BT)
        return permute_rows(y_BTI, *places[::-1])
    if path == "reference":
        return reference(x_BTI, w_IK, bias_I, document_BT)
    document_BT = document_BT.to(torch.int32).contiguous()
    inputs = (x_BTI.contiguous(), w_IK.T.contiguous(), bias_I.contiguous(), document_BT)
    return conv_op(*inputs, path, None if places is None else places[0])


def causal_conv_step(
    window_BKI: Tensor, x_BI: Tensor, w_IK: Tensor, bias_I: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: (y [B, I], the new window); the window holds the last K inputs, oldest first.

    A new document's window is zeros.
    """
    window_BKI = torch.cat([window_BKI[:, 1:], x_BI[:, None]], 1)
    return torch.einsum("bki,ik->bi", window_BKI, w_IK) + bias_I, window_BKI


def reference(x_BTI: Tensor, w_IK: Tensor, bias_I: Tensor, document_BT: Tensor) -> Tensor:
    """The definition: a shift, a mask and a product a tap."""
    y_BTI = torch.addcmul(bias_I, x_BTI, w_IK[:, -1])
    for back in range(1, min(w_IK.shape[1], x_BTI.shape[1])):
        other_BT1 = (document_BT[:, back:] != document_BT[:, :-back])[..., None]
        tap_BTI = x_BTI[:, :-back].masked_fill(other_BT1, 0) * w_IK[:, -1 - back]
        y_BTI = y_BTI + F.pad(tap_BTI, (0, 0, back, 0))
    return y_BTI


@constant
def _fastest(device: str, dtype: torch.dtype | None) -> str:
    """Of one precision, or None where x, w and bias differ."""
    if dtype is not None and triton_runs(device, dtype):
        return "triton"
    ready = device == "cpu" and dtype is torch.float32 and library("causal_conv") is not None
    return "c" if ready else "reference"


@torch.library.custom_op("plait::causal_conv", mutates_args=())
def conv_op(
    x: Tensor, w: Tensor, bias: Tensor, document: Tensor, path: str, place: Tensor | None = None
) -> Tensor:
    """y [B, T, I] of w [K, I], int32 documents and int64 places; contiguous, float32 in C."""
    if path == "triton":
        from plait.kernels import causal_conv_triton

        return causal_conv_triton.forward(x, w, bias, document)
    y_BTI = torch.empty_like(x)
    tensors = (x, w, bias, document, _place(place, document), y_BTI)
    call("causal_conv", "conv_forward", (*x.shape, len(w)), tensors)
    return y_BTI


@torch.library.custom_op("plait::causal_conv_backward", mutates_args=())
def conv_backward_op(
    dy: Tensor, x: Tensor, w: Tensor, document: Tensor, path: str, place: Tensor | None = None
) -> list[Tensor]:
    """Gradients of x, w and bias."""
    if path == "triton":
        from plait.kernels import causal_conv_triton

        return causal_conv_triton.backward(dy.contiguous(), x, w, document)
    B, T, I = x.shape
    parts = B * -(-T // STEPS)
    dx_BTI, dw_KI, dbias_I = torch.empty_like(x), torch.empty_like(w), w.new_empty(I)
    dw_GKI, dbias_GI = w.new_empty(parts, *w.shape), w.new_empty(parts, I)
    inputs = (dy.contiguous(), x, w, document, _place(place, document))
    tensors = (*inputs, dx_BTI, dw_GKI, dbias_GI, dw_KI, dbias_I)
    call("causal_conv", "conv_backward", (B, T, I, len(w)), tensors)
    return [dx_BTI, dw_KI, dbias_I]


def _place(place: Tensor | None, document: Tensor) -> Tensor:
    return torch.arange(document.numel()) if place is None else place


@conv_op.register_fake
def _(x, w, bias, document, path, place=None):
    return torch.empty_like(x)


@conv_backward_op.register_fake
def _(dy, x, w, document, path, place=None):
    return [torch.empty_like(x), torch.empty_like(w), w.new_empty(w.shape[1])]


def _save(ctx, inputs, output) -> None:
    x, w, _, document, ctx.path, place = inputs
    ctx.save_for_backward(x, w, document, place)


def _differentiate(ctx, dy):
    *tensors, place = ctx.saved_tensors
    return (*conv_backward_op(dy, *tensors, ctx.path, place), None, None, None)


conv_op.register_autograd(_differentiate, setup_context=_save)
