"""Cross-entropy of a linear head, in pieces: the logits of all rows are never held at once.

The forward pass keeps one number a row, the log-partition; the backward pass makes each piece of
logits again and turns it into its own gradient in place. That is one product more than holding
all logits, and still faster on a CPU: pieces stay in the cache, and no fresh memory is paged in.

N rows, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose

PIECE = 1 << 21
"""Logits in a piece: 8 MB of float32."""


def reference(
    x_ND: Tensor, w_VD: Tensor, bias_V: Tensor, target_N: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: each row's loss in nats and its log-partition, float32 [N]."""
    logits_NV = F.linear(x_ND, w_VD, bias_V.to(x_ND.dtype)).float()
    partition_N = logits_NV.logsumexp(-1)
    return partition_N - logits_NV.gather(1, target_N[:, None])[:, 0], partition_N


def linear_cross_entropy(
    x_ND: Tensor, w_VD: Tensor, bias_V: Tensor, target_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of `x @ w.T + bias` at int64 targets, and the log-partition, both float32 [N].

    Under autocast the products are taken in its type. Gradients flow from both results.
    """
    if choose("linear_cross_entropy", "pieces") == "reference":
        return reference(x_ND, w_VD, bias_V, target_N)
    if torch.is_autocast_enabled(x_ND.device.type):
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND, w_VD = x_ND.to(dtype), w_VD.to(dtype)
    return _Pieces.apply(x_ND, w_VD, bias_V, target_N)  # pyright: ignore[reportReturnType]


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, w_VD: Tensor, bias_V: Tensor, target_N: Tensor):
        partition_N = x_ND.new_empty(len(x_ND), dtype=torch.float32)
        picked_N = torch.empty_like(partition_N)
        for rows in _pieces(len(x_ND), len(w_VD)):
            logits_nV = F.linear(x_ND[rows], w_VD, bias_V.to(x_ND.dtype)).float()
            partition_N[rows] = logits_nV.logsumexp(-1)
            picked_N[rows] = logits_nV.gather(1, target_N[rows, None])[:, 0]
        ctx.save_for_backward(x_ND, w_VD, bias_V, target_N, partition_N)
        return partition_N - picked_N, partition_N.clone()

    @staticmethod
    def backward(ctx, dloss_N: Tensor, dpartition_N: Tensor):  # pyright: ignore
        x_ND, w_VD, bias_V, target_N, partition_N = ctx.saved_tensors
        dx_ND, dw_VD = torch.empty_like(x_ND), torch.zeros_like(w_VD, dtype=torch.float32)
        dbias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        weight_N = dloss_N + dpartition_N  # of the softmax; the target takes dloss alone
        for rows in _pieces(len(x_ND), len(w_VD)):
            d_nV = F.linear(x_ND[rows], w_VD, bias_V.to(x_ND.dtype)).float()
            d_nV.sub_(partition_N[rows, None]).exp_().mul_(weight_N[rows, None])
            d_nV.scatter_add_(1, target_N[rows, None], -dloss_N[rows, None])
            dbias_V += d_nV.sum(0) if ctx.needs_input_grad[2] else 0
            d_nV = d_nV.to(x_ND.dtype)
            dx_ND[rows] = d_nV @ w_VD
            dw_VD += d_nV.T @ x_ND[rows]
        return dx_ND, dw_VD.to(w_VD.dtype), dbias_V.to(bias_V.dtype), None


def _pieces(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, PIECE // vocabulary)
    return [slice(start, start + step) for start in range(0, rows, step)]
