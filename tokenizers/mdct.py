"""The modified discrete cosine transform: a sound as frames that overlap, yet hold no more values.

With a sine window and half-overlapping frames the aliasing of neighbours cancels (Princen and
Bradley 1986), and the basis is orthonormal: an error in the coefficients is the same error, in
energy, in the sound. Frame t looks at samples (t - 1) H .. (t + 1) H. Products are taken in blocks
of one size, a frame always in the same row of its block, so that a frame has the same bits whether
the sound is whole or comes piece by piece. T frames, H hop and also coefficients a frame.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import fold, pad

BLOCK = 64
"""Rows of a product."""


def mdct(samples: Tensor, hop: int) -> Tensor:
    """Coefficients [T, H] of a sound [n], with T = ceil(n / H) + 1."""
    frames = -(-len(samples) // hop)
    padded = pad(samples, (hop, (frames + 1) * hop - len(samples)))
    return forward(padded.unfold(0, 2 * hop, hop), 0)


def forward(windows_TW: Tensor, first: int) -> Tensor:
    """Coefficients [T, H] of windows of 2H samples; the first is a sound's frame `first`."""
    return _by_blocks(windows_TW, _basis(windows_TW.shape[1] // 2), first)


def imdct(coefficients_TH: Tensor) -> Tensor:
    """The sound, (T - 1) * H samples, of coefficients [T, H]; nothing for a single frame."""
    frames, hop = coefficients_TH.shape
    if frames < 2:
        return coefficients_TH.new_zeros(0)
    windows_TW = inverse(coefficients_TH, 0)
    size = (frames + 1) * hop
    sound = fold(windows_TW.T[None], (1, size), (1, 2 * hop), stride=(1, hop))
    return sound.flatten()[hop : size - hop]


def inverse(coefficients_TH: Tensor, first: int) -> Tensor:
    """Windows [T, 2H] whose overlapping halves add up to the sound; `first` as for `forward`."""
    return _by_blocks(coefficients_TH, _basis(coefficients_TH.shape[1]).T, first)


def _by_blocks(x_TI: Tensor, matrix_IO: Tensor, first: int) -> Tensor:
    """`x @ matrix`, row t being row (first + t) % BLOCK of a product of BLOCK rows."""
    before = first % BLOCK
    after = -(before + len(x_TI)) % BLOCK
    blocks = pad(x_TI, (0, 0, before, after)).split(BLOCK)
    products = [block @ matrix_IO for block in blocks]
    return torch.cat(products)[before : before + len(x_TI)]


@lru_cache(maxsize=4)
def _basis(hop: int) -> Tensor:
    """Float32 [2H, H]: windowed cosines, orthonormal over overlapping frames."""
    place = torch.arange(2 * hop, dtype=torch.float64) + 0.5
    frequency = torch.arange(hop, dtype=torch.float64) + 0.5
    window = torch.sin(math.pi * place / (2 * hop))
    cosines = torch.cos(math.pi / hop * (place + hop / 2)[:, None] * frequency)
    return (window[:, None] * cosines * math.sqrt(2 / hop)).float()
