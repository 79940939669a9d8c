"""Speech as codes of a closed-form codec, `MDCT`.

Semantic units (units.py), and this codec between two trained networks (speech_codec.py), are the
other methods.

50 frames a second of a lapped transform are companded and quantized by residual k-means. That is
deterministic, looks one frame ahead, and fits in a CPU-minute to a quality that a small neural
codec which starts from nothing does not reach in ten. Tokens are flattened frame by frame, coarse
level first, or level by level in blocks of a few frames (layouts.py). speech_stream.py codes and
decodes piece by piece.

T frames, L codebooks, K codes in each, H coefficients a frame, D of them coded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self, TypedDict

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
from plait.tokenizers.companding import compress, expand
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState
from plait.tokenizers.layouts import coarse_first, from_coarse_first
from plait.tokenizers.mdct import imdct, mdct
from plait.tokenizers.sampling import choose
from plait.tokenizers.sound import prepare
from plait.tokenizers.speech_model import SpeechModel
from plait.tokenizers.speech_options import MAX_BEAM, MAX_BLOCK, FitOptions
from plait.tokenizers.speech_report import measure
from plait.tokenizers.units import Units, check_model_rates, fit_units

__all__ = ["MDCT", "FitOptions", "Units", "evaluate", "fit"]

CODED_ENERGY = 0.999
"""Share of the companded energy in the coefficients that are coded; the others are zero."""
MAX_FRAMES = 160_000
"""Most frames to fit codebooks on; beyond that, a random choice."""


class Numbers(TypedDict):
    """The numbers of a codec."""

    sample_rate_hz: int
    hop: int
    companding: float
    loudness_companding: float
    block: int
    beam: int


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
        frames = [self.encoding()(mdct(sound, self.hop)) for sound in sounds]
        return [Encoded(ids=ids, width=self.width) for ids in self.ids(frames)]

    def encoding(self) -> Callable[[Tensor], Tensor]:
        """From the coefficients [T, H] of a sound's next frames to what is quantized, [T, D]."""
        return self.compress

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """From a sound's next ids, int64 and of whole blocks, to coefficients [T, H]."""
        return lambda ids: self.expand(self.vectors(ids))

    def compress(self, frames_TH: Tensor) -> Tensor:
        """Companded coefficients [T, D] of coefficients [T, H]."""
        return compress(frames_TH, self.companding, self.loudness_companding)[:, self.bins_D]

    def ids(self, frames: Sequence[Tensor]) -> list[np.ndarray]:
        """Int32 ids of each sound's compressed frames [T, D], in whole blocks of the layout."""
        frames = [pad(frames_TD, (0, 0, 0, -len(frames_TD) % self.block)) for frames_TD in frames]
        if not frames:
            return []
        codes_NL = residual.encode(torch.cat(frames), self.codebooks_LKD, beam=self.beam)
        ids_NL = (codes_NL + torch.arange(self.codebooks) * self.codebook_size).int()
        parts = ids_NL.split([len(frames_TD) for frames_TD in frames])
        return [coarse_first(ids_TL.numpy(), self.block) for ids_TL in parts]

    def vectors(self, ids: Tensor) -> Tensor:
        """The sums of codes [T, D] of whole blocks of ids, int64 within the vocabulary."""
        ids_TL = from_coarse_first(ids.numpy(), self.codebooks, self.block)
        return residual.decode(torch.from_numpy(ids_TL) % self.codebook_size, self.codebooks_LKD)

    def expand(self, frames_TD: Tensor) -> Tensor:
        """Coefficients [T, H] of companded ones [T, D]."""
        frames_TH = torch.zeros(len(frames_TD), self.hop)
        frames_TH[:, self.bins_D] = frames_TD
        return expand(frames_TH, self.companding, self.loudness_companding)

    def decode(self, encoded: Encoded) -> Waveform:
        """The sound, `hop` samples for each frame but one; an unfinished last block is left out.

        An id of another level than its place asks for counts as its code, so that a sound comes
        out whatever a model generates. Ids outside the vocabulary are a SampleError.
        """
        ids = checked_ids(encoded, self.vocab_size)
        samples = imdct(self.decoding()(ids[: len(ids) - len(ids) % self.width]))
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
        numbers = cls.numbers(config, tensors["bins"], tensors["codebooks"])
        return cls(tensors["codebooks"], tensors["bins"], **numbers)

    @staticmethod
    def numbers(config: Mapping[str, object], bins_D: Tensor, codebooks_LKD: Tensor) -> Numbers:
        """What a configuration says beside the tensors; ConfigError if these do not fit it."""
        hop = int(config_number(config, "hop", 16, 4096))
        if codebooks_LKD.shape[2] != len(bins_D) or not 0 <= bins_D.min() <= bins_D.max() < hop:
            raise ConfigError(f"{WEIGHTS_FILE}: the codebooks do not fit a hop of {hop}")
        return Numbers(
            sample_rate_hz=int(config_number(config, "sample_rate_hz", 8_000, 48_000)),
            hop=hop,
            companding=config_number(config, "companding", 0.1, 1),
            loudness_companding=config_number(config, "loudness_companding", 0.1, 1),
            block=int(config_number({"block": 1, **config}, "block", 1, MAX_BLOCK)),
            beam=int(config_number({"beam": 1, **config}, "beam", 1, MAX_BEAM)),
        )


def fit(
    samples: Iterable[Waveform],
    options: FitOptions,
    *,
    seed: int = 0,
    progress: Progress = ignore,
    state: FitState = KEPT_NOWHERE,
) -> Tokenizer:
    """Fit on sounds, an MDCT, ConvCodec or Units; ConfigError if there are none.

    Method `conv` goes on from `state`.
    """
    rate_hz = options.sample_rate_hz
    model = SpeechModel.from_folder(options.model, options.layer) if options.model else None
    check_model_rates(model, rate_hz, options.unit_rate_hz)
    sounds = (prepare(sample, rate_hz) for sample in samples)
    if options.method != "units" or not options.stream:
        sounds = choose(
            sounds,
            len,
            int(options.max_minutes * 60 * rate_hz),
            seed=seed,
            progress=lambda message, share: progress(message, 0.2 * share),
        )
        if not sounds:
            raise ConfigError("no sound to fit on")
    if options.method == "units":
        rates = rate_hz, options.unit_rate_hz
        return fit_units(sounds, options.units, *rates, model=model, seed=seed, progress=progress)

    def later(message: str, share: float, **figures: float) -> None:
        progress(message, 0.2 + 0.8 * share, **figures)

    if options.method == "conv":
        from plait.tokenizers.speech_codec import fit_codec  # which builds on this file

        return fit_codec(list(sounds), options, seed, later, state)
    frames_ND, bins_D = frames_to_fit(list(sounds), options, seed)
    size = options.codebooks, options.codebook_size
    codebooks_LKD = residual.fit_codebooks(frames_ND, *size, seed=seed, progress=later)
    return MDCT(codebooks_LKD, bins_D, **numbers_of(options))


def frames_to_fit(sounds: list[Tensor], options: FitOptions, seed: int) -> tuple[Tensor, Tensor]:
    """Companded coefficients float32 [N, D] to fit codebooks on, and the D that are coded."""
    powers = options.companding, options.loudness_companding
    frames = [compress(mdct(sound, options.hop), *powers) for sound in sounds]
    bins_D = _strongest(torch.stack([frames_TH.square().sum(0) for frames_TH in frames]).sum(0))
    offsets = [options.hop * shift // options.shifts for shift in range(options.shifts)]
    frames = [
        compress(mdct(sound[offset:], options.hop), *powers)[:, bins_D]
        for offset in offsets
        for sound in sounds
        if len(sound) > offset
    ]
    frames_ND = torch.cat(frames)
    chosen = torch.randperm(len(frames_ND), generator=torch.Generator().manual_seed(seed))
    return frames_ND[chosen[:MAX_FRAMES].sort().values], bins_D


def numbers_of(options: FitOptions) -> Numbers:
    """The numbers of the codec that these options ask for."""
    return Numbers(
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


def _strongest(energy_H: Tensor) -> Tensor:
    """Indexes of the fewest coefficients that hold nearly all of the energy, ascending."""
    order = torch.argsort(energy_H, descending=True, stable=True)
    held = energy_H[order].double().cumsum(0)
    count = int((held < CODED_ENERGY * held[-1]).sum()) + 1
    return order[:count].sort().values
