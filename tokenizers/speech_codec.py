"""Speech as codes of a causal convolutional codec, `ConvCodec`, trained end to end.

It is the closed-form codec of speech.py with a trained network (speech_codec_network.py) on each
side of the residual quantizer, and begins as that codec to the last bit: the networks add nothing
before they are trained, and the codebooks start as k-means. So a few dozen steps already pay, at
equal bits (16 kHz, 50 Hz x 8 x 1024; one voice, 33 utterances held out; one thread):

                              CPU-s   SI-SDR dB   STOI   multi-mel dB   codes used
    12.8 min, MDCT               59     12.13     0.841     10.62          36 %
    12.8 min, conv, 300 steps   165     12.75     0.872      7.98          84 %
    12.8 min, MDCT, 1 shift      19     11.22     0.807     10.44          34 %
    12.8 min, conv, 80, 1 shift  48     12.28     0.855      8.54          85 %
    3 min, MDCT, 1 shift          9     10.59     0.823     10.30          61 %
    3 min, conv, 60, 1 shift     30     11.71     0.843      8.92          76 %

(`benchmarks/speech_tokenizer.py FOLDER --conv-steps 300`; longer fits were not measured.)
It encodes 160 times and decodes 530 times as fast as the sound lasts, MDCT 300 and 1,200 times.
Fitting needs plait[quantizers]; using it needs no more than MDCT.

A frame's codes depend on no sound after it, and a decoded sample on the codes up to one frame later
alone. speech_stream.py codes and decodes piece by piece, to the bits of the whole sound.

T frames, L codebooks, K codes in each, D coefficients that are coded.
"""

from collections.abc import Callable, Mapping
from typing import Self, Unpack

import torch
from torch import Tensor

from plait.tokenizers.base import Progress
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.early_stop import set_aside
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import FitState
from plait.tokenizers.image_fit import threads
from plait.tokenizers.quantize_vq import ResidualQuantizer
from plait.tokenizers.speech import MDCT, Numbers, frames_to_fit, numbers_of
from plait.tokenizers.speech_codec_network import Codec, Piecewise
from plait.tokenizers.speech_codec_train import BATCH, DECAY, Trained, train_codec
from plait.tokenizers.speech_options import PRESETS, FitOptions

MAX_DIM, MAX_BLOCKS = 4096, 64


class ConvCodec(MDCT):
    """MDCT frames through a network, residual codebooks and another network."""

    def __init__(self, codec: Codec, bins_D: Tensor, **numbers: Unpack[Numbers]) -> None:
        super().__init__(codec.codebooks_LKD, bins_D, **numbers)
        self.codec = codec.eval().requires_grad_(False)
        self.codec.encoder.double()

    def encoding(self) -> Callable[[Tensor], Tensor]:
        """From the coefficients [T, H] of a sound's next frames to vectors float64 [T, D]."""
        network = Piecewise(self.codec.encoder)
        return lambda frames_TH: network.push(self.compress(frames_TH))

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """From a sound's next ids, int64 and of whole blocks, to coefficients [T, H]."""
        network = Piecewise(self.codec.decoder)
        return lambda ids: self.expand(network.push(self.vectors(ids)))

    def config(self) -> dict[str, object]:
        """The closed-form codec's, and the networks' dimensions."""
        return {**super().config(), "dim": self.codec.dim, "n_blocks": self.codec.n_blocks}

    def files(self) -> dict[str, bytes]:
        """The weights and codebooks, and which coefficients are coded."""
        weights = {name: tensor.float() for name, tensor in self.codec.state_dict().items()}
        return {WEIGHTS_FILE: weights_to_bytes({**weights, "bins": self.bins_D})}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if configuration and weights do not fit each other."""
        dim = int(config_number(config, "dim", 1, MAX_DIM))
        n_blocks = int(config_number(config, "n_blocks", 0, MAX_BLOCKS))
        names = _empty(1, 1, n_blocks, 1, 1).state_dict()
        ndims = {name: tensor.ndim for name, tensor in names.items()}
        weights = weights_from_files(files, {**ndims, "bins": 1})
        bins_D = weights.pop("bins")
        codebooks_LKD = weights["codebooks_LKD"]
        numbers = cls.numbers(config, bins_D, codebooks_LKD)
        levels, codes, width = codebooks_LKD.shape
        codec = _empty(width, dim, n_blocks, levels, codes)
        for name, wanted in codec.state_dict().items():
            found = weights[name]
            if found.shape != wanted.shape or found.dtype != torch.float32:
                raise ConfigError(
                    f"{WEIGHTS_FILE} does not fit config.json: {name} is {found.dtype} "
                    f"{tuple(found.shape)}, not float32 {tuple(wanted.shape)}"
                )
        codec.load_state_dict(weights, assign=True)
        return cls(codec, bins_D, **numbers)


def fit_codec(
    sounds: list[Tensor], options: FitOptions, seed: int, progress: Progress, state: FitState
) -> ConvCodec:
    """Train a codec on sounds at the options' rate."""
    generator = torch.Generator().manual_seed(seed)
    learned, aside = set_aside(sounds, options.patience)
    with threads(options.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames_ND, bins_D = frames_to_fit(list(learned), options, seed)
        size = options.codebooks, options.codebook_size
        preset = PRESETS[options.preset]
        codec = Codec(len(bins_D), preset.dim, preset.n_blocks, *size)
        hops = round(options.crop_s * options.sample_rate_hz / options.hop) + 1
        quantizer = ResidualQuantizer(
            options.codebook_size,
            len(bins_D),
            options.codebooks,
            batch=BATCH * hops,
            decay=DECAY,
        )
        if state.load() is None:
            progress("starting the codes", 0.0)
            quantizer.start(frames_ND, seed)
        trained = Trained(codec, quantizer, bins_D, options)
        train_codec(trained, learned, aside, options, generator, progress, state)
    codec.codebooks_LKD = quantizer.codebooks()
    return ConvCodec(codec, bins_D, **numbers_of(options))


def _empty(width: int, dim: int, n_blocks: int, codebooks: int, codes: int) -> Codec:
    with torch.device("meta"):  # so that only the file, and no config, allocates memory
        return Codec(width, dim, n_blocks, codebooks, codes)
