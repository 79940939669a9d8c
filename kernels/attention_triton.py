"""Attention within documents in Triton, for CUDA and ROCm: float32 or bfloat16, sums in float32.

As in FlashAttention-2 (arXiv:2307.08691, algorithms 1 and 2): scores live in registers alone, and
the backward makes them again from the kept log-sum-exp. A program takes a head and some rows of a
tile of one document, so that what another document holds is never read. Rows are found through an
index, in whatever order they stand: nothing is moved, but head sizes that are no multiple of 16 are
padded. The gradient of the queries has a kernel of its own, so nothing is added to atomically.
Products of float32 are three of tf32 on NVIDIA's tensor cores (22 of 24 bits), or one where torch's
float32 matmul precision is not "highest". Letters: as attention.py; `S` are keys, `BQ`, `BS` and
`BK` the queries, keys and head size of a program's tile.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.attention import TILE
from plait.kernels.groups_triton import on_device

LOG2E = 1.4426950408889634
EXACT = {
    "forward": ((32, 32), (16, 16)),
    "queries": ((32, 32), (16, 16)),
    "keys": ((32, 16), (16, 16)),
}
TILES = {
    "bf16": {
        "forward": ((64, 64), (64, 32)),
        "queries": ((64, 32), (64, 32)),
        "keys": ((64, 32), (64, 16)),
    },
    "tf32": {
        "forward": ((64, 32), (32, 16)),
        "queries": ((64, 32), (32, 16)),
        "keys": ((32, 32), (32, 16)),
    },
    "tf32x3": EXACT,
    "ieee": EXACT,
}
"""A program's own rows and those of a step: for heads of up to 64, and of more."""


@triton.jit
def find_part(tile_ptr, H, TILE: tl.constexpr, ROWS: tl.constexpr, MIRROR: tl.constexpr):
    """(head, start of the document, first row of the program, end of the document).

    Tiles with the most keys come first; mirrored, the tiles with the most queries.
    """
    part = tl.program_id(0) // H
    tile = tile_ptr + 3 * (part // (TILE // ROWS))
    start, end, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if MIRROR:
        first = 2 * start + (end - start - 1) // TILE * TILE - first
    return (tl.program_id(0) % H).to(tl.int64), start, first + part % (TILE // ROWS) * ROWS, end


@triton.jit
def rows_of(row_ptr, n, end, SORTED: tl.constexpr):
    """The rows at which the flat positions n stand; any row from `end` on."""
    if SORTED:
        return tl.load(row_ptr + n, mask=n < end, other=0)
    return n.to(tl.int64)


@triton.jit
def load_rows(x_ptr, row, inside, stride, K: tl.constexpr, BK: tl.constexpr):
    """[rows, BK], zero outside."""
    k = tl.arange(0, BK)
    mask = inside[:, None] & (k < K)[None, :]
    return tl.load(x_ptr + row[:, None] * stride + k[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x_ptr, x, row, inside, stride, K: tl.constexpr, BK: tl.constexpr):
    """Write what lies inside."""
    k = tl.arange(0, BK)
    mask = inside[:, None] & (k < K)[None, :]
    at = x_ptr + row[:, None] * stride + k[None, :]
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, tile_ptr, row_ptr,
    N, H, scale, q_n, q_h, k_n, k_h, v_n, v_h,
    TILE: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    SORTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes outputs, and the log-sum-exp [H, N] of scores in units of log2."""
    head, start, first, end = find_part(tile_ptr, H, TILE, BQ, False)
    if first >= end:
        return
    n = first + tl.arange(0, BQ)
    row = rows_of(row_ptr, n, end, SORTED)
    q = load_rows(q_ptr + head * q_h, row, n < end, q_n, K, BK)
    top = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    o = tl.zeros((BQ, BK), tl.float32)
    for diagonal in tl.static_range(2):
        low = first if diagonal else start
        high = tl.minimum(first + BQ, end) if diagonal else first
        for block in tl.range(low, high, BS):
            s = block + tl.arange(0, BS)
            at = rows_of(row_ptr, s, end, SORTED)
            k = load_rows(k_ptr + head * k_h, at, s < end, k_n, K, BK)
            v = load_rows(v_ptr + head * v_h, at, s < end, v_n, K, BK)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            if diagonal:
                score = tl.where(s[None, :] <= n[:, None], score, float("-inf"))
            new = tl.maximum(top, tl.max(score, 1))
            shrink = tl.exp2(top - new)
            share = tl.exp2(score - new[:, None])
            total = total * shrink + tl.sum(share, 1)
            o = tl.dot(share.to(v.dtype), v, o * shrink[:, None], input_precision=PRECISION)
            top = new
    store_rows(o_ptr + head * K, o / total[:, None], row, n < end, H * K, K, BK)
    tl.store(lse_ptr + head * N + n, top + tl.log2(total), mask=n < end)


@triton.jit
def queries_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, dq_ptr, delta_ptr, tile_ptr, row_ptr,
    N, H, scale, q_n, q_h, k_n, k_h, v_n, v_h,
    TILE: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    SORTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the queries' gradients, and delta [H, N], the sums of do o."""
    head, start, first, end = find_part(tile_ptr, H, TILE, BQ, False)
    if first >= end:
        return
    n = first + tl.arange(0, BQ)
    row = rows_of(row_ptr, n, end, SORTED)
    q = load_rows(q_ptr + head * q_h, row, n < end, q_n, K, BK)
    do = load_rows(do_ptr + head * K, row, n < end, H * K, K, BK)
    o = load_rows(o_ptr + head * K, row, n < end, H * K, K, BK)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta_ptr + head * N + n, delta, mask=n < end)
    lse = tl.load(lse_ptr + head * N + n, mask=n < end, other=float("inf"))
    dq = tl.zeros((BQ, BK), tl.float32)
    for diagonal in tl.static_range(2):
        low = first if diagonal else start
        high = tl.minimum(first + BQ, end) if diagonal else first
        for block in tl.range(low, high, BS):
            s = block + tl.arange(0, BS)
            at = rows_of(row_ptr, s, end, SORTED)
            k = load_rows(k_ptr + head * k_h, at, s < end, k_n, K, BK)
            v = load_rows(v_ptr + head * v_h, at, s < end, v_n, K, BK)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            share = tl.exp2(score - lse[:, None])
            if diagonal:
                share = tl.where(s[None, :] <= n[:, None], share, 0.0)
            dshare = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            dscore = (share * (dshare - delta[:, None])).to(k.dtype)
            dq = tl.dot(dscore, k, dq, input_precision=PRECISION)
    # scores are in units of log2
    dq *= scale * 0.6931471805599453
    store_rows(dq_ptr + head * K, dq, row, n < end, H * K, K, BK)


@triton.jit
def keys_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, tile_ptr, row_ptr,
    N, H, scale, q_n, q_h, k_n, k_h, v_n, v_h,
    TILE: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    SORTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of the keys and values of a document's tile, the last tile first."""
    head, _start, first, end = find_part(tile_ptr, H, TILE, BS, True)
    if first >= end:
        return
    s = first + tl.arange(0, BS)
    row = rows_of(row_ptr, s, end, SORTED)
    k = load_rows(k_ptr + head * k_h, row, s < end, k_n, K, BK)
    v = load_rows(v_ptr + head * v_h, row, s < end, v_n, K, BK)
    dk = tl.zeros((BS, BK), tl.float32)
    dv = tl.zeros((BS, BK), tl.float32)
    for diagonal in tl.static_range(1, -1, -1):
        low = first if diagonal else first + BS
        high = tl.minimum(first + BS, end) if diagonal else end
        for block in tl.range(low, high, BQ):
            n = block + tl.arange(0, BQ)
            at = rows_of(row_ptr, n, end, SORTED)
            q = load_rows(q_ptr + head * q_h, at, n < end, q_n, K, BK)
            do = load_rows(do_ptr + head * K, at, n < end, H * K, K, BK)
            lse = tl.load(lse_ptr + head * N + n, mask=n < end, other=float("inf"))
            delta = tl.load(delta_ptr + head * N + n, mask=n < end, other=0.0)
            score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
            share = tl.exp2(score - lse[None, :])
            if diagonal:
                share = tl.where(s[:, None] <= n[None, :], share, 0.0)
            dv = tl.dot(share.to(do.dtype), do, dv, input_precision=PRECISION)
            dshare = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            dscore = (share * (dshare - delta[None, :])).to(q.dtype)
            dk = tl.dot(dscore, q, dk, input_precision=PRECISION)
    dk *= scale * 0.6931471805599453
    store_rows(dk_ptr + head * K, dk, row, s < end, H * K, K, BK)
    store_rows(dv_ptr + head * K, dv, row, s < end, H * K, K, BK)


def forward(q_NHK, k_NHK, v_NHK, tile_G3, sorted_N, padding_N) -> tuple[Tensor, Tensor]:
    """Outputs, and the log-sum-exp [H, N] of scores in units of log2."""
    N, H, K = q_NHK.shape
    qkv = [_whole(x) for x in (q_NHK, k_NHK, v_NHK)]
    o_NHK, lse_HN = _empty(qkv[0]), q_NHK.new_zeros(H, N, dtype=torch.float32)
    _launch(forward_kernel, "forward", qkv, (*qkv, o_NHK, lse_HN, tile_G3), sorted_N, K)
    return _outputs((o_NHK,), padding_N, K)[0], lse_HN


def backward(
    do_NHK, q_NHK, k_NHK, v_NHK, o_NHK, lse_HN, tile_G3, sorted_N, padding_N
) -> list[Tensor]:
    """Gradients of q, k and v; do and o contiguous."""
    K = q_NHK.shape[2]
    do_NHK, o_NHK, *qkv = (_whole(x) for x in (do_NHK, o_NHK, q_NHK, k_NHK, v_NHK))
    dq_NHK, dk_NHK, dv_NHK = gradients = [_empty(x) for x in qkv]
    delta_HN = torch.empty_like(lse_HN)
    tensors = (do_NHK, *qkv, o_NHK, lse_HN, dq_NHK, delta_HN, tile_G3)
    _launch(queries_kernel, "queries", qkv, tensors, sorted_N, K)
    tensors = (do_NHK, *qkv, lse_HN, delta_HN, dk_NHK, dv_NHK, tile_G3)
    _launch(keys_kernel, "keys", qkv, tensors, sorted_N, K)
    return _outputs(gradients, padding_N, K)


def _launch(kernel, kind: str, qkv, tensors, sorted_N: Tensor | None, size: int) -> None:
    (N, H, K), tile_G3 = qkv[0].shape, tensors[-1]
    sizes = blocks(kind, precision(qkv[0].dtype), K)
    parts = TILE // max(sizes["BQ"], sizes["BS"])
    strides = [stride for x_NHK in qkv for stride in x_NHK.stride()[:2]]
    row = tile_G3 if sorted_N is None else sorted_N
    if len(tile_G3) and H and size:
        with on_device(tile_G3):
            kernel[(len(tile_G3) * parts * H,)](
                *tensors, row, N, H, size**-0.5 * LOG2E, *strides,
                SORTED=sorted_N is not None, **sizes,
            )  # fmt: skip


def _whole(x_NHK: Tensor) -> Tensor:
    """x, or a copy where a head does not start at, or is not of, whole 16 elements."""
    if x_NHK.shape[-1] % 16:
        return F.pad(x_NHK, (0, -x_NHK.shape[-1] % 16)).contiguous()
    whole = x_NHK.stride(2) == 1 and not any(stride % 16 for stride in x_NHK.stride()[:2])
    return x_NHK if whole else x_NHK.contiguous()


def _empty(x_NHK: Tensor) -> Tensor:
    return x_NHK.new_empty(x_NHK.shape)


def _outputs(tensors: Sequence[Tensor], padding_N: Tensor, size: int) -> list[Tensor]:
    """Of the head size asked for, and zero at padding."""
    return [x_NHK[..., :size].contiguous().index_fill_(0, padding_N, 0) for x_NHK in tensors]


def precision(dtype: torch.dtype) -> str:
    """How products are done: bf16, or of float32 tf32, tf32x3 or ieee."""
    if dtype is torch.bfloat16:
        return "bf16"
    if torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def blocks(kind: str, products: str, size: int) -> dict:
    """Sizes of a program's tile and how it runs.

    Registers and shared memory suffice on every chip that benchmarks/kernels_aot.py knows.
    """
    wide = size > 64
    own, step = TILES[products][kind][wide]
    BQ, BS = (step, own) if kind == "keys" else (own, step)
    sizes = {"TILE": TILE, "BQ": BQ, "BS": BS, "K": size, "num_warps": 4}
    sizes["BK"] = max(16, triton.next_power_of_2(size))
    sizes["num_stages"] = 1 if products == "tf32x3" and wide and kind != "forward" else 2
    return sizes | {"PRECISION": "ieee" if products == "bf16" else products}
