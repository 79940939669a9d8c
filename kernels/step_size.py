"""Mamba's step sizes from their projection: softplus(x + bias), with a bias for each modality.

Special here: on CPUs one C pass adds the bias, takes exponential and logarithm, and its backward
another; torch's own softplus takes seven times as long, and the bias a pass of its own. Rows are
sorted by modality. Letters: models/README.md; `I` is the inner width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant
from plait.kernels.compile_c import call, library
from plait.kernels.rms_norm import TOKENS


def step_size(x_NI: Tensor, bias_MI: Tensor, counts: Sequence[int]) -> Tensor:
    """softplus(x + bias[m]), above 0, [N, I]; with one bias it is that of all rows.

    The first `counts[0]` rows are modality 0, and so on. In float32, or float64 if x is. ValueError
    where counts, rows and biases disagree.

    >>> x_NI, bias_MI = torch.zeros(2, 1), torch.tensor([[0.0], [3.0]])
    >>> [round(y, 4) for y in step_size(x_NI, bias_MI, (1, 1)).flatten().tolist()]
    [0.6931, 3.0486]
    """
    counts = tuple(counts) if len(bias_MI) > 1 else (len(x_NI),)
    if sum(counts) != len(x_NI) or bias_MI.shape != (len(counts), x_NI.shape[1]):
        shapes = tuple(x_NI.shape), tuple(bias_MI.shape)
        raise ValueError(f"counts {counts}, rows and biases {shapes} disagree")
    dtype = torch.float64 if x_NI.dtype is torch.float64 else torch.float32
    x_NI, bias_MI = x_NI.to(dtype), bias_MI.to(dtype)
    if choose("step_size", _fastest(x_NI.device.type, dtype)) == "reference":
        return reference(x_NI, bias_MI, counts)
    return step_op(x_NI.contiguous(), bias_MI.contiguous(), counts)


def reference(x_NI: Tensor, bias_MI: Tensor, counts: Sequence[int]) -> Tensor:
    """The definition: a sum and torch's softplus a segment."""
    segments = zip(x_NI.split(list(counts)), bias_MI, strict=True)
    return torch.cat([F.softplus(x_nI + bias_I) for x_nI, bias_I in segments])


@constant
def _fastest(device: str, dtype: torch.dtype) -> str:
    ready = device == "cpu" and dtype is torch.float32 and library("step_size") is not None
    return "c" if ready else "reference"


@torch.library.custom_op("plait::step_size", mutates_args=())
def step_op(x: Tensor, bias: Tensor, counts: Sequence[int]) -> Tensor:
    """The step sizes [N, I]; contiguous float32 on a CPU."""
    y_NI = torch.empty_like(x)
    call("step_size", "step_forward", x.shape, (x, bias, torch.tensor(counts), y_NI))
    return y_NI


@torch.library.custom_op("plait::step_size_backward", mutates_args=())
def step_backward_op(dy: Tensor, x: Tensor, bias: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Gradients of x and the bias."""
    dx_NI, dbias_MI = torch.empty_like(x), torch.empty_like(bias)
    parts_GMI = bias.new_empty(-(-len(x) // TOKENS), *bias.shape)
    tensors = (dy.contiguous(), x, bias, torch.tensor(counts), dx_NI, parts_GMI, dbias_MI)
    call("step_size", "step_backward", (*x.shape, len(bias)), tensors)
    return [dx_NI, dbias_MI]


@step_op.register_fake
def _(x, bias, counts):
    return torch.empty_like(x)


@step_backward_op.register_fake
def _(dy, x, bias, counts):
    return [torch.empty_like(x), torch.empty_like(bias)]


def _save(ctx, inputs, output) -> None:
    x, bias, ctx.counts = inputs
    ctx.save_for_backward(x, bias)


def _differentiate(ctx, dy):
    return (*step_backward_op(dy, *ctx.saved_tensors, ctx.counts), None)


step_op.register_autograd(_differentiate, setup_context=_save)
