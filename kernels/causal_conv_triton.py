"""The causal convolution with document resets in Triton, for CUDA and ROCm; sums in float32.

A program takes a tile of positions and channels. Taps that would reach another document are not
read. The gradients of the taps and of the bias are written in parts, a tile each, and summed by
torch: no atomics. Letters: as causal_conv.py; `G` tiles of positions.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import on_device

TILE = {"BT": 32, "BI": 128, "num_warps": 8}


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, bias_ptr, document_ptr, y_ptr, T, I,
    K: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Writes a tile of y."""
    first = tl.program_id(2).to(tl.int64) * T
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    in_t, in_i = t < T, i < I
    document = tl.load(document_ptr + first + t, mask=in_t, other=0)
    y = tl.zeros((BT, BI), tl.float32)
    y += tl.load(bias_ptr + i, mask=in_i, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(K):
        here = in_t & (t >= j)
        there = tl.load(document_ptr + first + t - j, mask=here, other=0)
        mask = (here & (there == document))[:, None] & in_i[None, :]
        x = tl.load(x_ptr + (first + t - j)[:, None] * I + i[None, :], mask=mask, other=0.0)
        w = tl.load(w_ptr + (K - 1 - j) * I + i, mask=in_i, other=0.0).to(tl.float32)
        y += x.to(tl.float32) * w[None, :]
    y_at = y_ptr + (first + t)[:, None] * I + i[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=in_t[:, None] & in_i[None, :])


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, w_ptr, document_ptr, dx_ptr, dw_ptr, dbias_ptr, T, I,
    K: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Writes a tile of dx, and in parts dw [G, K, I] and dbias [G, I]."""
    first = tl.program_id(2).to(tl.int64) * T
    part = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    in_t, in_i = t < T, i < I
    document = tl.load(document_ptr + first + t, mask=in_t, other=0)
    at = (first + t)[:, None] * I + i[None, :]
    x = tl.load(x_ptr + at, mask=in_t[:, None] & in_i[None, :], other=0.0).to(tl.float32)
    dx = tl.zeros((BT, BI), tl.float32)
    for j in tl.static_range(K):
        here = t < T - j
        there = tl.load(document_ptr + first + t + j, mask=here, other=0)
        mask = (here & (there == document))[:, None] & in_i[None, :]
        dy = tl.load(dy_ptr + at + j * I, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + (K - 1 - j) * I + i, mask=in_i, other=0.0).to(tl.float32)
        dx += dy * w[None, :]
        dw = tl.sum(tl.where(mask, dy * x, 0.0), 0)
        tl.store(dw_ptr + (part * K + K - 1 - j) * I + i, dw, mask=in_i)
        if j == 0:
            tl.store(dbias_ptr + part * I + i, tl.sum(dy, 0), mask=in_i)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=in_t[:, None] & in_i[None, :])


def forward(x_BTI: Tensor, w_KI: Tensor, bias_I: Tensor, document_BT: Tensor) -> Tensor:
    """y [B, T, I]; contiguous inputs, int32 documents."""
    B, T, I = x_BTI.shape
    y_BTI = torch.empty_like(x_BTI)
    if x_BTI.numel():
        with on_device(x_BTI):
            forward_kernel[_grid(B, T, I)](
                x_BTI, w_KI, bias_I, document_BT, y_BTI, T, I, K=len(w_KI), **TILE
            )
    return y_BTI


def backward(dy_BTI: Tensor, x_BTI: Tensor, w_KI: Tensor, document_BT: Tensor) -> list[Tensor]:
    """Gradients of x, w [K, I] and bias."""
    (B, T, I), K = x_BTI.shape, len(w_KI)
    parts = B * triton.cdiv(T, TILE["BT"])
    dx_BTI = torch.empty_like(x_BTI)
    dw_GKI = x_BTI.new_empty(parts, K, I, dtype=torch.float32)
    dbias_GI = x_BTI.new_empty(parts, I, dtype=torch.float32)
    if x_BTI.numel():
        with on_device(x_BTI):
            backward_kernel[_grid(B, T, I)](
                dy_BTI, x_BTI, w_KI, document_BT, dx_BTI, dw_GKI, dbias_GI, T, I, K=K, **TILE
            )
    return [dx_BTI, dw_GKI.sum(0).to(w_KI.dtype), dbias_GI.sum(0).to(w_KI.dtype)]


def _grid(B: int, T: int, I: int) -> tuple[int, int, int]:
    return triton.cdiv(I, TILE["BI"]), triton.cdiv(T, TILE["BT"]), B
