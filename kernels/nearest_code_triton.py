"""The two nearest codes of each vector in Triton, for CUDA and ROCm; float32, contiguous tensors.

A program takes a tile of vectors and walks over all codes, so that scores never leave its registers
(N x K of them would be gigabytes). Products are exact float32, without tensor cores: the caller
trusts their rounding bound. Letters: as nearest_code.py.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import on_device

TILE = {"BN": 64, "BK": 64, "BD": 16, "num_warps": 4, "num_stages": 3}


@triton.jit
def nearest_kernel(
    x_ptr, codebook_ptr, half_ptr, code_ptr, gap_ptr, N, K, D,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes the code of the least score |c|^2 / 2 - x.c, and the distance to the second least."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    d = tl.arange(0, BD)
    in_n = n < N
    best = tl.full((BN,), float("inf"), tl.float32)
    second = tl.full((BN,), float("inf"), tl.float32)
    code = tl.zeros((BN,), tl.int32)
    for tile in range(tl.cdiv(K, BK)):
        k = tile * BK + tl.arange(0, BK)
        in_k = k < K
        product = tl.zeros((BN, BK), tl.float32)
        x_at = x_ptr + n[:, None] * D + d[None, :]
        codebook_at = codebook_ptr + k.to(tl.int64)[None, :] * D + d[:, None]
        for step in range(tl.cdiv(D, BD)):
            in_d = d < D - step * BD
            x = tl.load(x_at, mask=in_n[:, None] & in_d[None, :], other=0.0)
            c = tl.load(codebook_at, mask=in_d[:, None] & in_k[None, :], other=0.0)
            product = tl.dot(x, c, product, input_precision="ieee")
            x_at += BD
            codebook_at += BD
        half = tl.load(half_ptr + k, mask=in_k, other=float("inf"))
        score = half[None, :] - product
        low, at = tl.min(score, 1), tl.argmin(score, 1)
        others = tl.where(tl.arange(0, BK)[None, :] == at[:, None], float("inf"), score)
        second = tl.minimum(second, tl.minimum(tl.min(others, 1), tl.maximum(best, low)))
        code = tl.where(low < best, tile * BK + at, code)
        best = tl.minimum(best, low)
    tl.store(code_ptr + n, code.to(tl.int64), mask=in_n)
    tl.store(gap_ptr + n, second - best, mask=in_n)


def nearest(x_ND: Tensor, codebook_KD: Tensor, half_K: Tensor) -> tuple[Tensor, Tensor]:
    """The best code, int64 [N], and how much greater the next one's score is, [N]; K > 0."""
    (N, D), K = x_ND.shape, len(codebook_KD)
    code_N, gap_N = x_ND.new_empty(N, dtype=torch.int64), x_ND.new_empty(N)
    if N:
        with on_device(x_ND):
            nearest_kernel[(triton.cdiv(N, TILE["BN"]),)](
                x_ND, codebook_KD, half_K, code_N, gap_N, N, K, D, **TILE
            )
    return code_N, gap_N
