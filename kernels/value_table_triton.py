"""Gradients and Adam of a table's rows in Triton, for CUDA and ROCm; computed in float32.

A program takes one row that was read and walks over its places in the order of the reverse index,
`BP` at a time: no atomics, the same result at every run. The step makes the gradient again where it
is used, so the gradients of all rows are never in memory at once. Letters: as value_table.py.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import on_device


@triton.jit
def row_gradient(
    dy_ptr, weight_ptr, order_ptr, first_ptr, u, J, D, d, BP: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """The gradient of the row u, [BD]."""
    begin, end = tl.load(first_ptr + u), tl.load(first_ptr + u + 1)
    gradient = tl.zeros((BD,), tl.float32)
    for step in range(tl.cdiv(end - begin, BP)):
        p = begin + step * BP + tl.arange(0, BP)
        in_p = p < end
        place = tl.load(order_ptr + p, mask=in_p, other=0)
        weight = tl.load(weight_ptr + place, mask=in_p, other=0.0).to(tl.float32)
        mask = in_p[:, None] & (d < D)[None, :]
        dy = tl.load(dy_ptr + (place // J)[:, None] * D + d[None, :], mask=mask, other=0.0)
        gradient += tl.sum(weight[:, None] * dy.to(tl.float32), 0)
    return gradient


@triton.jit
def gradients_kernel(
    dy_ptr, weight_ptr, order_ptr, first_ptr, out_ptr, J, D,
    SQUARES: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes the row's gradient, or the sum of its squares."""
    u = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    gradient = row_gradient(dy_ptr, weight_ptr, order_ptr, first_ptr, u, J, D, d, BP, BD)
    if SQUARES:
        tl.store(out_ptr + u, tl.sum(gradient * gradient, 0))
    else:
        tl.store(out_ptr + u * D + d, gradient.to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def adam_kernel(
    dy_ptr, weight_ptr, order_ptr, first_ptr, row_ptr, kept_ptr, rate_ptr,
    values_ptr, mean_ptr, J, D, scale, left1,
    BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Moves one row and its mean; `left1` is 1 - beta1 (arXiv:1412.6980, algorithm 1)."""
    u = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    in_d = d < D
    at = tl.load(row_ptr + u) * D + d
    gradient = scale * row_gradient(dy_ptr, weight_ptr, order_ptr, first_ptr, u, J, D, d, BP, BD)
    mean = tl.load(mean_ptr + at, mask=in_d, other=0.0)
    mean += left1 * (gradient - mean)
    tl.store(mean_ptr + at, mean, mask=in_d)
    value = tl.load(values_ptr + at, mask=in_d, other=0.0).to(tl.float32)
    value = tl.load(kept_ptr + u) * value - tl.load(rate_ptr + u) * mean
    tl.store(values_ptr + at, value.to(values_ptr.dtype.element_ty), mask=in_d)


def row_gradients(parts: tuple[Tensor, ...], reads: int) -> Tensor:
    """[U, D] of (dy [N, D], weight [P], order [P], first [U + 1]); contiguous."""
    dy_ND, *_, first_U1 = parts
    return _gradients(parts, reads, dy_ND.new_empty(len(first_U1) - 1, dy_ND.shape[1]))


def row_squares(parts: tuple[Tensor, ...], reads: int) -> Tensor:
    """The sum of squares of each row's gradient, float32 [U]."""
    dy_ND, *_, first_U1 = parts
    return _gradients(parts, reads, dy_ND.new_empty(len(first_U1) - 1, dtype=torch.float32))


def adam_rows(
    parts: tuple[Tensor, ...],
    reads: int,
    by_row: tuple[Tensor, Tensor, Tensor],
    state: tuple[Tensor, Tensor],
    numbers: tuple[float, float],
) -> None:
    """Move values [R, D] and mean [R, D], the `state`, in place.

    `by_row` are the rows [U], by what each is multiplied first, and its rate; float32. The numbers
    are the gradients' scale and 1 - beta1.
    """
    D, row_U = parts[0].shape[1], by_row[0]
    if len(row_U) and D:
        with on_device(row_U):
            adam_kernel[(len(row_U),)](*parts, *by_row, *state, reads, D, *numbers, **blocks(D))


def blocks(dim: int) -> dict[str, int]:
    """Sizes of a program: 2048 elements of several places, or one place."""
    BD = triton.next_power_of_2(dim)
    return {"BP": max(1, min(16, 2048 // BD)), "BD": BD, "num_warps": min(16, max(4, BD // 512))}


def _gradients(parts: tuple[Tensor, ...], reads: int, out_U: Tensor) -> Tensor:
    D = parts[0].shape[1]
    if out_U.numel():
        with on_device(out_U):
            gradients_kernel[(len(out_U),)](
                *parts, out_U, reads, D, SQUARES=out_U.ndim == 1, **blocks(D)
            )
    return out_U
