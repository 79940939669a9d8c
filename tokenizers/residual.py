"""Residual vector quantization in closed form: each level is k-means on what the last one left.

Code 0 of each level is the zero vector, so silence stays silence and no level makes an error
larger. N vectors, L levels, K codes a level, D width.
"""

import torch
from torch import Tensor

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.kmeans import kmeans

ROWS = 2048
"""Vectors that go through all levels together: what is left of them stays in cache."""


def fit_codebooks(
    x_ND: Tensor,
    levels: int,
    size: int,
    *,
    seed: int = 0,
    iterations: int = 5,
    max_points: int = 160_000,
    progress: Progress = ignore,
) -> Tensor:
    """Codebooks [L, K, D]; more points help more than more iterations do."""
    residual_ND, codebooks = x_ND, []
    for level in range(levels):
        progress(f"codebook {level + 1} of {levels}", level / levels)
        learned_KD = kmeans(
            residual_ND, size - 1, seed=seed + level, iterations=iterations, max_points=max_points
        )
        codebook_KD = torch.cat([torch.zeros_like(learned_KD[:1]), learned_KD])
        residual_ND = residual_ND - codebook_KD[nearest_code(residual_ND, codebook_KD)]
        codebooks.append(codebook_KD)
    return torch.stack(codebooks)


def encode(x_ND: Tensor, codebooks_LKD: Tensor) -> Tensor:
    """Codes int64 [N, L], level by level; those of a vector do not depend on the others."""
    return torch.cat([_encode(rows, codebooks_LKD) for rows in x_ND.split(ROWS)])


def decode(codes_NL: Tensor, codebooks_LKD: Tensor) -> Tensor:
    """The sum of each row's codes, float32 [N, D], added level by level whatever N is."""
    x_ND = codebooks_LKD.new_zeros(len(codes_NL), codebooks_LKD.shape[2])
    for level, codebook_KD in enumerate(codebooks_LKD):
        x_ND += codebook_KD[codes_NL[:, level]]
    return x_ND


def _encode(x_ND: Tensor, codebooks_LKD: Tensor) -> Tensor:
    codes = []
    for codebook_KD in codebooks_LKD:
        codes.append(nearest_code(x_ND, codebook_KD))
        x_ND = x_ND - codebook_KD[codes[-1]]
    return torch.stack(codes, dim=1)
