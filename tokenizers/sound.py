"""What speech tokenizers do to a sound first: check it, resample it, take log-mel features."""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import torch
import torchaudio.functional as audio
from torch import Tensor

from plait.tokenizers.base import Waveform
from plait.tokenizers.errors import SampleError

FEATURE_RATE_HZ = 100
"""Log-mel frames a second."""
FFT = 1024
MEL_BANDS = 80
PIECE = 1 << 20
"""Samples that are resampled at once, about."""
MARGIN = 16
"""Samples at the lower rate that the filter reads to either side, at most."""
FLOOR = 1e-3
"""Added to mel magnitudes before the logarithm: about the noise of 16-bit samples."""


def prepare(waveform: Waveform, rate_hz: int) -> Tensor:
    """The sound at another rate, float32 [n], n >= 1; SampleError if it is no usable sound."""
    samples = torch.as_tensor(waveform.samples, dtype=torch.float32)
    if samples.ndim != 1:
        raise SampleError(f"a sound is one row of samples, not of shape {tuple(samples.shape)}")
    if not len(samples):
        raise SampleError("the sound is empty")
    if not torch.isfinite(samples).all():
        raise SampleError("the sound holds values that are not finite")
    return _resample(samples, waveform.sample_rate_hz, rate_hz)


def _resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """By the nearest ratio of small numbers: the filter for 44101 -> 16000 would take gigabytes."""
    ratio = Fraction(from_hz, to_hz).limit_denominator(640)
    if not Fraction(1, 100) < ratio < 100:
        raise SampleError(f"sample rate of {from_hz} Hz is too far from {to_hz} Hz")
    if ratio == 1:
        return samples
    return torch.cat(list(_resampled_pieces(samples, ratio.numerator, ratio.denominator)))


def _resampled_pieces(samples: Tensor, from_hz: int, to_hz: int) -> Iterator[Tensor]:
    """Piece by piece, each with what the filter reads beside it: memory grows by the result alone.

    A whole half hour at 48 kHz took 2.2 GB. Pieces begin at multiples of `from_hz` samples, where
    the filter's phase is the same, so the result is that of the whole.
    """
    length = -(-PIECE // from_hz) * from_hz
    margin = MARGIN * max(1, -(-from_hz // to_hz))
    beside = -(-margin // from_hz) * from_hz
    for start in range(0, len(samples), length):
        first = max(0, start - beside)
        piece = samples[first : start + length + beside]
        done = audio.resample(piece, from_hz, to_hz)
        skipped = (start - first) // from_hz * to_hz
        wanted = length // from_hz * to_hz
        yield done[skipped : skipped + wanted] if start + length < len(samples) else done[skipped:]


def log_mel(
    samples: Tensor,
    rate_hz: int,
    hop: int,
    *,
    fft: int = FFT,
    bands: int = MEL_BANDS,
    floor: float = FLOOR,
) -> Tensor:
    """Natural logarithm of the mel magnitudes and a floor, float32 [ceil(n / hop), bands]."""
    frames = -(-len(samples) // hop)
    window = torch.hann_window(fft)
    padded = torch.nn.functional.pad(samples, (fft // 2, fft // 2 + hop))
    spectrum = torch.stft(padded, fft, hop, window=window, center=False, return_complex=True)
    return (spectrum.abs()[:, :frames].T @ mel_filters(rate_hz, fft, bands) + floor).log()


def invert_log_mel(mels_TB: Tensor, rate_hz: int, frame_rate_hz: int) -> Tensor:
    """A sound [T / frame rate] with these log-mel frames, its phase by Griffin-Lim.

    (Griffin and Lim 1984; the fast variant of Perraudin et al. 2013.) Deterministic.
    """
    steps = FEATURE_RATE_HZ // frame_rate_hz
    hop = rate_hz // FEATURE_RATE_HZ
    if not len(mels_TB):
        return mels_TB.new_zeros(0)
    length = len(mels_TB) * steps * hop
    smooth = torch.nn.functional.interpolate(
        mels_TB.T[None], size=len(mels_TB) * steps + 1, mode="linear"
    )[0]
    inverse = torch.linalg.pinv(mel_filters(rate_hz))
    magnitudes = (smooth.exp().T @ inverse).clamp(min=0).T
    return audio.griffinlim(
        magnitudes[None],
        window=torch.hann_window(FFT),
        n_fft=FFT,
        hop_length=hop,
        win_length=FFT,
        power=1.0,
        n_iter=32,
        momentum=0.99,
        length=length,
        rand_init=False,
    )[0].clamp(-1, 1)


@lru_cache(maxsize=16)
def mel_filters(rate_hz: int, fft: int = FFT, bands: int = MEL_BANDS) -> Tensor:
    """Float32 [fft / 2 + 1, bands]: triangles over frequency."""
    return audio.melscale_fbanks(fft // 2 + 1, 0.0, rate_hz / 2, bands, rate_hz)
