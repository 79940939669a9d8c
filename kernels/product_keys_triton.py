"""The best sums of two score lists in Triton, for CUDA and ROCm: one launch, exact.

A program takes the two lists of a head into its registers, picks the best k of each one by one, and
merges them: in row a of the table of sums only the next column waits. Scores are compared as
integers that rise with them, which a warp compares in one instruction. Gradients of picks that
share a half key are added in a fixed order and written once: no atomics. Letters: product_keys.py;
`R` heads of all positions.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.kernels.groups_triton import on_device

LEAST = tl.constexpr(-(2**31))
"""Below what any score becomes."""


@triton.jit
def rising(score):
    """An int32 that rises with the float32 score; NaN is more than all."""
    bits = tl.where(score == score, score.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def score_of(bits):
    """The inverse of `rising`."""
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def first_most(bits, i):
    """The largest of them, and the first place where it stands."""
    most = tl.max(bits, 0)
    return most, tl.min(tl.where(bits == most, i, 0x7FFFFFFF), 0)


@triton.jit
def entry(bits, i, place):
    """What stands at one place of a list; LEAST beyond it."""
    return tl.max(tl.where(i == place, bits, LEAST), 0)


@triton.jit
def load_list(list_ptr, i, n):
    """The scores of one list as integers."""
    score = tl.load(list_ptr + i, mask=i < n, other=0.0).to(tl.float32)
    return tl.where(i < n, rising(score), LEAST)


@triton.jit
def best_kernel(
    first_ptr, second_ptr, score_ptr, slot_ptr, H, n, k, first_N, first_H, second_N, second_H,
    Bn: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes the scores and slots of the best k sums of one head, falling."""
    r = tl.program_id(0).to(tl.int64)
    i, a = tl.arange(0, Bn), tl.arange(0, BK)
    list1 = load_list(first_ptr + r // H * first_N + r % H * first_H, i, n)
    list2 = load_list(second_ptr + r // H * second_N + r % H * second_H, i, n)
    best1, best2 = tl.full((BK,), LEAST, tl.int32), tl.full((BK,), LEAST, tl.int32)
    place1, place2 = tl.zeros((BK,), tl.int32), tl.zeros((BK,), tl.int32)
    for pick in range(k):
        most1, at1 = first_most(list1, i)
        most2, at2 = first_most(list2, i)
        list1 = tl.where(i == at1, LEAST, list1)
        list2 = tl.where(i == at2, LEAST, list2)
        best1, place1 = tl.where(a == pick, most1, best1), tl.where(a == pick, at1, place1)
        best2, place2 = tl.where(a == pick, most2, best2), tl.where(a == pick, at2, place2)
    column = tl.zeros((BK,), tl.int32)
    waiting = tl.where(a < k, rising(score_of(best1) + score_of(entry(best2, a, 0))), LEAST)
    score, slot = tl.zeros((BK,), tl.int32), tl.zeros((BK,), tl.int32)
    for pick in range(k):
        most, row = first_most(waiting, a)
        at = entry(column, a, row)
        slot = tl.where(a == pick, entry(place1, a, row) * n + entry(place2, a, at), slot)
        score = tl.where(a == pick, most, score)
        column = tl.where(a == row, at + 1, column)
        next_sum = rising(score_of(best1) + score_of(entry(best2, a, at + 1)))
        waiting = tl.where(a == row, tl.where(at + 1 < k, next_sum, LEAST), waiting)
    tl.store(score_ptr + r * k + a, score_of(score).to(score_ptr.dtype.element_ty), mask=a < k)
    tl.store(slot_ptr + r * k + a, slot.to(tl.int64), mask=a < k)


@triton.jit
def add_up(to_ptr, half, dy, a, BK: tl.constexpr):
    """Adds the gradients of equal half keys, and writes each sum where the first of them says."""
    same = half[:, None] == half[None, :]
    total = tl.sum(tl.where(same, dy[None, :], 0.0), 1)
    first = tl.min(tl.where(same, a[None, :], BK), 1)
    tl.store(to_ptr + half, total.to(to_ptr.dtype.element_ty), mask=(half >= 0) & (first == a))


@triton.jit
def gradient_kernel(dy_ptr, slot_ptr, dfirst_ptr, dsecond_ptr, n, k, BK: tl.constexpr):
    """Writes one head's gradients into lists of zeros."""
    r = tl.program_id(0).to(tl.int64)
    a = tl.arange(0, BK)
    slot = tl.load(slot_ptr + r * k + a, mask=a < k, other=0).to(tl.int32)
    dy = tl.load(dy_ptr + r * k + a, mask=a < k, other=0.0).to(tl.float32)
    add_up(dfirst_ptr + r * n, tl.where(a < k, slot // n, -1), dy, a, BK)
    add_up(dsecond_ptr + r * n, tl.where(a < k, slot % n, -1), dy, a, BK)


def best(scores1_NHn: Tensor, scores2_NHn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and int64 slots, [N, H, k]; lists may lie head by head."""
    N, H, n = scores1_NHn.shape
    first, second = (x if x.stride(-1) == 1 else x.contiguous() for x in (scores1_NHn, scores2_NHn))
    score_NHk, slot_NHk = first.new_empty(N, H, k), first.new_empty(N, H, k, dtype=torch.int64)
    strides = (*first.stride()[:2], *second.stride()[:2])
    if N * H:
        with on_device(first):
            best_kernel[(N * H,)](
                first, second, score_NHk, slot_NHk, H, n, k, *strides, **blocks(n, k)
            )
    return score_NHk, slot_NHk


def gradients(dy_NHk: Tensor, slot_NHk: Tensor, n: int) -> Tensor:
    """Of both lists, [2, N, H, n]; contiguous inputs."""
    N, H, k = dy_NHk.shape
    d_2NHn = dy_NHk.new_zeros(2, N, H, n)
    first_NHn, second_NHn = d_2NHn
    if N * H:
        with on_device(dy_NHk):
            gradient_kernel[(N * H,)](
                dy_NHk, slot_NHk, first_NHn, second_NHn, n, k, **gradient_blocks(k)
            )
    return d_2NHn


def blocks(n: int, k: int) -> dict[str, int]:
    """Sizes of a program: a warp for lists of up to 1024, which is then its registers' fill."""
    Bn = triton.next_power_of_2(n)
    return {"Bn": Bn, "BK": triton.next_power_of_2(k), "num_warps": max(1, Bn // 1024)}


def gradient_blocks(k: int) -> dict[str, int]:
    """Sizes of a program: 1024 pairs of picks, 32 a thread, for each warp."""
    BK = triton.next_power_of_2(k)
    return {"BK": BK, "num_warps": max(1, BK * BK // 1024)}
