"""A linear layer with one weight a modality, over rows sorted by modality.

Special here: each modality's segment is one matrix product written in place into its part of the
output, so the whole runs at the rate of one dense product (facts: 0.96 to 1.2 of it), forward and
backward, and nothing is concatenated. On GPUs one kernel takes all segments; `_fastest` says which.
The counts are Python integers: no device is asked for them. An absent modality's weight gets a
gradient of exact zeros. Letters: models/README.md; `O` outputs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs


def grouped_linear(
    x_ND: Tensor, w_MOD: Tensor, counts: Sequence[int], bias_MO: Tensor | None = None
) -> Tensor:
    """Rows `counts[0]` by w[0], the next `counts[1]` by w[1], ...; [N, O].

    Raises ValueError where the counts do not fit the rows or the weights.

    >>> w_MOD = torch.tensor([[[1.0]], [[10.0]]])
    >>> grouped_linear(torch.ones(3, 1), w_MOD, (2, 1)).flatten().tolist()
    [1.0, 1.0, 10.0]
    """
    counts = tuple(counts)
    _check(x_ND, w_MOD, counts)
    if len(w_MOD) == 1:
        return F.linear(x_ND, w_MOD[0], None if bias_MO is None else bias_MO[0])
    if torch.is_autocast_enabled(x_ND.device.type):
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND, w_MOD = x_ND.to(dtype), w_MOD.to(dtype)
        bias_MO = None if bias_MO is None else bias_MO.to(dtype)
    dtype = x_ND.dtype if x_ND.dtype == w_MOD.dtype else None
    sizes = (*w_MOD.shape[1:], 0 if bias_MO is None else 1)
    path = choose("grouped_linear", _fastest(x_ND.device.type, dtype, sizes))
    if path == "reference":
        return reference(x_ND, w_MOD, counts, bias_MO)
    if path == "products in place" and not torch.compiler.is_compiling():
        return _GroupedLinear.apply(x_ND, w_MOD, counts, bias_MO)
    return linear_op(x_ND.contiguous(), w_MOD, bias_MO, list(counts), path)


@constant
def _fastest(device: str, dtype: torch.dtype | None, sizes: tuple[int, ...]) -> str:
    """Products in place on CPUs, and where exact float32 is wanted, which is no tensor cores' work.

    torch's `grouped_mm` is one kernel for bfloat16 from compute capability 9.0 on: without bias,
    and of rows of whole 16 bytes. Elsewhere it asks the device for the ends, and Triton's runs.
    `sizes` are outputs, inputs and 0 or 1 for a bias; the dtype is None where x and w differ.
    """
    if dtype is None or not triton_runs(device, dtype):
        return "products in place"
    if dtype is torch.float32:
        exact = torch.get_float32_matmul_precision() == "highest"
        return "products in place" if exact else "triton"
    nvidia = torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)
    whole = all(size % 8 == 0 for size in sizes[:2])
    return "grouped_mm" if nvidia and whole and not sizes[2] else "triton"


def reference(
    x_ND: Tensor, w_MOD: Tensor, counts: Sequence[int], bias_MO: Tensor | None = None
) -> Tensor:
    """The definition: a linear layer a segment."""
    biases = [None] * len(w_MOD) if bias_MO is None else list(bias_MO)
    segments = x_ND.split(list(counts))
    return torch.cat([F.linear(*part) for part in zip(segments, w_MOD, biases, strict=True)])


class _GroupedLinear(torch.autograd.Function):
    """The op below on a CPU, at half the cost of a call."""

    @staticmethod
    def forward(ctx, x_ND, w_MOD, counts, bias_MO):
        ctx.save_for_backward(x_ND, w_MOD)
        ctx.counts, ctx.has_bias = counts, bias_MO is not None
        return _products(x_ND, w_MOD, bias_MO, counts)

    @staticmethod
    def backward(ctx, *dy):
        (dy_NO,) = dy
        x_ND, w_MOD = ctx.saved_tensors
        dx_ND = dw_MOD = dbias_MO = None
        if ctx.needs_input_grad[0]:
            dx_ND = _products(dy_NO, w_MOD.mT, None, ctx.counts)
        if ctx.needs_input_grad[1]:
            dw_MOD = _weight_products(dy_NO, x_ND, ctx.counts)
        if ctx.has_bias and ctx.needs_input_grad[3]:
            dbias_MO = torch.stack([part_NO.sum(0) for part_NO in dy_NO.split(ctx.counts)])
        return dx_ND, dw_MOD, None, dbias_MO


def _products(x_ND: Tensor, w_MOD: Tensor, bias_MO: Tensor | None, counts: Sequence[int]) -> Tensor:
    y_NO = x_ND.new_empty(len(x_ND), w_MOD.shape[1])
    with torch.autocast(x_ND.device.type, enabled=False):
        for m, rows in _segments(counts):
            if bias_MO is None:
                torch.mm(x_ND[rows], w_MOD[m].T, out=y_NO[rows])
            else:
                torch.addmm(bias_MO[m], x_ND[rows], w_MOD[m].T, out=y_NO[rows])
    return y_NO


def _weight_products(dy_NO: Tensor, x_ND: Tensor, counts: Sequence[int]) -> Tensor:
    dw_MOD = x_ND.new_empty(len(counts), dy_NO.shape[1], x_ND.shape[1])
    for m, rows in _segments(counts):
        torch.mm(dy_NO[rows].T, x_ND[rows], out=dw_MOD[m])
    for m, count in enumerate(counts):
        if not count:
            dw_MOD[m].zero_()
    return dw_MOD


@torch.library.custom_op("plait::grouped_linear", mutates_args=())
def linear_op(x: Tensor, w: Tensor, bias: Tensor | None, counts: list[int], path: str) -> Tensor:
    """y [N, O]; x contiguous, w [M, O, I] with any strides."""
    if path == "products in place":
        return _products(x, w, bias, counts)
    from plait.kernels import grouped_linear_triton, groups_triton

    if path == "triton" or not len(x):
        return grouped_linear_triton.rows(x, w, bias, counts)
    return F.grouped_mm(x, w.mT, offs=groups_triton.ends(tuple(counts), x.device))


@torch.library.custom_op("plait::grouped_linear_weight", mutates_args=())
def weight_op(dy: Tensor, x: Tensor, counts: list[int], path: str) -> Tensor:
    """The weights' gradient [M, O, I]; contiguous inputs."""
    if path == "products in place":
        return _weight_products(dy, x, counts)
    from plait.kernels import grouped_linear_triton

    return grouped_linear_triton.weight(dy, x, counts)


@linear_op.register_fake
def _(x, w, bias, counts, path):
    return x.new_empty(x.shape[0], w.shape[1])


@weight_op.register_fake
def _(dy, x, counts, path):
    return x.new_empty(len(counts), dy.shape[1], x.shape[1])


def _save(ctx, inputs, output) -> None:
    x, w, bias, ctx.counts, ctx.path = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, w)


def _differentiate(ctx, dy_NO):
    x_ND, w_MOD = ctx.saved_tensors
    dy_NO, dx_ND, dw_MOD, dbias_MO = dy_NO.contiguous(), None, None, None
    if ctx.needs_input_grad[0]:
        dx_ND = linear_op(dy_NO, w_MOD.mT, None, ctx.counts, ctx.path)
    if ctx.needs_input_grad[1]:
        dw_MOD = weight_op(dy_NO, x_ND, ctx.counts, ctx.path)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        dbias_MO = torch.stack([part_NO.sum(0) for part_NO in dy_NO.split(ctx.counts)])
    return dx_ND, dw_MOD, dbias_MO, None, None


linear_op.register_autograd(_differentiate, setup_context=_save)


def _segments(counts: Sequence[int]) -> list[tuple[int, slice]]:
    """(modality, its rows) of those that have rows."""
    segments, start = [], 0
    for m, count in enumerate(counts):
        if count:
            segments.append((m, slice(start, start + count)))
        start += count
    return segments


def _check(x_ND: Tensor, w_MOD: Tensor, counts: tuple[int, ...]) -> None:
    """In a graph, where counts may come from the data, their sum is checked when it runs."""
    if torch.compiler.is_compiling() and len(counts) == len(w_MOD):
        torch._check(sum(counts) == len(x_ND))
    elif len(counts) != len(w_MOD) or sum(counts) != len(x_ND) or min(counts, default=0) < 0:
        raise ValueError(f"counts {counts} for {len(x_ND)} rows and {len(w_MOD)} modalities")
