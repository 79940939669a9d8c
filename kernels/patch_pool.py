"""Means or maxima of the vectors of each patch: what a model of patches reads of its bytes.

Special here: patches are segments of the rows, so the mean's gradient is a gather and the maximum's
goes to each patch's own rows; no index of rows is scattered with atomics, and on GPUs one kernel a
direction does it. A patch without rows is zeros. Letters: `N` rows, `P` patches, `D` width.
"""

from typing import Literal

import torch
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs

Reduce = Literal["mean", "max"]


def patch_pool(x_ND: Tensor, first_P1: Tensor, reduce: Reduce) -> Tensor:
    """[P, D]: over the rows `first[p]` up to `first[p + 1]` of each patch, their mean or maximum.

    `first` is int64, starts at 0, does not fall, and ends at N; that is the caller's promise, for
    which no device is asked. Rows that share a maximum share its gradient equally. Raises
    ValueError where the shapes or `reduce` are wrong.

    >>> patch_pool(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3, 3]), "mean").tolist()
    [[2.0], [5.0], [0.0]]
    """
    if x_ND.ndim != 2 or first_P1.ndim != 1 or not len(first_P1) or first_P1.dtype != torch.int64:
        shapes = f"x {tuple(x_ND.shape)}, first {first_P1.dtype} {tuple(first_P1.shape)}"
        raise ValueError(f"patch_pool takes x [N, D] and int64 first [P + 1]: {shapes}")
    if reduce not in ("mean", "max"):
        raise ValueError(f"reduce={reduce!r}: it can be 'mean' or 'max'")
    path = choose("patch_pool", _fastest(x_ND.device.type, x_ND.dtype))
    if path == "reference":
        return reference(x_ND, first_P1, reduce)
    return pool_op(x_ND.contiguous(), first_P1.contiguous(), reduce)


def reference(x_ND: Tensor, first_P1: Tensor, reduce: Reduce) -> Tensor:
    """The definition: rows added or compared at their patch."""
    length_P, D = first_P1.diff(), x_ND.shape[1]
    patch_N = torch.repeat_interleave(length_P, output_size=len(x_ND))
    if reduce == "mean":
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        zero_PD = x_ND.new_zeros(len(length_P), D, dtype=wide)
        sum_PD = zero_PD.index_add(0, patch_N, x_ND.to(wide))
        return (sum_PD / length_P.clamp(min=1)[:, None]).to(x_ND.dtype)
    # not from zeros, which torch would give a share of the gradient where the maximum is 0
    least_PD = x_ND.new_full((len(length_P), D), -torch.inf)
    most_PD = least_PD.scatter_reduce(0, patch_N[:, None].expand(-1, D), x_ND, "amax")
    return torch.where(length_P[:, None] > 0, most_PD, 0)


@constant
def _fastest(device: str, dtype: torch.dtype) -> str:
    return "triton" if triton_runs(device, dtype) else "reference"


@torch.library.custom_op("plait::patch_pool", mutates_args=())
def pool_op(x: Tensor, first: Tensor, reduce: str) -> Tensor:
    """[P, D]; contiguous inputs."""
    from plait.kernels import patch_pool_triton

    return patch_pool_triton.forward(x, first, reduce)


@torch.library.custom_op("plait::patch_pool_backward", mutates_args=())
def pool_backward_op(dy: Tensor, x: Tensor, y: Tensor, first: Tensor, reduce: str) -> Tensor:
    """The gradient of x."""
    from plait.kernels import patch_pool_triton

    return patch_pool_triton.backward(dy.contiguous(), x, y, first, reduce)


@pool_op.register_fake
def _(x, first, reduce):
    return x.new_empty(first.shape[0] - 1, x.shape[1])


@pool_backward_op.register_fake
def _(dy, x, y, first, reduce):
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    x, first, ctx.reduce = inputs
    ctx.save_for_backward(x, output, first)


def _differentiate(ctx, dy):
    return pool_backward_op(dy, *ctx.saved_tensors, ctx.reduce), None, None


pool_op.register_autograd(_differentiate, setup_context=_save)
