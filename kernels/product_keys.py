"""The best sums of two score lists: the slots that a product-key memory reads (arXiv:1907.05242).

Special here: among the sums of two sorted lists only pairs (a+1)(b+1) <= k can be in the best k, a
staircase of 119 pairs of 1024 at k = 32, and the rest is never computed. It is exact. Letters: `n`
half keys of one list, so that there are n^2 slots; `k` picks.
"""

import torch
from torch import Tensor

from plait.kernels.choose import choose, constant


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
    if choose("product_key_topk", "staircase") == "reference":
        return reference(scores1_NHn, scores2_NHn, k)
    with torch.no_grad():
        best1_NHk, index1_NHk = scores1_NHn.topk(k, dim=-1)
        best2_NHk, index2_NHk = scores2_NHn.topk(k, dim=-1)
        first_P, second_P = (torch.tensor(x, device=scores1_NHn.device) for x in _staircase(k))
        sum_NHP = best1_NHk[..., first_P] + best2_NHk[..., second_P]
        place_NHk = sum_NHP.topk(k, dim=-1).indices
        index1_NHk = index1_NHk.gather(-1, first_P[place_NHk])
        index2_NHk = index2_NHk.gather(-1, second_P[place_NHk])
    scores_NHk = scores1_NHn.gather(-1, index1_NHk) + scores2_NHn.gather(-1, index2_NHk)
    return scores_NHk, index1_NHk * n + index2_NHk


def reference(scores1_NHn: Tensor, scores2_NHn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition: all n^2 sums."""
    sum_NHnn = scores1_NHn[..., :, None] + scores2_NHn[..., None, :]
    scores_NHk, index_NHk = sum_NHnn.flatten(-2).topk(k, dim=-1)
    return scores_NHk, index_NHk


@constant
def _staircase(k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pairs (a, b) of ranks that at most k - 1 other pairs are sure to beat."""
    pairs = [(a, b) for a in range(k) for b in range(k) if (a + 1) * (b + 1) <= k]
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
