"""The nearest codebook entry of each vector: vector quantization's inner loop.

Special here: the answer is that of float64 distances, whatever the chunking, the number of
threads and the batch mates, at nearly the price of one float32 matrix product. A product in chunks
that stay in cache finds the codes whose distance lies within the product's rounding error of the
least one; where there is more than one, float64 decides. On GPUs one Triton kernel finds the two
least, and float64 decides the rows where they are that close. Letters: N vectors, K codes, D width.
"""

import torch
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs

CHUNK = 256
"""Rows a product: 256 x 8192 scores in float32 are 8 MiB, which stay in cache."""
PAIRS = 1 << 22
"""Elements of one float64 distance computation: 32 MiB."""


def nearest_code(x_ND: Tensor, codebook_KD: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Int64 [N]: the code of the least squared distance; the lowest id where distances tie.

    Inputs are floats of any precision on one device; the result carries no gradient and does not
    depend on `chunk`. Raises ValueError where shapes disagree, the codebook is empty or a value is
    not finite.

    >>> nearest_code(torch.tensor([[0.9], [5.0]]), torch.tensor([[0.0], [1.0], [1.0]])).tolist()
    [1, 1]
    """
    _check(x_ND, codebook_KD)
    x_ND, codebook_KD = x_ND.detach(), codebook_KD.detach()
    precise = torch.float64 in (x_ND.dtype, codebook_KD.dtype)
    path = choose("nearest_code", _fastest(x_ND.device.type, precise))
    if path == "reference":
        return reference(x_ND, codebook_KD)
    dtype = torch.float64 if precise else torch.float32
    x_ND, codebook_KD = x_ND.to(dtype), codebook_KD.to(dtype)
    half_K = codebook_KD.square().sum(1) / 2
    if path == "triton":
        return _nearest_by_gap(x_ND.contiguous(), codebook_KD.contiguous(), half_K)
    with torch.autocast(x_ND.device.type, enabled=False):
        parts = [_nearest_in_chunk(x, codebook_KD, half_K) for x in x_ND.split(chunk)]
    return torch.cat(parts)


def reference(x_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """The definition: all distances in float64, a few rows at a time."""
    codes_KD = codebook_KD.double()
    rows = max(1, PAIRS // codes_KD.numel())
    parts = [(x.double()[:, None] - codes_KD).square().sum(-1).argmin(1) for x in x_ND.split(rows)]
    return torch.cat(parts)


def _nearest_in_chunk(x_ND: Tensor, codebook_KD: Tensor, half_K: Tensor) -> Tensor:
    # |x - c|^2 / 2 = |x|^2 / 2 + (|c|^2 / 2 - x.c), and the first term is the same for all codes
    score_NK = torch.addmm(half_K, x_ND, codebook_KD.T, alpha=-1)
    unit = torch.finfo(x_ND.dtype).eps
    if x_ND.dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        unit = 2.0**-8
    limit_N = score_NK.amin(1) + _rounding(x_ND, half_K, unit)
    row_P, code_P = (score_NK <= limit_N[:, None]).nonzero().unbind(1)
    if len(row_P) == len(x_ND):
        return code_P
    distance_P = _distances(x_ND, codebook_KD, row_P, code_P)
    least_N = distance_P.new_full((len(x_ND),), torch.inf)
    least_N = least_N.scatter_reduce(0, row_P, distance_P, "amin")
    tied = distance_P == least_N[row_P]
    index_N = code_P.new_full((len(x_ND),), len(codebook_KD))
    return index_N.scatter_reduce(0, row_P[tied], code_P[tied], "amin")


def _nearest_by_gap(x_ND: Tensor, codebook_KD: Tensor, half_K: Tensor) -> Tensor:
    code_N, gap_N = nearest_op(x_ND, codebook_KD, half_K)
    close_N = ~(gap_N > _rounding(x_ND, half_K, torch.finfo(torch.float32).eps))
    row_P = close_N.nonzero().flatten()
    return code_N.index_copy_(0, row_P, reference(x_ND[row_P], codebook_KD))


@constant
def _fastest(device: str, precise: bool) -> str:
    return "triton" if not precise and triton_runs(device, torch.float32) else "chunked"


@torch.library.custom_op("plait::nearest_code", mutates_args=())
def nearest_op(x: Tensor, codebook: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """By float32 scores: the best code, int64 [N], and how far the next is, float32 [N]."""
    from plait.kernels import nearest_code_triton

    return nearest_code_triton.nearest(x, codebook, half)


@nearest_op.register_fake
def _(x, codebook, half):
    return x.new_empty(len(x), dtype=torch.int64), x.new_empty(len(x))


def _rounding(x_ND: Tensor, half_K: Tensor, unit: float) -> Tensor:
    """[N]: twice the largest error of a score, by the bound of a dot product of D + 2 terms."""
    largest = half_K.max()
    size_N = x_ND.square().sum(1).sqrt() * (2 * largest).sqrt() + largest
    return unit * (x_ND.shape[1] + 2) * size_N


def _distances(x_ND: Tensor, codebook_KD: Tensor, row_P: Tensor, code_P: Tensor) -> Tensor:
    pairs = max(1, PAIRS // x_ND.shape[1])
    parts = [
        (x_ND[row].double() - codebook_KD[code].double()).square().sum(1)
        for row, code in zip(row_P.split(pairs), code_P.split(pairs), strict=True)
    ]
    return torch.cat(parts)


def _check(x_ND: Tensor, codebook_KD: Tensor) -> None:
    shapes = f"x {tuple(x_ND.shape)}, codebook {tuple(codebook_KD.shape)}"
    if x_ND.ndim != 2 or codebook_KD.ndim != 2 or x_ND.shape[1] != codebook_KD.shape[1]:
        raise ValueError(f"nearest_code takes x [N, D] and codebook [K, D]: {shapes}")
    if not codebook_KD.numel():
        raise ValueError(f"the codebook is empty: {shapes}")
    for name, tensor in (("x", x_ND), ("the codebook", codebook_KD)):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds a value that is not finite: {shapes}")
