"""Semantic speech units: what is said rather than how, at 10 to 25 tokens a second.

K-means cells of cepstra and their slopes (the first iteration of HuBERT, arXiv:2106.07447), 25
frames a second as in Mixture-of-Transformers' speech (arXiv:2411.04996, section 3.3). Runs of one
unit are merged and their lengths kept in `durations`. Each unit remembers its mean spectrum, so
that a sequence can be heard, in a robotic voice, by Griffin-Lim.

T frames, U units, F features, B mel bands.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
import torchaudio.functional as audio
from torch import Tensor

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.base import Encoded, Progress, Tokenizer, Waveform, ignore
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    checked_ids,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.kmeans import kmeans
from plait.tokenizers.sound import FEATURE_RATE_HZ, MEL_BANDS, invert_log_mel, log_mel, prepare

CEPSTRA = 13
LONGEST_RUN = 255
NDIMS = {"centroids": 2, "statistics": 2, "mels": 2, "durations": 1}


class Units(Tokenizer):
    """Merged k-means units; `durations` counts the frames of each."""

    modality = "speech"

    def __init__(
        self, weights: Mapping[str, Tensor], *, sample_rate_hz: int, unit_rate_hz: int
    ) -> None:
        self.weights = weights
        self.sample_rate_hz, self.unit_rate_hz = sample_rate_hz, unit_rate_hz
        self.vocab_size = len(weights["centroids"])
        self.tokens_per_s = float(unit_rate_hz)

    def encode_batch(self, samples: Sequence[Waveform]) -> list[Encoded]:
        """Units of each sound; SampleError if one is empty or not finite."""
        return [self._encode(prepare(sample, self.sample_rate_hz)) for sample in samples]

    def _encode(self, samples: Tensor) -> Encoded:
        mels_TB = unit_mels(samples, self.sample_rate_hz, self.unit_rate_hz)
        features_TF = _standardized(cepstra(mels_TB), self.weights["statistics"])
        units_T = nearest_code(features_TF, self.weights["centroids"])
        ids, durations = merge_runs(units_T.numpy())
        return Encoded(ids=ids.astype(np.int32), durations=durations)

    def decode(self, encoded: Encoded) -> Waveform:
        """Each unit's mean spectrum for its duration, or for its usual one where none is given."""
        ids = checked_ids(encoded, self.vocab_size)
        durations = self.weights["durations"][ids].round().long().clamp(min=1)
        if encoded.durations is not None:
            durations = torch.from_numpy(np.asarray(encoded.durations).astype(np.int64))
        if len(durations) != len(ids):
            raise SampleError(f"{len(ids)} units, but {len(durations)} durations")
        mels_TB = self.weights["mels"][ids].repeat_interleave(durations, dim=0)
        samples = invert_log_mel(mels_TB, self.sample_rate_hz, self.unit_rate_hz)
        return Waveform(samples=samples.numpy(), sample_rate_hz=self.sample_rate_hz)

    def config(self) -> dict[str, object]:
        """The two rates."""
        return {"sample_rate_hz": self.sample_rate_hz, "unit_rate_hz": self.unit_rate_hz}

    def files(self) -> dict[str, bytes]:
        """Centroids, the features' mean and deviation, and each unit's spectrum and duration."""
        return {WEIGHTS_FILE: weights_to_bytes(self.weights)}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if a value is missing or the weights are damaged."""
        weights = weights_from_files(files, NDIMS)
        units = len(weights["centroids"])
        expected = [(units, 2 * CEPSTRA), (2, 2 * CEPSTRA), (units, MEL_BANDS), (units,)]
        found = [tuple(weights[name].shape) for name in NDIMS]
        if found != expected:
            raise ConfigError(f"{WEIGHTS_FILE}: shapes are {found}, and should be {expected}")
        rate_hz = int(config_number(config, "sample_rate_hz", 8_000, 48_000))
        return cls(
            weights,
            sample_rate_hz=rate_hz,
            unit_rate_hz=int(config_number(config, "unit_rate_hz", 25, 50)),
        )


def fit_units(
    sounds: Sequence[Tensor],
    units: int,
    sample_rate_hz: int,
    unit_rate_hz: int,
    *,
    seed: int = 0,
    progress: Progress = ignore,
) -> Units:
    """Fit on sounds [n] at `sample_rate_hz`."""
    mels = [unit_mels(sound, sample_rate_hz, unit_rate_hz) for sound in sounds]
    mels_TB, features_TF = torch.cat(mels), torch.cat([cepstra(mel) for mel in mels])
    deviation_F = features_TF.std(0, correction=0).clamp(min=1e-3)
    statistics_2F = torch.stack([features_TF.mean(0), deviation_F])
    features_TF = _standardized(features_TF, statistics_2F)
    progress("k-means", 0.3)
    centroids_UF = kmeans(features_TF, units, seed=seed)
    units_T = nearest_code(features_TF, centroids_UF)
    count_U = torch.bincount(units_T, minlength=units).clamp(min=1)
    sums_UB = mels_TB.new_zeros(units, MEL_BANDS).index_add_(0, units_T, mels_TB)
    weights = {
        "centroids": centroids_UF,
        "statistics": statistics_2F,
        "mels": sums_UB / count_U[:, None],
        "durations": _mean_durations(units_T.split([len(mel) for mel in mels]), units),
    }
    return Units(weights, sample_rate_hz=sample_rate_hz, unit_rate_hz=unit_rate_hz)


def unit_mels(samples: Tensor, sample_rate_hz: int, unit_rate_hz: int) -> Tensor:
    """Log-mel frames at the units' rate: means of 2 or 4 frames, float32 [T, B]."""
    together = FEATURE_RATE_HZ // unit_rate_hz
    mels = log_mel(samples, sample_rate_hz, sample_rate_hz // FEATURE_RATE_HZ)
    missing = -len(mels) % together
    mels = torch.cat([mels, mels[-1:].expand(missing, -1)])
    return mels.reshape(-1, together, MEL_BANDS).mean(1)


def cepstra(mels_TB: Tensor) -> Tensor:
    """Cosine coefficients over the bands, and their slopes over time: [T, 2 * CEPSTRA]."""
    values_TC = mels_TB @ audio.create_dct(CEPSTRA, MEL_BANDS, norm="ortho")
    slopes_CT = audio.compute_deltas(values_TC.T, win_length=5)
    return torch.cat([values_TC, slopes_CT.T], dim=1)


def merge_runs(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each run of equal units once, and its length, uint8; a run of more than 255 is cut.

    >>> merge_runs(np.array([7, 7, 3, 7]))
    (array([7, 3, 7]), array([2, 1, 1], dtype=uint8))
    """
    change = np.flatnonzero(np.diff(units, prepend=-1))
    lengths = np.diff(change, append=len(units))
    pieces = -(-lengths // LONGEST_RUN)
    durations = np.full(pieces.sum(), LONGEST_RUN, np.uint8)
    durations[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN
    return np.repeat(units[change], pieces), durations


def _mean_durations(sequences: Sequence[Tensor], units: int) -> Tensor:
    merged = [merge_runs(sequence.numpy()) for sequence in sequences]
    ids = np.concatenate([ids for ids, _ in merged])
    durations = np.concatenate([durations for _, durations in merged])
    total = np.bincount(ids, weights=durations, minlength=units)
    count = np.bincount(ids, minlength=units)
    return torch.from_numpy(np.maximum(total / np.maximum(count, 1), 1)).float()


def _standardized(features_TF: Tensor, statistics_2F: Tensor) -> Tensor:
    mean_F, deviation_F = statistics_2F
    return (features_TF - mean_F) / deviation_F
