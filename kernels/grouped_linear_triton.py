"""The grouped linear layer in Triton, for CUDA and ROCm: float32 or bfloat16, sums in float32.

One kernel serves the output and the gradient of the rows, which is the same product with the
weight's axes exchanged (strides, no copy); a program takes a tile of one group's rows. The weights'
gradient has a program a tile of a group's weight, which walks over that group's rows in order: no
atomics, and an absent group gets zeros. Letters: models/README.md; `I` inputs, `O` outputs.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import ends, find_group, on_device, tiles


@triton.jit
def rows_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, ends_ptr, M, I, O, w_m, w_o, w_i,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Writes a tile [BN, BO] of y = x w[m].T + bias[m]."""
    group, start, end = find_group(tl.program_id(1), ends_ptr, M, BN, BM)
    n = start + tl.arange(0, BN)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    i = tl.arange(0, BI)
    in_n, in_o = n < end, o < O
    x_at = x_ptr + n.to(tl.int64)[:, None] * I + i[None, :]
    w_at = w_ptr + group.to(tl.int64) * w_m + o.to(tl.int64)[None, :] * w_o + i[:, None] * w_i
    y = tl.zeros((BN, BO), tl.float32)
    for step in range(tl.cdiv(I, BI)):
        in_i = i < I - step * BI
        x = tl.load(x_at, mask=in_n[:, None] & in_i[None, :], other=0.0)
        w = tl.load(w_at, mask=in_i[:, None] & in_o[None, :], other=0.0)
        y = tl.dot(x, w, y, input_precision=PRECISION)
        x_at += BI
        w_at += BI * w_i
    if BIAS:
        y += tl.load(bias_ptr + group * O + o, mask=in_o, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + n.to(tl.int64)[:, None] * O + o[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=in_n[:, None] & in_o[None, :])


@triton.jit
def weight_kernel(
    dy_ptr, x_ptr, dw_ptr, ends_ptr, I, O,
    PRECISION: tl.constexpr, BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Writes a tile [BO, BI] of dw[m], the sum over the rows of m of dy x."""
    group = tl.program_id(2)
    start = tl.load(ends_ptr + group - 1, mask=group > 0, other=0)
    end = tl.load(ends_ptr + group)
    n = tl.arange(0, BN)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    in_o, in_i = o < O, i < I
    row = (start + n).to(tl.int64)
    dy_at = dy_ptr + row[:, None] * O + o[None, :]
    x_at = x_ptr + row[:, None] * I + i[None, :]
    dw = tl.zeros((BO, BI), tl.float32)
    for step in range(tl.cdiv(end - start, BN)):
        in_n = n < end - start - step * BN
        dy = tl.load(dy_at, mask=in_n[:, None] & in_o[None, :], other=0.0)
        x = tl.load(x_at, mask=in_n[:, None] & in_i[None, :], other=0.0)
        dw = tl.dot(tl.trans(dy), x, dw, input_precision=PRECISION)
        dy_at += BN * O
        x_at += BN * I
    dw_at = dw_ptr + (group.to(tl.int64) * O + o[:, None]) * I + i[None, :]
    tl.store(dw_at, dw.to(dw_ptr.dtype.element_ty), mask=in_o[:, None] & in_i[None, :])


def rows(x_ND: Tensor, w_MOD: Tensor, bias_MO: Tensor | None, counts: Sequence[int]) -> Tensor:
    """[N, O]; x contiguous, w with any strides."""
    (N, I), (M, O, _) = x_ND.shape, w_MOD.shape
    y_NO = x_ND.new_empty(N, O)
    sizes = blocks(x_ND.dtype, I, O, *w_MOD.stride())
    if N and O:
        grid = (triton.cdiv(O, sizes["BO"]), sum(tiles(counts, sizes["BN"])))
        inputs = (x_ND, w_MOD, x_ND if bias_MO is None else bias_MO, y_NO)
        with on_device(x_ND):
            rows_kernel[grid](
                *inputs, ends(tuple(counts), x_ND.device), M, I, O, *w_MOD.stride(),
                BIAS=bias_MO is not None, BM=triton.next_power_of_2(M), **sizes,
            )  # fmt: skip
    return y_NO


def weight(dy_NO: Tensor, x_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """The weights' gradient [M, O, I]; contiguous inputs."""
    (_, O), I, M = dy_NO.shape, x_ND.shape[1], len(counts)
    dw_MOI = x_ND.new_empty(M, O, I)
    sizes = weight_blocks(x_ND.dtype, I, O)
    grid = (triton.cdiv(I, sizes["BI"]), triton.cdiv(O, sizes["BO"]), M)
    if O and I:
        with on_device(x_ND):
            weight_kernel[grid](
                dy_NO, x_ND, dw_MOI, ends(tuple(counts), x_ND.device), I, O, **sizes
            )
    return dw_MOI


def blocks(dtype: torch.dtype, *sizes: int) -> dict[str, int | str]:
    """Sizes of a program's tile and how it runs, for widths and strides of such `sizes`.

    Registers and shared memory suffice on every chip that benchmarks/kernels_aot.py knows.
    """
    small = {"BN": 64, "BO": 64, "BI": 32, "num_warps": 4, "num_stages": 3}
    if dtype is torch.float32:
        exact = torch.get_float32_matmul_precision() == "highest" or torch.version.hip is not None
        return {**small, "PRECISION": "ieee", "BI": 16} if exact else {**small, "PRECISION": "tf32"}
    if any(size % 16 for size in sizes if size != 1):  # each element has its own address
        return {**small, "PRECISION": "ieee"}
    large = {"BN": 128, "BO": 128, "BI": 64, "num_warps": 8, "num_stages": 3}
    return {**large, "PRECISION": "ieee"}


def weight_blocks(dtype: torch.dtype, *sizes: int) -> dict[str, int | str]:
    """The same for the weights' gradient, whose sum is over rows and not over inputs."""
    found = blocks(dtype, *sizes)
    return {**found, "BN": found["BI"], "BI": found["BN"]}
