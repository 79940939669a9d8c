"""Weighted sums of a few rows of a large table: what a memory layer reads.

Special here: the rows are summed as they are read and never gathered into a tensor of their own (17
times faster than gather and sum at a table of 1 GiB), and the table's gradient is summed row by row
in a fixed order. Letters: `R` rows of the table, `J` rows read for each position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose


def weighted_bag(
    values_RD: Tensor, index_NJ: Tensor, weight_NJ: Tensor, *, sparse_grad: bool = False
) -> Tensor:
    """y[n] = sum over j of weight[n, j] values[index[n, j]]; [N, D].

    With `sparse_grad` the table's gradient is a sparse tensor of the rows that were read, each once
    and rising: the only form that a table of millions of rows can afford. (Autograd forgets that
    it is coalesced; `coalesce()` changes no value.)
    ValueError where shapes disagree.

    >>> values_RD = torch.tensor([[1.0], [10.0], [100.0]])
    >>> weighted_bag(values_RD, torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.5]]))
    tensor([[51.]])
    """
    if index_NJ.shape != weight_NJ.shape or index_NJ.ndim != 2 or values_RD.ndim != 2:
        shapes = [tuple(x.shape) for x in (values_RD, index_NJ, weight_NJ)]
        raise ValueError(f"values [R, D], index [N, J] and weight [N, J] are {shapes}")
    if choose("weighted_bag", "embedding_bag") == "reference":
        return reference(values_RD, index_NJ, weight_NJ)
    return _WeightedBag.apply(values_RD, index_NJ, weight_NJ, sparse_grad)


def reference(values_RD: Tensor, index_NJ: Tensor, weight_NJ: Tensor) -> Tensor:
    """The definition: gather and sum."""
    return (values_RD[index_NJ] * weight_NJ[..., None]).sum(1)


class _WeightedBag(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values_RD, index_NJ, weight_NJ, sparse_grad):
        ctx.save_for_backward(values_RD, index_NJ, weight_NJ)
        ctx.sparse_grad = sparse_grad
        weight_NJ = weight_NJ.to(values_RD.dtype)
        return F.embedding_bag(index_NJ, values_RD, per_sample_weights=weight_NJ, mode="sum")

    @staticmethod
    def backward(ctx, *dy):
        (dy_ND,) = dy
        values_RD, index_NJ, weight_NJ = ctx.saved_tensors
        dvalues_RD = dweight_NJ = None
        if ctx.needs_input_grad[0]:
            dvalues_RD = _table_gradient(values_RD, index_NJ, weight_NJ, dy_ND, ctx.sparse_grad)
        if ctx.needs_input_grad[2]:
            dweight_NJ = _dots(values_RD, index_NJ, dy_ND).to(weight_NJ.dtype)
        return dvalues_RD, None, dweight_NJ, None


def _table_gradient(
    values_RD: Tensor, index_NJ: Tensor, weight_NJ: Tensor, dy_ND: Tensor, sparse: bool
) -> Tensor:
    """Rows that were read, each summed in the order of the positions: a bag of dy by row."""
    slot_P, order_P = index_NJ.flatten().sort(stable=True)
    row_U, count_U = slot_P.unique_consecutive(return_counts=True)
    dvalues_UD = F.embedding_bag(
        order_P // index_NJ.shape[1],
        dy_ND,
        count_U.cumsum(0) - count_U,
        per_sample_weights=weight_NJ.flatten()[order_P].to(dy_ND.dtype),
        mode="sum",
    )
    if sparse:
        shape = values_RD.shape
        return torch.sparse_coo_tensor(
            row_U[None], dvalues_UD, shape, is_coalesced=True, check_invariants=False
        )
    return torch.zeros_like(values_RD).index_copy_(0, row_U, dvalues_UD)


def _dots(values_RD: Tensor, index_NJ: Tensor, dy_ND: Tensor, chunk: int = 256) -> Tensor:
    """values[index[n, j]] . dy[n], a few positions at a time so that the rows stay in cache."""
    parts = [
        torch.bmm(F.embedding(index, values_RD), dy[:, :, None]).squeeze(-1)
        for index, dy in zip(index_NJ.split(chunk), dy_ND.split(chunk), strict=True)
    ]
    return torch.cat(parts)
