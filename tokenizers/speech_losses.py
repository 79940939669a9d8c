"""How far a decoded sound is from its original, as a loss to train a codec with.

The samples' absolute error, relative to each sound, and the distance of log-mel spectra at several
resolutions, as in arXiv:2306.06546, section 3.4, and in what is reported (speech_metrics.py).

B sounds, N samples.
"""

import torch
from torch import Tensor

from plait.tokenizers.sound import FFT, FLOOR, mel_filters
from plait.tokenizers.speech_metrics import RESOLUTIONS
from plait.tokenizers.speech_options import FitOptions

QUIET = 1e-3
"""Mean size of samples below which a sound's error is not taken relative to it."""


class SoundLoss:
    """Both errors, by the options' weights."""

    def __init__(self, options: FitOptions) -> None:
        self.waveform, self.spectral = options.waveform, options.spectral
        self.rate_hz = options.sample_rate_hz

    def __call__(self, y_BN: Tensor, x_BN: Tensor) -> Tensor:
        """The loss of decoded sounds `y`, a scalar."""
        loss = y_BN.new_zeros(())
        if self.waveform:
            loss = loss + self.waveform * waveform_loss(y_BN, x_BN)
        if self.spectral:
            loss = loss + self.spectral * spectral_loss(y_BN, x_BN, self.rate_hz)
        return loss


def waveform_loss(y_BN: Tensor, x_BN: Tensor) -> Tensor:
    """Mean absolute error over mean absolute value, a mean over sounds."""
    error_B = (y_BN - x_BN).abs().mean(1)
    return (error_B / (x_BN.abs().mean(1) + QUIET)).mean()


def spectral_loss(y_BN: Tensor, x_BN: Tensor, rate_hz: int) -> Tensor:
    """Mean distance of natural logarithms of mel magnitudes."""
    both = torch.cat([y_BN, x_BN])
    distances = []
    for fft, bands in RESOLUTIONS:
        if fft > both.shape[1]:
            continue
        window = torch.hann_window(fft)
        spectrum = torch.stft(both, fft, fft // 4, window=window, return_complex=True, center=False)
        mels = spectrum.abs().transpose(1, 2) @ mel_filters(rate_hz, fft, bands)
        y, x = (mels + FLOOR * fft / FFT).log().chunk(2)
        distances.append((y - x).abs().mean())
    return torch.stack(distances).mean()
