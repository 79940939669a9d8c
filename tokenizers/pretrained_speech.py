"""Published sound codecs (EnCodec, DAC, Mimi, X-Codec) behind the contract of every tokenizer.

Tokens are flattened frame by frame, coarse level first, each level with ids of its own, as in
speech.MDCT. Sounds are encoded one by one, on one thread, and never padded to their neighbours'
length: padding changed 7 % of DAC's codes and every feature of the HuBERT in X-Codec. Nor are
sounds of one length batched: by 16 a full-sized EnCodec codes 11 s of sound a CPU second, one by
one 14.5, Mimi 10 and 13, and 0.03 % of EnCodec's codes became others. A sound longer than `piece_s`
is encoded in pieces of that length, so memory is bounded, and ids depend on the sound alone; up to
there they are the library's own.

T frames, L levels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from plait.tokenizers.base import Encoded, Tokenizer, Waveform
from plait.tokenizers.checks import WEIGHTS_FILE, checked_ids, config_number
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image_fit import threads
from plait.tokenizers.pretrained import Network, from_files
from plait.tokenizers.sound import prepare

PIECE_S = 30.0
"""Seconds that are encoded at once."""
WHOLE_FRAMES = ("dac", "xcodec")
"""Models that drop an unfinished frame, and cannot take less than one: zeros complete it."""


class PretrainedSpeech(Tokenizer):
    """Sound as the codes of a published codec; local id = level * codebook_size + code."""

    modality = "speech"

    def __init__(self, network: Network, settings: Mapping[str, object]) -> None:
        self.network = network
        self._model: Any = network.model
        codec = self._model.config
        _check_usable(network.kind, codec)
        rate = codec.sample_rate if network.kind == "xcodec" else codec.sampling_rate
        self.sample_rate_hz = int(config_number({"rate": rate}, "rate", 1_000, 192_000))
        hop = codec.frame_size if network.kind == "mimi" else codec.hop_length
        self.hop = int(config_number({"hop": hop}, "hop", 1, 1 << 16))
        self.codebook_size = int(codec.codebook_size)
        self.codebooks = int(config_number(settings, "codebooks", 1, levels_of(network)))
        self.piece_s = config_number(settings, "piece_s", 1, 600)
        self.frames_of_piece = max(1, int(self.piece_s * self.sample_rate_hz / self.hop))
        self.vocab_size = self.codebooks * self.codebook_size
        self.width = self.codebooks
        self.tokens_per_s = self.sample_rate_hz / self.hop * self.codebooks

    @classmethod
    def from_network(cls, network: Network, codebooks: int = 0) -> Self:
        """With its first `codebooks` levels; 0 for all that it has."""
        levels = levels_of(network)
        if not 0 <= codebooks <= levels:
            raise ConfigError(f"codebooks is {codebooks}; this model has {levels}")
        return cls(network, {"codebooks": codebooks or levels, "piece_s": PIECE_S})

    def allowed(self, position: int) -> range:
        """The codes of the level whose turn it is."""
        first = position % self.codebooks * self.codebook_size
        return range(first, first + self.codebook_size)

    def encode_batch(self, samples: Sequence[Waveform]) -> list[Encoded]:
        """A frame for each begun `hop` samples; SampleError if a sound is empty or not finite."""
        with threads(1):
            return [self._encode(prepare(sample, self.sample_rate_hz)) for sample in samples]

    @torch.inference_mode()
    def _encode(self, samples: Tensor) -> Encoded:
        pieces = samples.split(self.frames_of_piece * self.hop)
        codes_TL = torch.cat([self._codes(piece) for piece in pieces])
        ids_TL = codes_TL + torch.arange(self.codebooks) * self.codebook_size
        return Encoded(ids=ids_TL.flatten().numpy().astype(np.int32), width=self.codebooks)

    def _codes(self, samples: Tensor) -> Tensor:
        """The library's codes of one piece, int64 [T, L]."""
        kind, model = self.network.kind, self._model
        if kind in WHOLE_FRAMES:
            samples = torch.nn.functional.pad(samples, (0, -len(samples) % self.hop))
        x_11N = samples[None, None]
        if kind == "encodec":
            bandwidth = self._bandwidth(model.quantizer.get_num_quantizers_for_bandwidth)
            codes_LT = model.encode(x_11N, bandwidth=bandwidth).audio_codes[0, 0]
        elif kind == "xcodec":
            bandwidth = self._bandwidth(model.quantizer.get_num_quantizers_for_bandwidth)
            codes_LT = model.encode(x_11N, bandwidth=bandwidth).audio_codes[0]
        elif kind == "dac":
            codes_LT = model.encode(x_11N, n_quantizers=self.codebooks).audio_codes[0]
        else:
            codes_LT = model.encode(x_11N, num_quantizers=self.codebooks).audio_codes[0]
        if codes_LT.shape[0] < self.codebooks or not codes_LT.shape[1]:
            raise SampleError(f"the codec gave {tuple(codes_LT.shape)} codes, too few")
        return codes_LT[: self.codebooks].T

    def _bandwidth(self, levels_at: Callable[[float], int]) -> float:
        """The least bandwidth that has all the levels; a lower one gives a prefix of its codes."""
        bandwidths = sorted(self._model.config.target_bandwidths)
        enough = (b for b in bandwidths if levels_at(b) >= self.codebooks)
        return next(enough, bandwidths[-1])

    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> Waveform:
        """The sound; an unfinished last frame is left out.

        An id of another level than its place asks for counts as its code. Ids outside the
        vocabulary are a SampleError.
        """
        ids = checked_ids(encoded, self.vocab_size)
        ids = ids[: len(ids) - len(ids) % self.codebooks]
        codes_TL = ids.view(-1, self.codebooks) % self.codebook_size
        parts = codes_TL.split(self.frames_of_piece) if len(codes_TL) else ()
        pieces = [self._samples(part) for part in parts]
        for i, piece in enumerate(pieces[:-1]):
            exact = self.frames_of_piece * self.hop
            pieces[i] = torch.nn.functional.pad(piece[:exact], (0, max(0, exact - len(piece))))
        samples = torch.cat([torch.zeros(0), *pieces]).clamp(-1, 1)
        return Waveform(samples=samples.numpy(), sample_rate_hz=self.sample_rate_hz)

    def _samples(self, codes_TL: Tensor) -> Tensor:
        codes_1LT, model = codes_TL.T[None], self._model
        if self.network.kind == "encodec":
            return model.decode(codes_1LT[None], [None]).audio_values.flatten()
        return model.decode(audio_codes=codes_1LT).audio_values.flatten()

    def config(self) -> dict[str, object]:
        """Levels, the length of a piece, and the library's configuration."""
        return {
            "codebooks": self.codebooks,
            "piece_s": self.piece_s,
            "model": self.network.config,
        }

    def files(self) -> dict[str, bytes]:
        """The codec's tensors, as published."""
        return {WEIGHTS_FILE: self.network.weights}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if a value is missing or the weights do not fit."""
        return cls(from_files(config, files), config)


def levels_of(network: Network) -> int:
    """Codebooks that a model has."""
    codec: Any = network.model.config
    if network.kind == "dac":
        return int(codec.n_codebooks)
    return int(codec.num_quantizers)


def _check_usable(kind: str, codec: Any) -> None:
    if getattr(codec, "audio_channels", 1) != 1:
        raise ConfigError(f"this {kind} takes {codec.audio_channels} channels; plait's are mono")
    if kind == "encodec" and (codec.normalize or codec.chunk_length_s is not None):
        raise ConfigError(
            "this EnCodec scales each chunk and keeps the scale beside the codes, which a stream "
            "of codes cannot; its 24 kHz sibling does not"
        )
