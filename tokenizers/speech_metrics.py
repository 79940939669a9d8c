"""How near a decoded sound is to the original: SI-SDR and log-mel distance."""

import torch
from torch import Tensor

from plait.tokenizers.sound import log_mel


def si_sdr_db(estimate: Tensor, reference: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio of sounds [n] (Le Roux et al., arXiv:1811.02508).

    The longer one is cut. 0 is as much error as signal; nan if the reference is silent.
    """
    n = min(len(estimate), len(reference))
    estimate, reference = estimate[:n].double(), reference[:n].double()
    energy = reference @ reference
    if not energy > 0:
        return float("nan")
    target = (estimate @ reference / energy) * reference  # eq. 3
    tiny = torch.finfo(torch.float64).tiny
    ratio = (target @ target + tiny) / ((estimate - target).square().sum() + tiny)
    return float(10 * ratio.log10())


def mel_distance_db(estimate: Tensor, reference: Tensor, rate_hz: int) -> float:
    """Mean distance of log-mel spectra (80 bands, 64 ms windows each 16 ms), in dB of power."""
    n = min(len(estimate), len(reference))
    hop = rate_hz * 16 // 1000
    difference = log_mel(estimate[:n], rate_hz, hop) - log_mel(reference[:n], rate_hz, hop)
    return float(difference.abs().mean() * 20 / torch.log(torch.tensor(10.0)))
