"""Rows in another order, whose gradient comes back by a gather too.

`index_select` alone adds its gradient up row by row; where the index is a permutation, the inverse
gathers it, which is faster and the same at every run.
"""

import torch
from torch import Tensor


def permute(x_ND: Tensor, index_N: Tensor, back_N: Tensor) -> Tensor:
    """Row `index_N[n]` of x at n; [N, ...]. `back_N` is the inverse permutation, int64.

    >>> permute(torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])).tolist()
    [3, 1, 2]
    """
    return _Permute.apply(x_ND, index_N, back_N)


def permute_rows(x_BTD: Tensor, index_N: Tensor, back_N: Tensor) -> Tensor:
    """The same of the B * T rows of [B, T, ...]."""
    return permute(x_BTD.flatten(0, 1), index_N, back_N).view(x_BTD.shape)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(x_ND: Tensor, index_N: Tensor, back_N: Tensor) -> Tensor:
        return x_ND.index_select(0, index_N)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx, dx_ND: Tensor):
        index_N, back_N = ctx.saved_tensors
        return _Permute.apply(dx_ND, back_N, index_N), None, None
