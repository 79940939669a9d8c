"""How near a decoded sound is to the original: SI-SDR, STOI and log-mel distances."""

import importlib.util
import math
import warnings

import torch
from torch import Tensor

from plait.tokenizers.sound import FFT, FLOOR, log_mel

RESOLUTIONS = ((256, 20), (512, 40), (1024, 80), (2048, 80))
"""FFT size and mel bands of each resolution of `multi_mel_distance_db`; hops are a quarter."""
DB = 20 / math.log(10)
"""Natural logarithms of magnitudes to dB of power."""


def si_sdr_db(estimate: Tensor, reference: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio of sounds [n] (Le Roux et al., arXiv:1811.02508).

    The longer one is cut. 0 is as much error as signal; nan if the reference is silent.
    """
    estimate, reference = (x.double() for x in _of_one_length(estimate, reference))
    energy = reference @ reference
    if not energy > 0:
        return float("nan")
    target = (estimate @ reference / energy) * reference  # eq. 3
    tiny = torch.finfo(torch.float64).tiny
    ratio = (target @ target + tiny) / ((estimate - target).square().sum() + tiny)
    return float(10 * ratio.log10())


def stoi(estimate: Tensor, reference: Tensor, rate_hz: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011) by pystoi: 1 is the original.

    nan where pystoi is not installed, or with less than 0.4 s that is not silent.
    """
    if importlib.util.find_spec("pystoi") is None:
        return float("nan")
    from pystoi import stoi as pystoi

    estimate, reference = _of_one_length(estimate, reference)
    if not reference.any() or len(reference) < 0.4 * rate_hz:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return float(pystoi(reference.double().numpy(), estimate.double().numpy(), rate_hz))
        except RuntimeWarning:
            return float("nan")


def mel_distance_db(estimate: Tensor, reference: Tensor, rate_hz: int) -> float:
    """Mean distance of log-mel spectra (80 bands, 64 ms windows each 16 ms), in dB of power."""
    estimate, reference = _of_one_length(estimate, reference)
    hop = rate_hz * 16 // 1000
    difference = log_mel(estimate, rate_hz, hop) - log_mel(reference, rate_hz, hop)
    return float(difference.abs().mean() * DB)


def multi_mel_distance_db(estimate: Tensor, reference: Tensor, rate_hz: int) -> float:
    """Mean over `RESOLUTIONS` of the mean distance of log-mel spectra, in dB of power.

    As the loss of arXiv:2306.06546, section 3.4, with windows from 16 to 128 ms at 16 kHz.
    """
    estimate, reference = _of_one_length(estimate, reference)
    distances = []
    for fft, bands in RESOLUTIONS:
        a, b = (
            log_mel(x, rate_hz, fft // 4, fft=fft, bands=bands, floor=FLOOR * fft / FFT)
            for x in (estimate, reference)
        )
        distances.append((a - b).abs().mean())
    return float(torch.stack(distances).mean() * DB)


def _of_one_length(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    n = min(len(a), len(b))
    return a[:n], b[:n]
