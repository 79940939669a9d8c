"""Means and maxima of patches in Triton, for CUDA and ROCm; sums in float32.

A program takes one patch and a block of channels, and walks over the patch's rows, `BN` at a time;
backward it walks over them again, first to count who shares the maximum. No atomics. Letters: as
patch_pool.py.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import on_device

TILE = {"BN": 8, "BD": 256}


@triton.jit
def forward_kernel(
    x_ptr, first_ptr, y_ptr, D, MEAN: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Writes a block of a patch's mean or maximum; NaN stays NaN."""
    p = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(first_ptr + p), tl.load(first_ptr + p + 1)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    none = 0.0 if MEAN else -float("inf")
    y = tl.full((BD,), none, tl.float32)
    lost = tl.zeros((BD,), tl.int32)
    for step in range(tl.cdiv(end - begin, BN)):
        n = begin + step * BN + tl.arange(0, BN)
        mask = (n < end)[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + n[:, None] * D + d[None, :], mask=mask, other=none).to(tl.float32)
        if MEAN:
            y += tl.sum(x, 0)
        else:
            lost += tl.sum((x != x).to(tl.int32), 0)
            y = tl.maximum(y, tl.max(x, 0))
    if MEAN:
        y /= tl.maximum(end - begin, 1).to(tl.float32)
    else:
        y = tl.where(lost > 0, float("nan"), tl.where(end > begin, y, 0.0))
    tl.store(y_ptr + p * D + d, y.to(y_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, y_ptr, first_ptr, dx_ptr, D,
    MEAN: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes a block of the gradients of a patch's rows."""
    p = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(first_ptr + p), tl.load(first_ptr + p + 1)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    in_d = d < D
    dy = tl.load(dy_ptr + p * D + d, mask=in_d, other=0.0).to(tl.float32)
    steps = tl.cdiv(end - begin, BN)
    if MEAN:
        dy /= tl.maximum(end - begin, 1).to(tl.float32)
    else:
        y = tl.load(y_ptr + p * D + d, mask=in_d, other=0.0).to(tl.float32)
        sharing = tl.zeros((BD,), tl.int32)
        for step in range(steps):
            n = begin + step * BN + tl.arange(0, BN)
            mask = (n < end)[:, None] & in_d[None, :]
            x = tl.load(x_ptr + n[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            sharing += tl.sum((mask & (x == y[None, :])).to(tl.int32), 0)
        dy /= tl.maximum(sharing, 1).to(tl.float32)
    for step in range(steps):
        n = begin + step * BN + tl.arange(0, BN)
        mask = (n < end)[:, None] & in_d[None, :]
        at = n[:, None] * D + d[None, :]
        dx = tl.zeros((BN, BD), tl.float32) + dy[None, :]
        if not MEAN:
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            dx = tl.where(x == y[None, :], dx, 0.0)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def forward(x_ND: Tensor, first_P1: Tensor, reduce: str) -> Tensor:
    """[P, D]; contiguous inputs."""
    P, D = len(first_P1) - 1, x_ND.shape[1]
    y_PD = x_ND.new_empty(P, D)
    if y_PD.numel():
        with on_device(x_ND):
            forward_kernel[_grid(P, D)](x_ND, first_P1, y_PD, D, MEAN=reduce == "mean", **TILE)
    return y_PD


def backward(dy_PD: Tensor, x_ND: Tensor, y_PD: Tensor, first_P1: Tensor, reduce: str) -> Tensor:
    """The gradient of x; contiguous inputs."""
    dx_ND = torch.empty_like(x_ND)
    if dx_ND.numel():
        with on_device(x_ND):
            backward_kernel[_grid(*dy_PD.shape)](
                dy_PD, x_ND, y_PD, first_P1, dx_ND, x_ND.shape[1], MEAN=reduce == "mean", **TILE
            )
    return dx_ND


def _grid(patches: int, dim: int) -> tuple[int, int]:
    return patches, triton.cdiv(dim, TILE["BD"])
