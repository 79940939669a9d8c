"""Speech as codes of a closed-form codec, `MDCT`; semantic units are the other method (units.py).

50 frames a second of a lapped transform are companded and quantized by residual k-means. That is
deterministic, looks one frame ahead, and fits in a CPU-minute to a quality that a small neural
codec does not reach in ten. Tokens are flattened frame by frame, coarse level first, or level by
level in blocks of a few frames (layouts.py). speech_stream.py codes and decodes piece by piece.

T frames, L codebooks, K codes in each, H coefficients a frame, D of them coded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

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
from plait.tokenizers.layouts import coarse_first, from_coarse_first
from plait.tokenizers.mdct import imdct, mdct
from plait.tokenizers.sampling import choose
from plait.tokenizers.sound import prepare
from plait.tokenizers.speech_model import SpeechModel
from plait.tokenizers.speech_report import measure
from plait.tokenizers.units import Units, check_model_rates, fit_units

MAX_BLOCK = 1024
MAX_BEAM = 64
CODED_ENERGY = 0.999
"""Share of the companded energy in the coefficients that are coded; the others are zero."""
MAX_FRAMES = 160_000
"""Most frames to fit codebooks on; beyond that, a random choice."""
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
    shifts: int = 4
    """mdct: times that each sound is fitted on, each time cut into frames at another place; 4 gain
    1 dB over 1 on a quarter of an hour of speech, at four times the cost."""
    beam: int = 1
    """mdct: chains of codes that encoding keeps at each level; 4 gain 0.45 dB over 1, at a fifth
    of its speed."""
    block: int = 1
    """mdct: frames whose codes are ordered level by level; 1 orders codes frame by frame."""
    units: int = 500
    """units: how many there are."""
    unit_rate_hz: Literal[25, 50] = 25
    """units: frames a second, before runs are merged."""
    model: str = ""
    """units: folder of a HuBERT, wav2vec 2.0 or WavLM model; without, units are of cepstra."""
    layer: int = 9
    """units: the model's layer that is read, from 1; 0 is what goes into the first."""
    stream: bool = False
    """units: learn from all the sound, batch by batch in bounded memory, in its order."""
    max_minutes: float = 30.0
    """Most sound to fit on, but for `stream`; beyond that, a random choice."""

    def __post_init__(self) -> None:
        _check_range("codebooks", self.codebooks, 1, 64)
        _check_range("codebook_size", self.codebook_size, 2, 65_536)
        _check_range("hop", self.hop, 16, 4096)
        _check_range("shifts", self.shifts, 1, 64)
        _check_range("block", self.block, 1, MAX_BLOCK)
        _check_range("beam", self.beam, 1, MAX_BEAM)
        _check_range("companding", self.companding, 0.1, 1)
        _check_range("loudness_companding", self.loudness_companding, 0.1, 1)
        _check_range("units", self.units, 2, 65_536)
        _check_range("sample_rate_hz", self.sample_rate_hz, 8_000, 48_000)
        _check_range("max_minutes", self.max_minutes, 0.01, 100_000)
        if self.method == "mdct" and (self.model or self.stream):
            raise ConfigError("model and stream are for method = units")
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
        block: int = 1,
        beam: int = 1,
    ) -> None:
        self.codebooks_LKD, self.bins_D = codebooks_LKD, bins_D
        self.sample_rate_hz, self.hop = sample_rate_hz, hop
        self.companding, self.loudness_companding = companding, loudness_companding
        self.codebooks, self.codebook_size, _ = codebooks_LKD.shape
        self.vocab_size = self.codebooks * self.codebook_size
        self.block, self.beam = block, beam
        self.width = self.codebooks * block
        self.tokens_per_s = sample_rate_hz / hop * self.codebooks

    def allowed(self, position: int) -> range:
        """The codes of the level whose turn it is."""
        first = position % self.width // self.block * self.codebook_size
        return range(first, first + self.codebook_size)

    def encode_batch(self, samples: Sequence[Waveform]) -> list[Encoded]:
        """A frame for each `hop` samples, and one more; SampleError if one is empty or not finite.

        Frames of silence fill the last block. Sounds are transformed one by one, so that no batch
        mate can change a rounding; the search for codes, which has none, takes all at once.
        """
        sounds = [prepare(sample, self.sample_rate_hz) for sample in samples]
        frames = [self.compress(mdct(sound, self.hop)) for sound in sounds]
        return [Encoded(ids=ids, width=self.width) for ids in self.ids(frames)]

    def compress(self, frames_TH: Tensor) -> Tensor:
        """What is quantized, [T, D], of coefficients [T, H]."""
        return _compress(frames_TH, self.companding, self.loudness_companding)[:, self.bins_D]

    def ids(self, frames: Sequence[Tensor]) -> list[np.ndarray]:
        """Int32 ids of each sound's compressed frames [T, D], in whole blocks of the layout."""
        frames = [pad(frames_TD, (0, 0, 0, -len(frames_TD) % self.block)) for frames_TD in frames]
        if not frames:
            return []
        codes_NL = residual.encode(torch.cat(frames), self.codebooks_LKD, beam=self.beam)
        ids_NL = (codes_NL + torch.arange(self.codebooks) * self.codebook_size).int()
        parts = ids_NL.split([len(frames_TD) for frames_TD in frames])
        return [coarse_first(ids_TL.numpy(), self.block) for ids_TL in parts]

    def coefficients(self, ids: Tensor) -> Tensor:
        """Coefficients [T, H] of whole blocks of ids, int64 [T * L] within the vocabulary."""
        ids_TL = from_coarse_first(ids.numpy(), self.codebooks, self.block)
        codes_TL = torch.from_numpy(ids_TL) % self.codebook_size
        frames_TH = torch.zeros(len(codes_TL), self.hop)
        frames_TH[:, self.bins_D] = residual.decode(codes_TL, self.codebooks_LKD)
        return _expand(frames_TH, self.companding, self.loudness_companding)

    def decode(self, encoded: Encoded) -> Waveform:
        """The sound, `hop` samples for each frame but one; an unfinished last block is left out.

        An id of another level than its place asks for counts as its code, so that a sound comes
        out whatever a model generates. Ids outside the vocabulary are a SampleError.
        """
        ids = checked_ids(encoded, self.vocab_size)
        samples = imdct(self.coefficients(ids[: len(ids) - len(ids) % self.width]))
        return Waveform(samples=samples.clamp(-1, 1).numpy(), sample_rate_hz=self.sample_rate_hz)

    def config(self) -> dict[str, object]:
        """Rate, hop and companding, and the block and the beam where there is one."""
        numbers: dict[str, object] = {
            "sample_rate_hz": self.sample_rate_hz,
            "hop": self.hop,
            "companding": self.companding,
            "loudness_companding": self.loudness_companding,
        }
        others = {"block": self.block, "beam": self.beam}
        return numbers | {name: value for name, value in others.items() if value != 1}

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
            block=int(config_number({"block": 1, **config}, "block", 1, MAX_BLOCK)),
            beam=int(config_number({"beam": 1, **config}, "beam", 1, MAX_BEAM)),
        )


def fit(
    samples: Iterable[Waveform], options: FitOptions, *, seed: int = 0, progress: Progress = ignore
) -> MDCT | Units:
    """Fit on sounds; ConfigError if there are none."""
    rate_hz = options.sample_rate_hz
    model = SpeechModel.from_folder(options.model, options.layer) if options.model else None
    check_model_rates(model, rate_hz, options.unit_rate_hz)
    sounds = (prepare(sample, rate_hz) for sample in samples)
    if options.method == "mdct" or not options.stream:
        sounds = choose(
            sounds,
            len,
            int(options.max_minutes * 60 * rate_hz),
            seed=seed,
            progress=lambda message, share: progress(message, 0.2 * share),
        )
        if not sounds:
            raise ConfigError("no sound to fit on")
    if options.method == "mdct":
        return _fit_mdct(list(sounds), options, seed, progress)
    rates = rate_hz, options.unit_rate_hz
    return fit_units(sounds, options.units, *rates, model=model, seed=seed, progress=progress)


def _fit_mdct(sounds: list[Tensor], options: FitOptions, seed: int, progress: Progress) -> MDCT:
    powers = options.companding, options.loudness_companding
    frames = [_compress(mdct(sound, options.hop), *powers) for sound in sounds]
    bins_D = _strongest(torch.stack([frames_TH.square().sum(0) for frames_TH in frames]).sum(0))
    offsets = [options.hop * shift // options.shifts for shift in range(options.shifts)]
    frames = [
        _compress(mdct(sound[offset:], options.hop), *powers)[:, bins_D]
        for offset in offsets
        for sound in sounds
        if len(sound) > offset
    ]
    frames_ND = torch.cat(frames)
    chosen = torch.randperm(len(frames_ND), generator=torch.Generator().manual_seed(seed))
    codebooks_LKD = residual.fit_codebooks(
        frames_ND[chosen[:MAX_FRAMES].sort().values],
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
        block=options.block,
        beam=options.beam,
    )


def evaluate(tokenizer: MDCT | Units, held_out: Iterable[Waveform]) -> dict[str, float]:
    """Likeness of the decoded sounds, use of the codes by level, and rates (speech_report.py)."""
    codebooks = tokenizer.codebooks if isinstance(tokenizer, MDCT) else None
    return measure(tokenizer, held_out, tokenizer.sample_rate_hz, codebooks=codebooks)


def _compress(frames_TH: Tensor, companding: float, loudness_companding: float) -> Tensor:
    """Magnitudes to a power, then each frame's norm to another; signs are kept."""
    frames_TH = frames_TH.sign() * _power(frames_TH.abs(), companding)
    return frames_TH * _power(_norms(frames_TH).clamp(min=TINY), loudness_companding - 1)


def _expand(frames_TH: Tensor, companding: float, loudness_companding: float) -> Tensor:
    """What `_compress` was given."""
    frames_TH = frames_TH * _power(_norms(frames_TH), 1 / loudness_companding - 1)
    return frames_TH.sign() * _power(frames_TH.abs(), 1 / companding)


def _power(x: Tensor, exponent: float) -> Tensor:
    """By float64: in float32 the last values of a thread's part are rounded in another way."""
    return (x.double() ** exponent).float()


def _norms(frames_TH: Tensor) -> Tensor:
    """[T, 1], added up in one order, whatever the number of frames: norm() may change it."""
    return frames_TH.double().square().cumsum(1)[:, -1:].sqrt().float()


def _strongest(energy_H: Tensor) -> Tensor:
    """Indexes of the fewest coefficients that hold nearly all of the energy, ascending."""
    order = torch.argsort(energy_H, descending=True, stable=True)
    held = energy_H[order].double().cumsum(0)
    count = int((held < CODED_ENERGY * held[-1]).sum()) + 1
    return order[:count].sort().values


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, and should be in {low}..{high}")
