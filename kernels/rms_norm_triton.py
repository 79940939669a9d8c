"""RMSNorm with a gain for each modality in Triton, for CUDA and ROCm; computed in float32.

A program takes `ROWS` rows of one group, as many at a time as fit its registers. The gain's
gradient is written in parts, a program each, and summed by torch: no atomics. Letters:
models/README.md; `R` rows, `P` programs.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import ends, find_group, on_device, tiles

ROWS = 32
"""Rows of a program."""


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, ends_ptr, y_ptr, scale_ptr, M, D, eps,
    ROWS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Writes y and each row's scale, 1 over its root mean square."""
    group, start, end = find_group(tl.program_id(0), ends_ptr, M, ROWS, BM)
    d = tl.arange(0, BD)
    in_d = d < D
    w = tl.load(w_ptr + group * D + d, mask=in_d, other=0.0).to(tl.float32)
    for step in range(ROWS // BR):
        r = start + step * BR + tl.arange(0, BR)
        mask = (r < end)[:, None] & in_d[None, :]
        at = r.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
        y = x * scale[:, None] * w[None, :]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(scale_ptr + r, scale, mask=r < end)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, w_ptr, scale_ptr, ends_ptr, dx_ptr, dw_ptr, M, D,
    ROWS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Writes dx, and in parts dw [P, D]."""
    group, start, end = find_group(tl.program_id(0), ends_ptr, M, ROWS, BM)
    d = tl.arange(0, BD)
    in_d = d < D
    w = tl.load(w_ptr + group * D + d, mask=in_d, other=0.0).to(tl.float32)
    dw = tl.zeros((BD,), tl.float32)
    for step in range(ROWS // BR):
        r = start + step * BR + tl.arange(0, BR)
        mask = (r < end)[:, None] & in_d[None, :]
        at = r.to(tl.int64)[:, None] * D + d[None, :]
        scale = tl.load(scale_ptr + r, mask=r < end, other=0.0)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) * scale[:, None]
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dw += tl.sum(dy * x, 0)
        dy *= w[None, :]
        dx = (dy - x * (tl.sum(dy * x, 1) / D)[:, None]) * scale[:, None]
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * D + d, dw, mask=in_d)


def forward(x_RD: Tensor, w_MD: Tensor, counts: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """y and the rows' scales, float32 [R]; contiguous inputs."""
    y_RD, scale_R = torch.empty_like(x_RD), x_RD.new_empty(len(x_RD), dtype=torch.float32)
    M, D = w_MD.shape
    programs = sum(tiles(counts, ROWS))
    if programs:
        with on_device(x_RD):
            forward_kernel[(programs,)](
                x_RD, w_MD, ends(tuple(counts), x_RD.device), y_RD, scale_R, M, D, eps,
                BM=triton.next_power_of_2(M), **blocks(D),
            )  # fmt: skip
    return y_RD, scale_R


def backward(
    dy_RD: Tensor, x_RD: Tensor, w_MD: Tensor, scale_R: Tensor, counts: Sequence[int]
) -> list[Tensor]:
    """Gradients of x and of the gains; contiguous inputs."""
    parts = tiles(counts, ROWS)
    M, D = w_MD.shape
    dx_RD, dw_PD = torch.empty_like(x_RD), x_RD.new_empty(sum(parts), D, dtype=torch.float32)
    if sum(parts):
        with on_device(x_RD):
            backward_kernel[(sum(parts),)](
                dy_RD, x_RD, w_MD, scale_R, ends(tuple(counts), x_RD.device), dx_RD, dw_PD, M, D,
                BM=triton.next_power_of_2(M), **blocks(D),
            )  # fmt: skip
    return [dx_RD, torch.stack([dw_pD.sum(0) for dw_pD in dw_PD.split(parts)]).to(w_MD.dtype)]


def blocks(dim: int) -> dict[str, int]:
    """Sizes of a program's tile: 2048 elements, or one row, at 16 elements a thread or more."""
    BD = triton.next_power_of_2(dim)
    BR = min(ROWS, max(1, 2048 // BD))
    return {"ROWS": ROWS, "BR": BR, "BD": BD, "num_warps": min(16, max(4, BD // 512))}
