"""Pictures as codes of an autoencoder that is trained end to end around a chosen quantizer.

The quantizers are those of quantize_vq.py and quantize_scalar.py; a fitted one is nothing but its
codebooks. Residual VQ gives as many tokens a place as it has codebooks, level by level.

Ids are the nearest codes of an encoder that runs in float64 with the float32 weights: differences
in its last bit, between batch sizes or threads, are some 1e-15 and change a code only where two
codes are that nearly as near. B pictures, h w rows and columns, C codebooks, K codes, D width.
"""

from collections.abc import Mapping
from typing import Self, get_args

import torch
from torch import Tensor

from plait.tokenizers import residual
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.image_bottleneck import Codes
from plait.tokenizers.image_codes_network import Codec
from plait.tokenizers.image_codes_train import BATCH, PictureFit, train_codec
from plait.tokenizers.image_grid import (
    MAX_BLOCKS,
    MAX_CODES,
    MAX_DIM,
    PictureTokenizer,
    grid_of,
)
from plait.tokenizers.image_options import PRESETS, FitOptions, QuantizerName
from plait.tokenizers.pictures import scale
from plait.tokenizers.quantize import Quantizer
from plait.tokenizers.quantize_scalar import Binary, FiniteScalar
from plait.tokenizers.quantize_vq import ResidualQuantizer, SimVQ, VectorQuantizer

WIDTH = 64
"""Width of a learned code's vector, or the values of a patch where these are fewer."""
NUDGE = 1e-6
"""Added to what is coded, so that a flat picture does not lie exactly between two codes."""


class ConvCodes(PictureTokenizer):
    """A convolutional autoencoder around VQ, SimVQ, residual VQ, FSQ, LFQ or BSQ."""

    def __init__(self, codec: Codec, quantizer: str, size: int, aspect: float = 1.0) -> None:
        codebooks, codes, _ = codec.codebooks_CKD.shape
        super().__init__(size, codec.stride, codes, codebooks=codebooks, aspect=aspect)
        self.quantizer = quantizer
        self.codec = codec.eval().requires_grad_(False)
        self.codec.encoder.double()

    @torch.no_grad()
    def encode_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """The nearest codes, of a residual quantizer level by level."""
        z_BDhw = self.codec.encode(scale(pixels_B3HW).double()) + NUDGE
        z_BhwD = z_BDhw.permute(0, 2, 3, 1)
        ids_NC = residual.encode(z_BhwD.flatten(0, 2), self.codec.codebooks_CKD.double())
        return ids_NC.view(*z_BhwD.shape[:3], -1)

    @torch.no_grad()
    def decode_ids(self, ids_BhwC: Tensor) -> Tensor:
        """The decoder's output."""
        z_ND = residual.decode(ids_BhwC.flatten(0, 2), self.codec.codebooks_CKD)
        return self.codec.decode(z_ND.view(*ids_BhwC.shape[:3], -1).permute(0, 3, 1, 2))

    def config(self) -> dict[str, object]:
        """The network's and the quantizer's dimensions."""
        codebooks, codes, width = self.codec.codebooks_CKD.shape
        return {
            **self.grid_config(),
            "quantizer": self.quantizer,
            "codebooks": codebooks,
            "codes": codes,
            "code_width": width,
            "dim": self.codec.dim,
            "n_blocks": self.codec.n_blocks,
        }

    def files(self) -> dict[str, bytes]:
        """The weights and the codebooks."""
        weights = {name: t.float() for name, t in self.codec.state_dict().items()}
        return {WEIGHTS_FILE: weights_to_bytes(weights)}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if configuration and weights do not fit each other."""
        size, stride, aspect = grid_of(config)
        quantizer = str(config.get("quantizer"))
        if quantizer not in get_args(QuantizerName):
            raise ConfigError(f"config.json: quantizer is {quantizer!r}, which plait has not")
        sizes = {
            name: int(config_number(config, name, low, high))
            for name, low, high in [
                ("code_width", 1, MAX_DIM),
                ("dim", 1, MAX_DIM),
                ("n_blocks", 0, MAX_BLOCKS),
                ("codebooks", 1, 16),
                ("codes", 2, MAX_CODES),
            ]
        }
        with torch.device("meta"):  # so that only the file, and no config, allocates memory
            codec = Codec(stride, sizes.pop("code_width"), **sizes)
        wanted = codec.state_dict()
        weights = weights_from_files(files, {name: t.ndim for name, t in wanted.items()})
        for name, tensor in weights.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != torch.float32:
                raise ConfigError(
                    f"{WEIGHTS_FILE} does not fit config.json: {name} is {tensor.dtype} "
                    f"{tuple(tensor.shape)}, not float32 {tuple(wanted[name].shape)}"
                )
        codec.load_state_dict(weights, assign=True)
        return cls(codec, quantizer, size, aspect)


def fit_codes(fit: PictureFit) -> ConvCodes:
    """Train an autoencoder around `options.quantizer`."""
    options = fit.options
    assert options.quantizer is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        quantizer = make_quantizer(options)
        codebooks, codes, width = quantizer.codebooks().shape
        preset = PRESETS[options.preset]
        codec = Codec(options.stride, width, preset.dim, preset.n_blocks, codebooks, codes)
        codec.start_linear(fit.patches_NP, quantizer.deviations())
        train_codec(codec, Codes(quantizer), fit)
    codec.codebooks_CKD = quantizer.codebooks()
    return ConvCodes(codec, options.quantizer, options.size, options.aspect)


def make_quantizer(options: FitOptions) -> Quantizer:
    """The quantizer of this name, before it has seen any vectors."""
    name, codes, rotation = options.quantizer, options.codes, options.gradient == "rotation"
    width = min(WIDTH, 3 * options.stride**2)
    batch = BATCH * (options.size // options.stride) ** 2
    if name == "fsq":
        return FiniteScalar(options.levels)
    if name in ("lfq", "bsq"):
        return Binary(codes, spherical=name == "bsq")
    if name == "simvq":
        return SimVQ(codes, width)
    if name == "rvq":
        return ResidualQuantizer(codes, width, options.codebooks, batch=batch, rotation=rotation)
    return VectorQuantizer(codes, width, batch=batch, rotation=rotation)
