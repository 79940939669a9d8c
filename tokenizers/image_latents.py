"""Pictures as continuous latents of a KL autoencoder, for models that learn by diffusion.

A variational autoencoder (arXiv:1312.6114) with a small weight on its KL term, as latent diffusion
uses it (arXiv:2112.10752, section 3.1): networks and losses are those of `ConvCodes`, with noise in
the place of a quantizer. Latents are the encoder's means, shifted and scaled to mean 0 and
deviation 1 in each channel over the pictures it was fitted on; shards hold them as `latents.npy`.

Its ids hold the places in the stream and nothing else: all are 0, of a vocabulary of 1. So a run
gives it one id beside the markers, code use is 1 of 1, and a cross-entropy on it falls to 0 and
says nothing: what learns pictures from these streams reads `latents` of `Stream`'s spans, which a
packed row does not carry. What a model samples of it has no latents, and is no picture.

On held-out emoji, tiny, 300 steps, 64 places of 16 numbers: 25.5 dB, KL 3.3 nats a number, and
latents of mean 0.01 and deviation 1.02.

B pictures, h w rows and columns of latents, D channels, n places.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from plait.tokenizers.base import Encoded
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image_bottleneck import Noise, kl_nats
from plait.tokenizers.image_codes_network import Codec
from plait.tokenizers.image_codes_train import PictureFit, train_codec
from plait.tokenizers.image_grid import BATCH, MAX_BLOCKS, MAX_DIM, GridTokenizer, grid_of
from plait.tokenizers.image_options import PRESETS
from plait.tokenizers.pictures import scale, whole_crops

MEASURED = 1024
"""Pictures of the fit whose latents' mean and deviation are taken."""
OWN = ("shift", "scale", "log_variance")


class KLAutoencoder(GridTokenizer):
    """Pictures to latents float16 [n, D], and back."""

    def __init__(
        self,
        codec: Codec,
        shift_D: Tensor,
        scale_D: Tensor,
        log_variance_D: Tensor,
        size: int,
        aspect: float = 1.0,
    ) -> None:
        """`log_variance_D` is that of the noise it was trained with, before scaling."""
        super().__init__(size, codec.stride, 1, aspect=aspect)
        self.codec = codec.eval().requires_grad_(False)
        self.codec.encoder.double()
        self.shift_D, self.scale_D, self.log_variance_D = shift_D, scale_D, log_variance_D
        self.channels = len(shift_D)

    @torch.no_grad()
    def encode_grids(self, pixels_B3HW: Tensor) -> list[Encoded]:
        """Latents row by row; the ids are 0."""
        z_BDhw = self.codec.encode(scale(pixels_B3HW).double())
        z_BhwD = (z_BDhw.permute(0, 2, 3, 1) - self.shift_D) / self.scale_D
        latents_BnD = z_BhwD.flatten(1, 2).to(torch.float16).numpy()
        width, n = z_BhwD.shape[2], latents_BnD.shape[1]
        return [
            Encoded(ids=np.zeros(n, np.uint16), width=width, latents=latents_nD.copy())
            for latents_nD in latents_BnD
        ]

    @torch.no_grad()
    def decode_grid(self, encoded: Encoded, ids_N: Tensor, rows: int, columns: int) -> Tensor:
        """The decoder's output for the latents; SampleError where there are none."""
        if encoded.latents is None:
            raise SampleError("a picture of latents, and none are given: its ids hold nothing")
        latents_nD = np.asarray(encoded.latents, np.float32)
        if latents_nD.shape != (len(ids_N), self.channels):
            raise SampleError(
                f"latents {latents_nD.shape}, and should be {(len(ids_N), self.channels)}"
            )
        if not np.isfinite(latents_nD).all():
            raise SampleError("latents that are not finite")
        z_ND = torch.from_numpy(latents_nD) * self.scale_D + self.shift_D
        return self.codec.decode(z_ND.view(1, rows, columns, -1).permute(0, 3, 1, 2))

    def kl_nats(self, latents_nD: Tensor) -> float:
        """KL divergence of the noisy latents from N(0, 1), nats a number, as it was trained on."""
        return kl_nats(latents_nD * self.scale_D + self.shift_D, self.log_variance_D).item()

    def config(self) -> dict[str, object]:
        """The network's dimensions."""
        return {
            **self.grid_config(),
            "channels": self.channels,
            "dim": self.codec.dim,
            "n_blocks": self.codec.n_blocks,
        }

    def files(self) -> dict[str, bytes]:
        """The weights, and the channels' shift, scale and noise."""
        own = dict(zip(OWN, (self.shift_D, self.scale_D, self.log_variance_D), strict=True))
        return {WEIGHTS_FILE: weights_to_bytes(_network(self.codec) | own)}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if configuration and weights do not fit each other."""
        size, stride, aspect = grid_of(config)
        channels = int(config_number(config, "channels", 1, MAX_DIM))
        dim = int(config_number(config, "dim", 1, MAX_DIM))
        n_blocks = int(config_number(config, "n_blocks", 0, MAX_BLOCKS))
        with torch.device("meta"):  # so that only the file, and no config, allocates memory
            codec = Codec(stride, channels, dim, n_blocks, 0, 0)
            wanted = _network(codec) | {name: torch.empty(channels) for name in OWN}
        weights = weights_from_files(files, {name: t.ndim for name, t in wanted.items()})
        for name, tensor in weights.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != torch.float32:
                raise ConfigError(
                    f"{WEIGHTS_FILE} does not fit config.json: {name} is {tensor.dtype} "
                    f"{tuple(tensor.shape)}, not float32 {tuple(wanted[name].shape)}"
                )
        shift_D, scale_D, log_variance_D = (weights.pop(name) for name in OWN)
        if scale_D.min() <= 0:
            raise ConfigError(f"{WEIGHTS_FILE}: scale is not above 0 in each channel")
        weights["codebooks_CKD"] = torch.zeros(0, 0, channels)
        codec.load_state_dict(weights, assign=True)
        return cls(codec, shift_D, scale_D, log_variance_D, size, aspect)


def fit_latents(fit: PictureFit) -> KLAutoencoder:
    """Train an autoencoder around noise."""
    options = fit.options
    preset = PRESETS[options.preset]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        codec = Codec(options.stride, options.channels, preset.dim, preset.n_blocks, 0, 0)
        codec.start_linear(fit.patches_NP, torch.ones(options.channels))
        noise = Noise(options.channels, options.kl_weight)
        train_codec(codec, noise, fit)
    with torch.no_grad():
        crops = whole_crops(fit.thumbnails[:MEASURED], options.size).split(BATCH)
        z_ND = torch.cat([codec.encode(scale(x)).permute(0, 2, 3, 1).flatten(0, 2) for x in crops])
        spread_D = z_ND.std(0, correction=0).clamp(min=1e-4)
    variance_D = noise.log_variance_D.detach()
    return KLAutoencoder(codec, z_ND.mean(0), spread_D, variance_D, options.size, options.aspect)


def _network(codec: Codec) -> dict[str, Tensor]:
    weights = {name: t.float() for name, t in codec.state_dict().items()}
    del weights["codebooks_CKD"]
    return weights
