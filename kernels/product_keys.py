"""The best sums of two score lists: the slots that a product-key memory reads (arXiv:1907.05242).

Special here: among the sums of two sorted lists only pairs (a+1)(b+1) <= k can be in the best k, a
staircase of 119 pairs of 1024 at k = 32, and the rest is never computed. It is exact. On CPUs a C
file finds the best of each list by a bound, without sorting it, and merges them; on GPUs one Triton
kernel picks and merges in registers. Letters: `n` half keys of one list, so that there are n^2
slots; `k` picks.
"""

import torch
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs
from plait.kernels.compile_c import call, library

WIDEST, MOST = 4096, 64
"""Half keys and picks of the Triton kernel: it holds both lists in registers."""


def product_key_topk(scores1_NHn: Tensor, scores2_NHn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores1[i] + scores2[j], falling, and their slots i * n + j; both [N, H, k].

    Gradients reach the scores; among equal sums any may be chosen. ValueError where the lists
    differ in shape or have fewer than k entries.

    >>> product_key_topk(torch.tensor([[[0.0, 9.0]]]), torch.tensor([[[3.0, 0.0]]]), 2)
    (tensor([[[12.,  9.]]]), tensor([[[2, 3]]]))
    """
    n = scores1_NHn.shape[-1]
    if scores1_NHn.shape != scores2_NHn.shape or not 1 <= k <= n:
        shapes = f"{tuple(scores1_NHn.shape)} and {tuple(scores2_NHn.shape)}"
        raise ValueError(f"the {k} best pairs of scores {shapes}")
    path = choose("product_key_topk", _fastest(scores1_NHn.device.type, scores1_NHn.dtype, n, k))
    if path == "reference":
        return reference(scores1_NHn, scores2_NHn, k)
    if path == "staircase":
        return staircase(scores1_NHn, scores2_NHn, k)
    return best_op(scores1_NHn, scores2_NHn, k, path)


def reference(scores1_NHn: Tensor, scores2_NHn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition: all n^2 sums."""
    sum_NHnn = scores1_NHn[..., :, None] + scores2_NHn[..., None, :]
    scores_NHk, index_NHk = sum_NHnn.flatten(-2).topk(k, dim=-1)
    return scores_NHk, index_NHk


def staircase(scores1_NHn: Tensor, scores2_NHn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch, of the pairs that can win."""
    with torch.no_grad():
        slot_NHk = _staircase_slots(scores1_NHn, scores2_NHn, k)
    n = scores1_NHn.shape[-1]
    scores_NHk = scores1_NHn.gather(-1, slot_NHk // n) + scores2_NHn.gather(-1, slot_NHk % n)
    return scores_NHk, slot_NHk


def _staircase_slots(scores1_NHn: Tensor, scores2_NHn: Tensor, k: int) -> Tensor:
    best1_NHk, index1_NHk = scores1_NHn.topk(k, dim=-1)
    best2_NHk, index2_NHk = scores2_NHn.topk(k, dim=-1)
    first_P, second_P = (torch.tensor(x, device=scores1_NHn.device) for x in _staircase(k))
    sum_NHP = best1_NHk[..., first_P] + best2_NHk[..., second_P]
    place_NHk = sum_NHP.topk(k, dim=-1).indices
    index1_NHk = index1_NHk.gather(-1, first_P[place_NHk])
    index2_NHk = index2_NHk.gather(-1, second_P[place_NHk])
    return index1_NHk * scores1_NHn.shape[-1] + index2_NHk


@constant
def _fastest(device: str, dtype: torch.dtype, n: int, k: int) -> str:
    if triton_runs(device, dtype) and n <= WIDEST and k <= MOST:
        return "triton"
    compiled = device == "cpu" and dtype is torch.float32 and library("product_keys") is not None
    return "c" if compiled else "staircase"


@torch.library.custom_op("plait::product_keys", mutates_args=())
def best_op(scores1: Tensor, scores2: Tensor, k: int, path: str) -> tuple[Tensor, Tensor]:
    """The best sums and their slots, int64, both [N, H, k]."""
    if path == "triton":
        from plait.kernels import product_keys_triton

        return product_keys_triton.best(scores1, scores2, k)
    N, H, n = scores1.shape
    score_NHk, slot_NHk = torch.empty(N, H, k), torch.empty(N, H, k, dtype=torch.int64)
    lists = (scores1.contiguous(), scores2.contiguous())
    call("product_keys", "best_sums", (N * H, n, k), (*lists, score_NHk, slot_NHk))
    return score_NHk, slot_NHk


@torch.library.custom_op("plait::product_keys_backward", mutates_args=())
def gradients_op(dy: Tensor, slots: Tensor, n: int, path: str) -> Tensor:
    """Gradients of both lists, [2, N, H, n]."""
    if path == "triton":
        from plait.kernels import product_keys_triton

        return product_keys_triton.gradients(dy.contiguous(), slots, n)
    d_2NHn = dy.new_zeros(2, *dy.shape[:-1], n)
    for d_NHn, half_NHk in zip(d_2NHn, (slots // n, slots % n), strict=True):
        d_NHn.scatter_add_(-1, half_NHk, dy)
    return d_2NHn


@best_op.register_fake
def _(scores1, scores2, k, path):
    shape = (*scores1.shape[:-1], k)
    return scores1.new_empty(shape), scores1.new_empty(shape, dtype=torch.int64)


@gradients_op.register_fake
def _(dy, slots, n, path):
    return dy.new_empty(2, *dy.shape[:-1], n)


def _save(ctx, inputs, output) -> None:
    scores1, _, _, ctx.path = inputs
    ctx.n = scores1.shape[-1]
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dslots):
    if dy is None:
        return (None,) * 4
    return (*gradients_op(dy, *ctx.saved_tensors, ctx.n, ctx.path).unbind(), None, None)


best_op.register_autograd(_differentiate, setup_context=_save)


@constant
def _staircase(k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pairs (a, b) of ranks that at most k - 1 other pairs are sure to beat."""
    pairs = [(a, b) for a in range(k) for b in range(k) if (a + 1) * (b + 1) <= k]
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
