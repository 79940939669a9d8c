"""Pictures as continuous latents of a KL autoencoder, for models that learn by diffusion.

A variational autoencoder (arXiv:1312.6114) with a small weight on its KL term, as latent diffusion
uses it (arXiv:2112.10752, section 3.1): the networks are those of `ConvCodes`, with noise in the
place of a quantizer. Latents are the encoder's means, shifted and scaled to mean 0 and deviation 1
in each channel over the pictures it was fitted on. It has no ids, so it is no `Tokenizer`, but its
folder is made in the same way.

B pictures, S pixels a side, h w rows and columns of latents, D channels, N patches.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image_codes_network import Codec
from plait.tokenizers.image_codes_train import WEIGHT_DECAY
from plait.tokenizers.image_fit import make_optimizer, sample_patches, set_rate, threads
from plait.tokenizers.image_grid import BATCH, MAX_BLOCKS, MAX_DIM, check_grid, checked, grid_of
from plait.tokenizers.image_options import PRESETS, PresetName
from plait.tokenizers.pictures import (
    random_crops,
    scale,
    to_tensor,
    to_thumbnail,
    whole_crops,
)

LOG_VARIANCE = -5.0
"""Logarithm of the noise's variance at first, in latents of variance 1."""
KIND = "image_latents:KLAutoencoder"


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """Turning pictures into grids of latents."""

    size: int = 64
    """Pixels a side."""
    stride: int = 8
    """Pixels a side of one place of the grid."""
    channels: int = 16
    """Numbers at each place."""
    preset: PresetName = "small"
    """Size of the encoder and the decoder."""
    kl: float = 1e-4
    """Weight of the KL term, in nats a number, beside the squared error of pixels -1..1."""
    steps: int = 1500
    """Training steps, each on 16 crops."""
    n_patches: int = 60_000
    """Patches whose principal axes it begins with."""
    threads: int = 2
    """Threads of a fit."""

    def __post_init__(self) -> None:
        check_grid(self.size, self.stride, 1.0)
        if self.preset not in PRESETS:
            raise ConfigError(f"preset is {self.preset!r}; there is {', '.join(PRESETS)}")
        if not 1 <= self.channels <= MAX_DIM or not 0 <= self.kl < math.inf or self.steps < 0:
            raise ConfigError(
                f"channels {self.channels}, kl {self.kl}, steps {self.steps}: 1 to {MAX_DIM} "
                "channels, and neither of the others below 0"
            )


class KLAutoencoder:
    """Pictures to latents and back."""

    def __init__(self, codec: Codec, shift_D: Tensor, scale_D: Tensor, size: int) -> None:
        self.codec, self.size, self.stride = codec.eval().requires_grad_(False), size, codec.stride
        self.codec.encoder.double()
        self.shift_D, self.scale_D = shift_D, scale_D
        self.channels = len(shift_D)

    @torch.no_grad()
    def encode_latents(self, samples: Sequence[Image.Image]) -> list[np.ndarray]:
        """Float16 [h, w, D] of each picture's middle square; the same whatever the batch."""
        latents = []
        for start in range(0, len(samples), BATCH):
            part = [to_tensor(checked(x), self.size) for x in samples[start : start + BATCH]]
            z_BDhw = self.codec.encode(scale(torch.stack(part)).double())
            z_BhwD = (z_BDhw.permute(0, 2, 3, 1) - self.shift_D) / self.scale_D
            latents += list(z_BhwD.to(torch.float16).numpy())
        return latents

    @torch.no_grad()
    def decode_latents(self, latents_hwD: np.ndarray) -> Image.Image:
        """An RGB picture of `stride` pixels for each place, of any grid; SampleError for others."""
        z_hwD = torch.from_numpy(np.asarray(latents_hwD, np.float32))
        if z_hwD.ndim != 3 or z_hwD.shape[2] != self.channels or not z_hwD.numel():
            raise SampleError(f"latents {tuple(z_hwD.shape)}, not [h, w, {self.channels}]")
        if not torch.isfinite(z_hwD).all():
            raise SampleError("latents that are not finite")
        z_BDhw = (z_hwD * self.scale_D + self.shift_D).permute(2, 0, 1)[None]
        pixels = (self.codec.decode(z_BDhw)[0].clamp(-1, 1) + 1) * 127.5
        return Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())

    def save(self, folder: str | Path) -> None:
        """Write config.json and weights.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {f"codec.{n}": t.float() for n, t in self.codec.state_dict().items()}
        weights |= {"shift": self.shift_D, "scale": self.scale_D}
        (folder / WEIGHTS_FILE).write_bytes(weights_to_bytes(weights))
        config = {
            "kind": KIND,
            "size": self.size,
            "stride": self.stride,
            "channels": self.channels,
            "dim": self.codec.dim,
            "n_blocks": self.codec.n_blocks,
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote; ConfigError if it is damaged or something else."""
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            files = {WEIGHTS_FILE: (folder / WEIGHTS_FILE).read_bytes()}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: no KL autoencoder here: {error}") from None
        if not isinstance(config, Mapping) or config.get("kind") != KIND:
            raise ConfigError(f'{folder}/config.json: "kind" is not {KIND!r}')
        size, stride, _ = grid_of(config)
        channels, dim = (
            int(config_number(config, name, 1, MAX_DIM)) for name in ("channels", "dim")
        )
        with torch.device("meta"):  # so that only the file, and no config, allocates memory
            n_blocks = int(config_number(config, "n_blocks", 0, MAX_BLOCKS))
            codec = Codec(stride, channels, dim, n_blocks, 1, 1)
        wanted = {f"codec.{n}": t for n, t in codec.state_dict().items()}
        ndims = {n: t.ndim for n, t in wanted.items()} | {"shift": 1, "scale": 1}
        weights = weights_from_files(files, ndims)
        shift_D, scale_D = weights.pop("shift"), weights.pop("scale")
        shapes_fit = all(weights[n].shape == t.shape for n, t in wanted.items())
        if not shapes_fit or not len(shift_D) == len(scale_D) == channels or scale_D.min() <= 0:
            raise ConfigError(f"{folder}/{WEIGHTS_FILE} does not fit config.json")
        codec.load_state_dict(
            {n.removeprefix("codec."): t.float() for n, t in weights.items()}, assign=True
        )
        return cls(codec, shift_D.float(), scale_D.float(), size)


def fit_latents(
    samples: Iterable[Image.Image],
    options: LatentOptions,
    *,
    seed: int = 0,
    progress: Progress = ignore,
) -> KLAutoencoder:
    """Fit on pictures; SampleError if there are none."""
    thumbnails = [to_thumbnail(checked(image), options.size) for image in samples]
    if not thumbnails:
        raise SampleError("no pictures to fit a KL autoencoder on")
    generator = torch.Generator().manual_seed(seed)
    preset = PRESETS[options.preset]
    with threads(options.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        patches_NP = sample_patches(
            thumbnails, options.n_patches, options.size, options.stride, generator
        )
        codec = Codec(options.stride, options.channels, preset.dim, preset.n_blocks, 1, 1)
        codec.start_linear(patches_NP, torch.ones(options.channels))
        _train(codec, thumbnails, options, generator, progress)
        with torch.no_grad():
            crops = whole_crops(thumbnails[:1024], options.size).split(BATCH)
            z_ND = torch.cat(
                [codec.encode(scale(x)).permute(0, 2, 3, 1).flatten(0, 2) for x in crops]
            )
    return KLAutoencoder(codec, z_ND.mean(0), z_ND.std(0).clamp(min=1e-4), options.size)


def _train(
    codec: Codec,
    thumbnails: Sequence[Tensor],
    options: LatentOptions,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    log_variance_D = nn.Parameter(torch.full((options.channels,), LOG_VARIANCE))
    parameters = [*codec.parameters(), log_variance_D]
    optimizer = make_optimizer(parameters, WEIGHT_DECAY)
    for step in range(options.steps):
        set_rate(optimizer, step, options.steps)
        x_B3SS = scale(random_crops(thumbnails, BATCH, options.size, generator))
        mean_BDhw = codec.encode(x_B3SS)
        spread_D11 = (log_variance_D / 2).exp()[:, None, None]
        noise = torch.randn(mean_BDhw.shape, generator=generator)
        error = (codec.decode(mean_BDhw + spread_D11 * noise) - x_B3SS).square().mean()
        own_D = log_variance_D.exp() - 1 - log_variance_D
        kl = (mean_BDhw.square().mean() + own_D.mean()) / 2  # arXiv:1312.6114, appendix B
        optimizer.zero_grad()
        (error + options.kl * kl).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 10 == 0:
            message = f"training: squared error {error.item():.4f}, KL {kl.item():.2f} nats"
            progress(message, step / options.steps)
    progress("training", 1.0)
