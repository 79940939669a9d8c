"""Semantic speech units: what is said rather than how, at 10 to 25 tokens a second.

K-means cells of a layer of a self-supervised model (speech_model.py), or, where there is none, of
cepstra of five frames (as the first iteration of HuBERT, arXiv:2106.07447) in the directions that
tell sounds apart rather than voices (discriminant.py), 25 frames a second as in
Mixture-of-Transformers' speech (arXiv:2411.04996, section 3.3). Runs of one unit are merged and
their lengths kept in `durations`. Each unit remembers its mean spectrum, so that a sequence can be
heard, in a robotic voice, by Griffin-Lim.

T frames, U units, F features, B mel bands.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
from plait.tokenizers.discriminant import discriminant
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.sound import FEATURE_RATE_HZ, MEL_BANDS, invert_log_mel, log_mel, prepare
from plait.tokenizers.speech_model import RATE_HZ, SpeechModel, one_thread
from plait.tokenizers.stream_kmeans import StreamKMeans, batches

CEPSTRA = 12
BANDS = 40
BESIDE = 2
"""Frames to either side whose cepstra are also seen."""
STACKED = CEPSTRA * (2 * BESIDE + 1)
DIRECTIONS = 30
LEVEL_FLOOR = 1.0
"""Added to the mel magnitudes of a sound of level 1 (root mean square), whose mean is about 18."""
QUIETEST = 1e-4
"""Sounds below this level are not raised any further."""
SLOPES = (1.0, 0.7, 0.5)
"""Weights of cepstra, slopes and their slopes in the cells that the directions tell apart."""
LONGEST_RUN = 255
NDIMS = {"centroids": 2, "statistics": 2, "mels": 2, "durations": 1}


class Units(Tokenizer):
    """Merged k-means units; `durations` counts the frames of each."""

    modality = "speech"

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        sample_rate_hz: int,
        unit_rate_hz: int,
        model: SpeechModel | None = None,
    ) -> None:
        self.weights, self.model = weights, model
        self.sample_rate_hz, self.unit_rate_hz = sample_rate_hz, unit_rate_hz
        self.vocab_size = len(weights["centroids"])
        self.tokens_per_s = float(unit_rate_hz)

    def encode_batch(self, samples: Sequence[Waveform]) -> list[Encoded]:
        """Units of each sound; SampleError if one is empty or not finite."""
        return [self._encode(prepare(sample, self.sample_rate_hz)) for sample in samples]

    def _encode(self, samples: Tensor) -> Encoded:
        units_T = self.frames(samples)
        ids, durations = merge_runs(units_T.numpy())
        return Encoded(ids=ids.astype(np.int32), durations=durations)

    def frames(self, samples: Tensor) -> Tensor:
        """The unit of each frame of a sound [n] at the tokenizer's rate, int64 [T]."""
        if self.model is None:
            features_TF = cepstra(samples, self.sample_rate_hz, self.unit_rate_hz)
        else:
            features_TF = model_features(self.model, samples, self.unit_rate_hz)
        features_TF = _seen(features_TF, self.weights["statistics"], self.weights.get("projection"))
        return nearest_code(features_TF, self.weights["centroids"])

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
        """The two rates, and the model's layer where there is one."""
        rates: dict[str, object] = {
            "sample_rate_hz": self.sample_rate_hz,
            "unit_rate_hz": self.unit_rate_hz,
        }
        return rates if self.model is None else {**rates, **self.model.config()}

    def files(self) -> dict[str, bytes]:
        """Centroids, the features' statistics, units' spectra and durations; the model."""
        files = {WEIGHTS_FILE: weights_to_bytes(self.weights)}
        return files if self.model is None else {**files, **self.model.files()}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if a value is missing or the weights are damaged."""
        model = SpeechModel.from_files(config, files) if "layer" in config else None
        ndims = {**NDIMS, "projection": 2} if model is None else NDIMS
        weights = weights_from_files(files, ndims)
        units = len(weights["centroids"])
        width, seen = (STACKED, DIRECTIONS) if model is None else (model.width, model.width)
        expected = [(units, seen), (2, width), (units, MEL_BANDS), (units,), (width, seen)]
        expected = expected[: len(ndims)]
        found = [tuple(weights[name].shape) for name in ndims]
        if found != expected:
            raise ConfigError(f"{WEIGHTS_FILE}: shapes are {found}, and should be {expected}")
        rate_hz = int(config_number(config, "sample_rate_hz", 8_000, 48_000))
        unit_rate_hz = int(config_number(config, "unit_rate_hz", 25, 50))
        check_model_rates(model, rate_hz, unit_rate_hz)
        return cls(weights, sample_rate_hz=rate_hz, unit_rate_hz=unit_rate_hz, model=model)


def check_model_rates(model: SpeechModel | None, sample_rate_hz: int, unit_rate_hz: int) -> None:
    """ConfigError if a model cannot give units of this rate from sound of that rate."""
    if model is None:
        return
    if sample_rate_hz != RATE_HZ:
        raise ConfigError(f"sample_rate_hz is {sample_rate_hz}: speech models take {RATE_HZ}")
    if model.rate_hz % unit_rate_hz:
        raise ConfigError(
            f"unit_rate_hz is {unit_rate_hz}: the model's {model.rate_hz} is no multiple"
        )


def fit_units(
    sounds: Iterable[Tensor],
    units: int,
    sample_rate_hz: int,
    unit_rate_hz: int,
    *,
    model: SpeechModel | None = None,
    seed: int = 0,
    progress: Progress = ignore,
) -> Units:
    """Fit on a stream of sounds [n] at `sample_rate_hz`, of any length, in bounded memory.

    Spectra and durations of the units are those under the centroids of their time. ConfigError if
    there are no sounds.
    """
    check_model_rates(model, sample_rate_hz, unit_rate_hz)
    learner: StreamKMeans | None = None
    statistics_2F, projection_FD = torch.empty(0), None
    count_U, sums_UB = torch.zeros(units), torch.zeros(units, MEL_BANDS)
    frames_U, runs_U = np.zeros(units), np.zeros(units)
    pieces = (_features_and_mels(sound, sample_rate_hz, unit_rate_hz, model) for sound in sounds)
    for number, batch in enumerate(batches(pieces)):
        progress(f"k-means, batch {number + 1}", 0.3)
        features_TF, mels_TB = (torch.cat(x) for x in zip(*batch, strict=True))
        if learner is None:
            statistics_2F = _statistics(features_TF, plain=model is not None)
            if model is None:
                with one_thread():
                    projection_FD = _directions(batch, statistics_2F, seed)
            features_TF = _seen(features_TF, statistics_2F, projection_FD)
            learner = StreamKMeans(features_TF, units, seed=seed)
        else:
            features_TF = _seen(features_TF, statistics_2F, projection_FD)
            learner.update(features_TF)
        units_T = nearest_code(features_TF, learner.centroids_KD)
        count_U += torch.bincount(units_T, minlength=units)
        sums_UB.index_add_(0, units_T, mels_TB)
        for sequence in units_T.split([len(mels_TB) for _, mels_TB in batch]):
            ids, durations = merge_runs(sequence.numpy())
            frames_U += np.bincount(ids, weights=durations, minlength=units)
            runs_U += np.bincount(ids, minlength=units)
    if learner is None:
        raise ConfigError("no sound to fit on")
    weights = {
        "centroids": learner.centroids_KD,
        "statistics": statistics_2F,
        "mels": sums_UB / count_U.clamp(min=1)[:, None],
        "durations": torch.from_numpy(np.maximum(frames_U / np.maximum(runs_U, 1), 1)).float(),
    }
    if projection_FD is not None:
        weights["projection"] = projection_FD
    return Units(weights, sample_rate_hz=sample_rate_hz, unit_rate_hz=unit_rate_hz, model=model)


def _features_and_mels(
    samples: Tensor, sample_rate_hz: int, unit_rate_hz: int, model: SpeechModel | None
) -> tuple[Tensor, Tensor]:
    mels_TB = unit_mels(samples, sample_rate_hz, unit_rate_hz)
    if model is None:
        return cepstra(samples, sample_rate_hz, unit_rate_hz), mels_TB
    features_TF = model_features(model, samples, unit_rate_hz)
    missing = max(len(features_TF) - len(mels_TB), 0)
    mels_TB = torch.cat([mels_TB, mels_TB[-1:].expand(missing, -1)])
    return features_TF, mels_TB[: len(features_TF)]


def _statistics(features_TF: Tensor, *, plain: bool) -> Tensor:
    """Mean and deviation, [2, F], by which cepstra count alike; 0 and 1 leave them as they are."""
    if plain:
        width = features_TF.shape[1]
        return torch.stack([torch.zeros(width), torch.ones(width)])
    deviation_F = features_TF.std(0, correction=0).clamp(min=1e-3)
    return torch.stack([features_TF.mean(0), deviation_F])


def _directions(batch: list[tuple[Tensor, ...]], statistics_2F: Tensor, seed: int) -> Tensor:
    """Projection [F, D], by cells of each frame's own cepstra and how they move."""
    guides = []
    for features_TF, _ in batch:
        own_CT = _own(features_TF).T
        slopes_CT = audio.compute_deltas(own_CT)
        moves_CT = audio.compute_deltas(slopes_CT)
        guides.append(torch.cat([own_CT, slopes_CT, moves_CT]).T)
    guide_NG = torch.cat(guides)
    weights_G = torch.tensor(SLOPES).repeat_interleave(CEPSTRA)
    guide_NG = guide_NG / guide_NG.std(0, correction=0).clamp(min=1e-3) * weights_G
    x_NF = _seen(torch.cat([features_TF for features_TF, _ in batch]), statistics_2F, None)
    return discriminant(x_NF, guide_NG, DIRECTIONS, seed=seed)


def _own(features_TF: Tensor) -> Tensor:
    """The cepstra of the frame itself among those of its neighbours."""
    return features_TF[:, BESIDE * CEPSTRA : (BESIDE + 1) * CEPSTRA]


def model_features(model: SpeechModel, samples: Tensor, unit_rate_hz: int) -> Tensor:
    """A model's frames at the units' rate, each the mean of a few, float32 [T, F]."""
    return _means(model.features(samples), model.rate_hz // unit_rate_hz)


def unit_mels(samples: Tensor, sample_rate_hz: int, unit_rate_hz: int) -> Tensor:
    """Log-mel frames at the units' rate: means of 2 or 4 frames, float32 [T, B]."""
    mels = log_mel(samples, sample_rate_hz, sample_rate_hz // FEATURE_RATE_HZ)
    return _means(mels, FEATURE_RATE_HZ // unit_rate_hz)


def _means(x_TF: Tensor, together: int) -> Tensor:
    """Means of each few frames, the last of which is repeated where some are missing."""
    missing = -len(x_TF) % together
    x_TF = torch.cat([x_TF, x_TF[-1:].expand(missing, -1)])
    return x_TF.reshape(-1, together, x_TF.shape[1]).mean(1)


def cepstra(samples: Tensor, sample_rate_hz: int, unit_rate_hz: int) -> Tensor:
    """Cosine coefficients over the bands of each frame and its neighbours, [T, STACKED].

    The sound is brought to one level first, and with it the floor under its bands, so that quiet
    recordings sound as loud ones do.
    """
    level = samples.double().square().cumsum(0)[-1].div(len(samples)).sqrt()
    mels_TB = log_mel(
        samples / level.clamp(min=QUIETEST).float(),
        sample_rate_hz,
        sample_rate_hz // FEATURE_RATE_HZ,
        fft=1 << math.ceil(math.log2(0.032 * sample_rate_hz)),
        bands=BANDS,
        floor=LEVEL_FLOOR,
    )
    mels_TB = _means(mels_TB, FEATURE_RATE_HZ // unit_rate_hz)
    values_TC = mels_TB @ audio.create_dct(CEPSTRA, BANDS, norm="ortho")
    padded_CT = torch.nn.functional.pad(values_TC.T[None], (BESIDE, BESIDE), mode="replicate")[0]
    return padded_CT.unfold(1, 2 * BESIDE + 1, 1).permute(1, 2, 0).flatten(1)


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


def _seen(features_TF: Tensor, statistics_2F: Tensor, projection_FD: Tensor | None) -> Tensor:
    """What k-means sees of features: all of them, of one size, or some directions."""
    mean_F, deviation_F = statistics_2F
    features_TF = (features_TF - mean_F) / deviation_F
    return features_TF if projection_FD is None else features_TF @ projection_FD
