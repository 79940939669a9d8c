"""Residual vector quantization in closed form: each level is k-means on what the last one left.

Code 0 of each level is the zero vector, so silence stays silence and no level makes an error
larger. N vectors, L levels, K codes a level, D width, B chains of a search.
"""

import torch
from torch import Tensor

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.kmeans import kmeans

LARGEST = 2.0**51
"""Squared distances of a search stay below it, in whole steps."""
SCORES = 1 << 18
"""Scores that a search holds at once: 2 MiB."""
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


def encode(x_ND: Tensor, codebooks_LKD: Tensor, *, beam: int = 1) -> Tensor:
    """Codes int64 [N, L]: level by level the nearest, or the best of `beam` chains of codes.

    Each row's codes are its own, whatever N. A beam keeps that many chains at each level and gives
    the one that ends nearest, for no bits. Of one speaker's speech at 8 x 1024 codes beams of 2, 4,
    8 and 16 gain 0.30, 0.45, 0.58 and 0.64 dB SI-SDR, and a CPU-second codes 64, 46, 32 and 15
    seconds of sound, over 400 without.
    """
    if beam > 1:
        return _search(x_ND, codebooks_LKD, beam)
    return torch.cat([_nearest(rows_ND, codebooks_LKD) for rows_ND in x_ND.split(ROWS)])


def decode(codes_NL: Tensor, codebooks_LKD: Tensor) -> Tensor:
    """The sum of each row's codes, float32 [N, D], added level by level whatever N is."""
    x_ND = codebooks_LKD.new_zeros(len(codes_NL), codebooks_LKD.shape[2])
    for level, codebook_KD in enumerate(codebooks_LKD):
        x_ND += codebook_KD[codes_NL[:, level]]
    return x_ND


def _nearest(x_ND: Tensor, codebooks_LKD: Tensor) -> Tensor:
    codes = []
    for codebook_KD in codebooks_LKD:
        codes.append(nearest_code(x_ND, codebook_KD))
        x_ND = x_ND - codebook_KD[codes[-1]]
    return torch.stack(codes, dim=1)


def _search(x_ND: Tensor, codebooks_LKD: Tensor, beam: int) -> Tensor:
    """Beam search over the levels, B chains a row, among values rounded to whole steps.

    Sums of whole numbers below 2 ** 53 are exact in float64 in any order, so that neither batch,
    threads nor machine can change a code. The steps are the finest that keep within it.
    """
    reach = codebooks_LKD.abs().amax((1, 2)).double().sum()
    most = (LARGEST / (4 * codebooks_LKD.shape[2])) ** 0.5
    scale = 2.0 ** float((most / reach.clamp(min=1e-30)).log2().floor())
    books_LKD = (codebooks_LKD.double() * scale).round()
    rows = max(1, SCORES // (beam * codebooks_LKD.shape[1]))
    x_ND = (x_ND.double().clamp(-reach, reach) * scale).round()
    return torch.cat([_search_rows(part_ND, books_LKD, beam) for part_ND in x_ND.split(rows)])


def _search_rows(x_ND: Tensor, books_LKD: Tensor, beam: int) -> Tensor:
    row_N1 = torch.arange(len(x_ND))[:, None]
    left_NBD, cost_NB = x_ND[:, None], x_ND.new_zeros(len(x_ND), 1)
    codes_NBL = torch.zeros(len(x_ND), 1, 0, dtype=torch.int64)
    for book_KD in books_LKD:
        # |x - c|^2 = |x|^2 + |c|^2 - 2 x.c
        step = torch.addmm(book_KD.square().sum(1), left_NBD.flatten(0, 1), book_KD.T, alpha=-2)
        total = step.unflatten(0, cost_NB.shape) + cost_NB[..., None]
        cost_NB, index_NB = _least(total.flatten(1), beam)
        chain_NB, code_NB = index_NB // len(book_KD), index_NB % len(book_KD)
        left_NBD = left_NBD[row_N1, chain_NB] - book_KD[code_NB]
        codes_NBL = torch.cat([codes_NBL[row_N1, chain_NB], code_NB[..., None]], dim=2)
    return codes_NBL[:, 0]


def _least(x_NC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The least values of each row in order, and their indexes: the lower one first of equals."""
    value_NB, index_NB = x_NC.topk(min(count + 1, x_NC.shape[1]), largest=False)
    index_NB = index_NB[:, :count].sort(1).values
    if value_NB.shape[1] > count:  # among equals at the end topk chooses as it likes
        tied_N = value_NB[:, count - 1] == value_NB[:, count]
        index_NB[tied_N] = x_NC[tied_N].sort(dim=1, stable=True).indices[:, :count]
    value_NB = x_NC.gather(1, index_NB)
    order_NB = value_NB.sort(dim=1, stable=True).indices
    return value_NB.gather(1, order_NB), index_NB.gather(1, order_NB)
