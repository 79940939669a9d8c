"""The modified discrete cosine transform: a sound as frames that overlap, yet hold no more values.

With a sine window and half-overlapping frames the aliasing of neighbours cancels (Princen and
Bradley 1986), and the basis is orthonormal: an error in the coefficients is the same error, in
energy, in the sound. T frames, H hop and also coefficients a frame.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import fold, pad


def mdct(samples: Tensor, hop: int) -> Tensor:
    """Coefficients [T, H] of a sound [n], with T = ceil(n / H) + 1."""
    frames = -(-len(samples) // hop)
    padded = pad(samples, (hop, (frames + 1) * hop - len(samples)))
    return padded.unfold(0, 2 * hop, hop) @ _basis(hop)


def imdct(coefficients_TH: Tensor) -> Tensor:
    """The sound, (T - 1) * H samples, of coefficients [T, H]; nothing for a single frame."""
    frames, hop = coefficients_TH.shape
    if frames < 2:
        return coefficients_TH.new_zeros(0)
    windows = coefficients_TH @ _basis(hop).T
    size = (frames + 1) * hop
    sound = fold(windows.T[None], (1, size), (1, 2 * hop), stride=(1, hop))
    return sound.flatten()[hop : size - hop]


@lru_cache(maxsize=4)
def _basis(hop: int) -> Tensor:
    """Float32 [2H, H]: windowed cosines, orthonormal over overlapping frames."""
    place = torch.arange(2 * hop, dtype=torch.float64) + 0.5
    frequency = torch.arange(hop, dtype=torch.float64) + 0.5
    window = torch.sin(math.pi * place / (2 * hop))
    cosines = torch.cos(math.pi / hop * (place + hop / 2)[:, None] * frequency)
    return (window[:, None] * cosines * math.sqrt(2 / hop)).float()
