"""Weighted sums of a few rows of a large table: what a memory layer reads.

Special here: the rows are summed as they are read and never gathered into a tensor of their own (17
times faster than gather and sum at a table of 1 GiB), and the table's gradient is summed row by row
in a fixed order. Letters: `R` rows of the table, `J` rows read for each position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose
from plait.kernels.compile_c import call, library

CHUNK = 256
"""Positions whose rows are gathered at once where there is no compiler."""


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
        values_RD, index_NJ, weight_NJ = ctx.saved_tensors
        dvalues_RD = dweight_NJ = None
        if ctx.needs_input_grad[0]:
            row_U, dvalues_UD = rows_op(dy[0], index_NJ, weight_NJ.to(dy[0].dtype))
            dvalues_RD = _table_gradient(values_RD, row_U, dvalues_UD, ctx.sparse_grad)
        if ctx.needs_input_grad[2]:
            dweight_NJ = dots_op(values_RD, index_NJ, dy[0]).to(weight_NJ.dtype)
        return dvalues_RD, None, dweight_NJ, None


def _table_gradient(values_RD: Tensor, row_U: Tensor, dvalues_UD: Tensor, sparse: bool) -> Tensor:
    if not sparse:
        return torch.zeros_like(values_RD).index_copy_(0, row_U, dvalues_UD)
    return torch.sparse_coo_tensor(
        row_U[None], dvalues_UD, values_RD.shape, is_coalesced=True, check_invariants=False
    )


@torch.library.custom_op("plait::weighted_bag_rows", mutates_args=())
def rows_op(dy: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that were read, each once and rising, and their gradients, summed in reading order."""
    slot_P, order_P = index.flatten().sort(stable=True)
    row_U, count_U = slot_P.unique_consecutive(return_counts=True)
    J, weight_P = index.shape[1], weight.flatten()
    if _compiled(dy, weight):
        first_U1 = torch.cat([count_U.new_zeros(1), count_U.cumsum(0)])
        dvalues_UD = dy.new_empty(len(row_U), dy.shape[1])
        inputs = (dy.contiguous(), weight_P, order_P, first_U1)
        call("value_table", "bag_rows", (len(row_U), J, dy.shape[1]), (*inputs, dvalues_UD))
        return row_U, dvalues_UD
    first_U, weight_P = count_U.cumsum(0) - count_U, weight_P[order_P]
    return row_U, F.embedding_bag(
        order_P // J, dy, first_U, per_sample_weights=weight_P, mode="sum"
    )


@rows_op.register_fake
def _(dy, index, weight):
    rows = torch.library.get_ctx().new_dynamic_size()
    return index.new_empty(rows), dy.new_empty(rows, dy.shape[1])


@torch.library.custom_op("plait::weighted_bag_dots", mutates_args=())
def dots_op(values: Tensor, index: Tensor, dy: Tensor) -> Tensor:
    """values[index[n, j]] . dy[n]; [N, J]."""
    if _compiled(values, dy):
        out_NJ = dy.new_empty(index.shape)
        inputs = (dy.contiguous(), values.contiguous(), index.contiguous())
        call("value_table", "bag_dots", (*index.shape, dy.shape[1]), (*inputs, out_NJ))
        return out_NJ
    parts = [
        torch.bmm(F.embedding(index, values), dy[:, :, None]).squeeze(-1)
        for index, dy in zip(index.split(CHUNK), dy.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)


@dots_op.register_fake
def _(values, index, dy):
    return dy.new_empty(index.shape)


def _compiled(*tensors: Tensor) -> bool:
    """Whether value_table.c serves: float32 on a CPU."""
    plain = all(x.device.type == "cpu" and x.dtype is torch.float32 for x in tensors)
    return plain and library("value_table") is not None
