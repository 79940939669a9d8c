"""Companding of MDCT frames: what a codec quantizes instead of the coefficients themselves.

T frames, H coefficients; `...` any leading dimensions.
"""

from torch import Tensor

TINY = 1e-9
"""Norms of frames below this, far under a 16-bit step, count as this."""


def compress(frames_TH: Tensor, companding: float, loudness_companding: float) -> Tensor:
    """Magnitudes to a power, then each frame's norm to another; signs are kept; [..., H]."""
    frames_TH = frames_TH.sign() * _power(frames_TH.abs(), companding)
    return frames_TH * _power(_norms(frames_TH), loudness_companding - 1)


def expand(frames_TH: Tensor, companding: float, loudness_companding: float) -> Tensor:
    """What `compress` was given."""
    frames_TH = frames_TH * _power(_norms(frames_TH), 1 / loudness_companding - 1)
    return frames_TH.sign() * _power(frames_TH.abs(), 1 / companding)


def _power(x: Tensor, exponent: float) -> Tensor:
    """By float64: in float32 the last values of a thread's part are rounded in another way."""
    return (x.double() ** exponent).float()


def _norms(frames_TH: Tensor) -> Tensor:
    """[..., 1], added up in one order, whatever the number of frames: norm() may change it."""
    energy = frames_TH.double().square().cumsum(-1)[..., -1:]
    return energy.clamp(min=TINY**2).sqrt().float()
