"""Prototypes on a grid whose neighbours are alike: k-means that also lays its centroids out.

A self-organizing map (Kohonen 1982) in its batch form: points go to the nearest prototype, each
prototype becomes the mean of the points around it on the grid, and the neighbourhood shrinks until
it is the prototype alone, which is Lloyd's k-means. Beginning wide also keeps it from poor local
optima: the distortion is that of k-means++ followed by Lloyd's iterations, or a little less, and
nearly no prototype is left unused. Cost: `iterations * N * K * D` multiply-adds.

N points, K prototypes (the grid's points, last axis fastest), D their width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plait.tokenizers.base import Progress, ignore

WIDEST, NARROWEST = 2.0, 0.25
"""The neighbourhood's deviation at first and at last, in steps of the grid."""
SPREAD = 1.7
"""Half the grid's first extent along each principal axis, in deviations of the points."""
SCORES = 1 << 20
"""Points times prototypes that are compared at once: 4 MiB, which stay in cache."""


def fit_map(
    x_ND: Tensor, levels: Sequence[int], *, iterations: int = 40, progress: Progress = ignore
) -> Tensor:
    """Prototypes float32 [K, D] of float32 points; the same on the same number of threads.

    The map begins as the grid stretched along the points' principal axes, the longest first.
    """
    prototypes_KD = _stretch(x_ND, levels)
    for i in range(iterations):
        progress("laying out codes", i / iterations)
        width = WIDEST * (NARROWEST / WIDEST) ** (i / max(1, iterations - 1))
        prototypes_KD = _update(x_ND, prototypes_KD, levels, width)
    progress("laying out codes", 1.0)
    return prototypes_KD


def _stretch(x_ND: Tensor, levels: Sequence[int]) -> Tensor:
    mean_D = x_ND.mean(0)
    centred_ND = (x_ND - mean_D).double()
    variance_D, axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(x_ND))
    prototypes = mean_D.double().expand(*levels, -1)
    for axis, count in enumerate(levels):
        extent = SPREAD * variance_D[-1 - axis].clamp(min=0).sqrt() * axes_DD[:, -1 - axis]
        place = torch.linspace(-1, 1, count, dtype=torch.float64)
        shape = [count if i == axis else 1 for i in range(len(levels))]
        prototypes = prototypes + place.view(*shape, 1) * extent
    return prototypes.float().reshape(math.prod(levels), -1)


def _update(x_ND: Tensor, prototypes_KD: Tensor, levels: Sequence[int], width: float) -> Tensor:
    index_N = _nearest(x_ND, prototypes_KD)
    sums_KD = torch.zeros_like(prototypes_KD).index_add_(0, index_N, x_ND)
    counts_K = torch.bincount(index_N, minlength=len(prototypes_KD)).float()
    gathered = _blur(torch.cat([sums_KD, counts_K[:, None]], 1), levels, width)
    sums_KD, weight_K1 = gathered[:, :-1], gathered[:, -1:]
    return torch.where(weight_K1 > 1e-6, sums_KD / weight_K1.clamp(min=1e-6), prototypes_KD)


def _nearest(x_ND: Tensor, prototypes_KD: Tensor) -> Tensor:
    """Without the care for ties of `nearest_code`: in a map, neighbours nearly tie by design."""
    half_K = prototypes_KD.square().sum(1) / 2
    rows = max(1, SCORES // len(prototypes_KD))
    scores = (torch.addmm(half_K, x, prototypes_KD.T, alpha=-1) for x in x_ND.split(rows))
    return torch.cat([score_NK.argmin(1) for score_NK in scores])


def _blur(values_KD: Tensor, levels: Sequence[int], width: float) -> Tensor:
    """Gaussian sums over the grid, one axis after the other."""
    values = values_KD.view(*levels, -1)
    for axis, count in enumerate(levels):
        place = torch.arange(count, dtype=torch.float32)
        kernel = torch.exp(-(place[:, None] - place).square() / (2 * width**2))
        values = (values.movedim(axis, -1) @ kernel).movedim(-1, axis)
    return values.reshape(values_KD.shape)
