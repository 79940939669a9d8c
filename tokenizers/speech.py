"""Speech as codes of a closed-form codec, `MDCT`; semantic units are the other method (units.py).

50 frames a second of a lapped transform are companded and quantized by residual k-means. That is
deterministic, looks one frame ahead, and fits in half a CPU-minute to a quality that a small neural
codec does not reach in ten. Tokens are flattened frame by frame, coarse level first.

T frames, L codebooks, K codes in each, H coefficients a frame, D of them coded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from plait.tokenizers import residual
from plait.tokenizers.base import Encoded, Progress, Tokenizer, Waveform, ignore
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    checked_ids,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.mdct import imdct, mdct
from plait.tokenizers.quantize import CodeUse
from plait.tokenizers.sampling import choose
from plait.tokenizers.sound import prepare
from plait.tokenizers.speech_metrics import mel_distance_db, si_sdr_db
from plait.tokenizers.units import Units, fit_units

CODED_ENERGY = 0.999
"""Share of the companded energy in the coefficients that are coded; the others are zero."""
TINY = 1e-9
"""Norms of frames below this, far under a 16-bit step, are not raised any further."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fitting a speech tokenizer."""

    method: Literal["mdct", "units"] = "mdct"
    """`mdct`: a codec, whose codes give the sound back; `units`: what is said, not how."""
    sample_rate_hz: int = 16_000
    """Rate that every sound is brought to."""
    codebooks: int = 8
    """mdct: codes a frame."""
    codebook_size: int = 1024
    """mdct: codes in each codebook."""
    hop: int = 320
    """mdct: samples a frame."""
    companding: float = 0.85
    """mdct: coefficients are coded as this power; lower favours high tones."""
    loudness_companding: float = 0.7
    """mdct: then each frame's norm as this power; lower favours quiet frames and recordings."""
    units: int = 500
    """units: how many there are."""
    unit_rate_hz: Literal[25, 50] = 25
    """units: frames a second, before runs are merged."""
    max_minutes: float = 30.0
    """Most sound to fit on; beyond that, a random choice."""

    def __post_init__(self) -> None:
        _check_range("codebooks", self.codebooks, 1, 64)
        _check_range("codebook_size", self.codebook_size, 2, 65_536)
        _check_range("hop", self.hop, 16, 4096)
        _check_range("companding", self.companding, 0.1, 1)
        _check_range("loudness_companding", self.loudness_companding, 0.1, 1)
        _check_range("units", self.units, 2, 65_536)
        _check_range("sample_rate_hz", self.sample_rate_hz, 8_000, 48_000)
        _check_range("max_minutes", self.max_minutes, 0.01, 100_000)
        if self.sample_rate_hz % 100:
            raise ConfigError(f"sample_rate_hz is {self.sample_rate_hz}: not a multiple of 100")


class MDCT(Tokenizer):
    """MDCT frames through residual codebooks; local id = level * K + code."""

    modality = "speech"

    def __init__(
        self,
        codebooks_LKD: Tensor,
        bins_D: Tensor,
        *,
        sample_rate_hz: int,
        hop: int,
        companding: float,
        loudness_companding: float,
    ) -> None:
        self.codebooks_LKD, self.bins_D = codebooks_LKD, bins_D
        self.sample_rate_hz, self.hop = sample_rate_hz, hop
        self.companding, self.loudness_companding = companding, loudness_companding
        self.codebooks, self.codebook_size, _ = codebooks_LKD.shape
        self.vocab_size = self.codebooks * self.codebook_size
        self.width = self.codebooks
        self.tokens_per_s = sample_rate_hz / hop * self.codebooks

    def allowed(self, position: int) -> range:
        """The codes of the level whose turn it is."""
        first = position % self.codebooks * self.codebook_size
        return range(first, first + self.codebook_size)

    def encode_batch(self, samples: Sequence[Waveform]) -> list[Encoded]:
        """A frame for each `hop` samples, and one more; SampleError if one is empty or not finite.

        Sounds are coded one by one, so that no batch mate can change a rounding.
        """
        return [self._encode(prepare(sample, self.sample_rate_hz)) for sample in samples]

    def _encode(self, samples: Tensor) -> Encoded:
        frames_TH = _compress(mdct(samples, self.hop), self.companding, self.loudness_companding)
        frames_TD = frames_TH[:, self.bins_D]
        codes_TL = residual.encode(frames_TD, self.codebooks_LKD)
        ids_TL = codes_TL + torch.arange(self.codebooks) * self.codebook_size
        return Encoded(ids=ids_TL.flatten().numpy().astype(np.int32), width=self.codebooks)

    def decode(self, encoded: Encoded) -> Waveform:
        """The sound, `hop` samples for each frame but one; an unfinished last frame is left out.

        An id of another level than its place asks for counts as its code, so that a sound comes
        out whatever a model generates. Ids outside the vocabulary are a SampleError.
        """
        ids = checked_ids(encoded, self.vocab_size)
        ids = ids[: len(ids) - len(ids) % self.codebooks]
        codes_TL = ids.reshape(-1, self.codebooks) % self.codebook_size
        frames_TH = torch.zeros(len(codes_TL), self.hop)
        frames_TH[:, self.bins_D] = residual.decode(codes_TL, self.codebooks_LKD)
        samples = imdct(_expand(frames_TH, self.companding, self.loudness_companding))
        return Waveform(samples=samples.clamp(-1, 1).numpy(), sample_rate_hz=self.sample_rate_hz)

    def config(self) -> dict[str, object]:
        """Rate, hop and companding."""
        return {
            "sample_rate_hz": self.sample_rate_hz,
            "hop": self.hop,
            "companding": self.companding,
            "loudness_companding": self.loudness_companding,
        }

    def files(self) -> dict[str, bytes]:
        """The codebooks, and which coefficients they code."""
        tensors = {"codebooks": self.codebooks_LKD, "bins": self.bins_D}
        return {WEIGHTS_FILE: weights_to_bytes(tensors)}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if a value is missing or the codebooks are damaged."""
        tensors = weights_from_files(files, {"codebooks": 3, "bins": 1})
        codebooks_LKD, bins_D = tensors["codebooks"], tensors["bins"]
        hop = int(config_number(config, "hop", 16, 4096))
        if codebooks_LKD.shape[2] != len(bins_D) or not 0 <= bins_D.min() <= bins_D.max() < hop:
            raise ConfigError(f"{WEIGHTS_FILE}: the codebooks do not fit a hop of {hop}")
        return cls(
            codebooks_LKD,
            bins_D,
            sample_rate_hz=int(config_number(config, "sample_rate_hz", 8_000, 48_000)),
            hop=hop,
            companding=config_number(config, "companding", 0.1, 1),
            loudness_companding=config_number(config, "loudness_companding", 0.1, 1),
        )


def fit(
    samples: Iterable[Waveform], options: FitOptions, *, seed: int = 0, progress: Progress = ignore
) -> MDCT | Units:
    """Fit on sounds; ConfigError if there are none."""
    rate_hz = options.sample_rate_hz
    sounds = choose(
        (prepare(sample, rate_hz) for sample in samples),
        len,
        int(options.max_minutes * 60 * rate_hz),
        seed=seed,
        progress=lambda message, share: progress(message, 0.2 * share),
    )
    if not sounds:
        raise ConfigError("no sound to fit on")
    if options.method == "units":
        return fit_units(
            sounds, options.units, rate_hz, options.unit_rate_hz, seed=seed, progress=progress
        )
    return _fit_mdct(sounds, options, seed, progress)


def _fit_mdct(sounds: list[Tensor], options: FitOptions, seed: int, progress: Progress) -> MDCT:
    powers = options.companding, options.loudness_companding
    frames_TH = torch.cat([_compress(mdct(s, options.hop), *powers) for s in sounds])
    bins_D = _strongest(frames_TH.square().sum(0))
    codebooks_LKD = residual.fit_codebooks(
        frames_TH[:, bins_D],
        options.codebooks,
        options.codebook_size,
        seed=seed,
        progress=lambda message, share: progress(message, 0.2 + 0.8 * share),
    )
    return MDCT(
        codebooks_LKD,
        bins_D,
        sample_rate_hz=options.sample_rate_hz,
        hop=options.hop,
        companding=options.companding,
        loudness_companding=options.loudness_companding,
    )


def evaluate(tokenizer: MDCT | Units, held_out: Iterable[Waveform]) -> dict[str, float]:
    """Likeness of the decoded sounds, use of the codes, and rates.

    `si_sdr_db` (mean over sounds that are not silent) is left out for units, which keep no phase.
    """
    ids, si_sdr, mel, seconds = [], [], [], 0.0
    for sample in held_out:
        original = prepare(sample, tokenizer.sample_rate_hz)
        encoded = tokenizer.encode_batch([sample])[0]
        decoded = torch.from_numpy(tokenizer.decode(encoded).samples)
        ids.append(encoded.ids)
        seconds += len(original) / tokenizer.sample_rate_hz
        mel.append(mel_distance_db(decoded, original, tokenizer.sample_rate_hz))
        si_sdr.append(si_sdr_db(decoded, original))
    use = CodeUse.of(torch.from_numpy(np.concatenate([*ids, []])), tokenizer.vocab_size)
    codes = tokenizer.codebook_size if isinstance(tokenizer, MDCT) else tokenizer.vocab_size
    report = {
        "sounds": len(mel),
        "seconds": seconds,
        "tokens": use.tokens,
        "tokens_per_s": use.tokens / max(seconds, 1e-9),
        "bits_per_token": float(np.log2(codes)),
        "mel_distance_db": float(np.mean(mel)) if mel else 0.0,
        "codes_used": use.codes_used,
        "perplexity": use.perplexity,
    }
    audible = [value for value in si_sdr if np.isfinite(value)]
    if isinstance(tokenizer, MDCT) and audible:
        report["si_sdr_db"] = float(np.mean(audible))
    return report


def _compress(frames_TH: Tensor, companding: float, loudness_companding: float) -> Tensor:
    """Magnitudes to a power, then each frame's norm to another; signs are kept."""
    frames_TH = frames_TH.sign() * frames_TH.abs() ** companding
    norm_T1 = frames_TH.norm(dim=1, keepdim=True).clamp(min=TINY)
    return frames_TH * norm_T1 ** (loudness_companding - 1)


def _expand(frames_TH: Tensor, companding: float, loudness_companding: float) -> Tensor:
    """What `_compress` was given."""
    norm_T1 = frames_TH.norm(dim=1, keepdim=True)
    frames_TH = frames_TH * norm_T1 ** (1 / loudness_companding - 1)
    return frames_TH.sign() * frames_TH.abs() ** (1 / companding)


def _strongest(energy_H: Tensor) -> Tensor:
    """Indexes of the fewest coefficients that hold nearly all of the energy, ascending."""
    order = torch.argsort(energy_H, descending=True, stable=True)
    held = energy_H[order].double().cumsum(0)
    count = int((held < CODED_ENERGY * held[-1]).sum()) + 1
    return order[:count].sort().values


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, and should be in {low}..{high}")
