"""The gate of a SwiGLU feed-forward: silu(gate) * up, of both side by side as a product makes them.

Special here: on CPUs one C pass, and one for the gradient, which is written where the product's
backward reads it; torch takes three passes, and seven with a concatenation backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant
from plait.kernels.compile_c import call, library


def gated_silu(x_NG: Tensor) -> Tensor:
    """silu(gate) * up, [N, F], of x [N, 2 F]: gate, then up.

    >>> gated_silu(torch.tensor([[0.0, 100.0, 5.0, 2.0]])).tolist()
    [[0.0, 200.0]]
    """
    if choose("gated_silu", _fastest(x_NG.device.type, x_NG.dtype)) == "reference":
        return reference(x_NG)
    return gated_op(x_NG.contiguous())


def reference(x_NG: Tensor) -> Tensor:
    """The definition."""
    gate_NF, up_NF = x_NG.chunk(2, dim=-1)
    return F.silu(gate_NF) * up_NF


@constant
def _fastest(device: str, dtype: torch.dtype) -> str:
    ready = device == "cpu" and dtype is torch.float32 and library("gated_silu") is not None
    return "c" if ready else "reference"


@torch.library.custom_op("plait::gated_silu", mutates_args=())
def gated_op(x: Tensor) -> Tensor:
    """y [N, F]; x contiguous float32 on a CPU."""
    y_NF = x.new_empty(len(x), x.shape[1] // 2)
    call("gated_silu", "gated_forward", y_NF.shape, (x, y_NF))
    return y_NF


@torch.library.custom_op("plait::gated_silu_backward", mutates_args=())
def backward_op(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of x."""
    dx_NG = torch.empty_like(x)
    call("gated_silu", "gated_backward", dy.shape, (dy.contiguous(), x, dx_NG))
    return dx_NG


@gated_op.register_fake
def _(x):
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@backward_op.register_fake
def _(dy, x):
    return torch.empty_like(x)


gated_op.register_autograd(
    lambda ctx, dy: backward_op(dy, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
