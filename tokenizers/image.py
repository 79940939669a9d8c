"""Pictures as grids of codes: a convolutional FSQ autoencoder, and patch k-means as its baseline.

Both turn the middle square of a picture, resized to `size` pixels, into (size / stride)^2 codes of
one codebook. `ConvFSQ` begins where patch k-means ends (image_network.py), so it is the better one
at equal bits from its first training steps; `PatchKMeans` is fitted in seconds, and its codes are
nothing but patches. Autoencoders trained end to end around another quantizer: image_codes.py.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.early_stop import set_aside
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState
from plait.tokenizers.image_codes import ConvCodes, fit_codes
from plait.tokenizers.image_fit import sample_patches, threads, train
from plait.tokenizers.image_grid import (
    MAX_BLOCKS,
    MAX_CODES,
    MAX_DIM,
    PictureTokenizer,
    checked,
    grid_of,
)
from plait.tokenizers.image_network import Autoencoder
from plait.tokenizers.image_options import FitOptions
from plait.tokenizers.image_report import evaluate
from plait.tokenizers.kmeans import kmeans
from plait.tokenizers.pictures import scale, to_thumbnail
from plait.tokenizers.sampling import choose
from plait.tokenizers.topographic import fit_map

__all__ = [
    "ConvCodes",
    "ConvFSQ",
    "FitOptions",
    "PatchKMeans",
    "evaluate",
    "fit",
]


class ConvFSQ(PictureTokenizer):
    """A convolutional autoencoder around finite scalar quantization (the default)."""

    def __init__(self, model: Autoencoder, size: int, aspect: float = 1.0) -> None:
        super().__init__(size, model.encoder.stride, model.fsq.codebook_size, aspect=aspect)
        self.model = model.eval()

    def encode_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes of the nearest points of the FSQ grid."""
        return self.model.encode(scale(pixels_B3HW))[..., None]

    @torch.no_grad()
    def decode_ids(self, ids_BhwC: Tensor) -> Tensor:
        """The decoder's output."""
        return self.model.decode(ids_BhwC[..., 0])

    def config(self) -> dict[str, object]:
        """The network's dimensions."""
        decoder = self.model.decoder
        return {
            **self.grid_config(),
            "levels": list(self.model.fsq.levels),
            "dim": decoder.embed.embedding_dim,
            "n_blocks": len(decoder.blocks),
        }

    def files(self) -> dict[str, bytes]:
        """The network's weights."""
        return {WEIGHTS_FILE: weights_to_bytes(self.model.state_dict())}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if configuration and weights do not fit each other."""
        size, stride, aspect = grid_of(config)
        levels, dim = _levels_of(config), int(config_number(config, "dim", 1, MAX_DIM))
        n_blocks = int(config_number(config, "n_blocks", 0, MAX_BLOCKS))
        names = Autoencoder([2], 1, 1, n_blocks, torch.zeros(2, 3)).state_dict()
        weights = weights_from_files(files, {name: t.ndim for name, t in names.items()})
        shape = tuple(weights["encoder.prototypes_KP"].shape)
        if shape != (math.prod(levels), 3 * stride**2):
            raise ConfigError(f"{WEIGHTS_FILE}: prototypes {shape} are not of {levels}, {stride}")
        model = Autoencoder(levels, stride, dim, n_blocks, weights["encoder.prototypes_KP"])
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigError(f"{WEIGHTS_FILE} does not fit config.json: {error}") from None
        return cls(model, size, aspect)


class PatchKMeans(PictureTokenizer):
    """Each patch is the nearest of the centroids [K, 3 stride^2], values -1..1: the baseline."""

    def __init__(self, centroids_KP: Tensor, size: int, stride: int, aspect: float = 1.0) -> None:
        super().__init__(size, stride, len(centroids_KP), aspect=aspect)
        self.centroids_KP = centroids_KP

    def encode_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """The nearest centroids."""
        patch_BPhw = pixel_unshuffle(scale(pixels_B3HW), self.stride)
        patch_BhwP = patch_BPhw.permute(0, 2, 3, 1)
        ids_N = nearest_code(patch_BhwP.flatten(0, 2), self.centroids_KP)
        return ids_N.view(*patch_BhwP.shape[:3], 1)

    def decode_ids(self, ids_BhwC: Tensor) -> Tensor:
        """The centroids side by side."""
        return pixel_shuffle(self.centroids_KP[ids_BhwC[..., 0]].permute(0, 3, 1, 2), self.stride)

    def config(self) -> dict[str, object]:
        """Size and stride."""
        return self.grid_config()

    def files(self) -> dict[str, bytes]:
        """The centroids."""
        return {WEIGHTS_FILE: weights_to_bytes({"centroids": self.centroids_KP})}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if the centroids are not of the stride's size."""
        size, stride, aspect = grid_of(config)
        centroids_KP = weights_from_files(files, {"centroids": 2})["centroids"].float()
        if centroids_KP.shape[1] != 3 * stride**2 or len(centroids_KP) > MAX_CODES:
            raise ConfigError(
                f"{WEIGHTS_FILE}: centroids {tuple(centroids_KP.shape)}, not {stride}"
            )
        return cls(centroids_KP, size, stride, aspect)


def fit(
    samples: Iterable[Image.Image],
    options: FitOptions,
    *,
    seed: int = 0,
    progress: Progress = ignore,
    state: FitState = KEPT_NOWHERE,
) -> PictureTokenizer:
    """Fit on pictures; SampleError if there are none."""
    thumbnails = choose(
        (to_thumbnail(checked(image), options.size) for image in samples),
        lambda _: 1,
        options.max_images,
        seed=seed,
        progress=lambda message, _: progress(message, 0.0),
    )
    if not thumbnails:
        raise SampleError("no pictures to fit an image tokenizer on")
    generator = torch.Generator().manual_seed(seed)
    thumbnails, aside = set_aside(thumbnails, options.patience)
    with threads(options.threads):
        patches_NP = sample_patches(
            thumbnails, options.n_patches, options.size, options.stride, generator
        )
        if options.quantizer is not None:
            return fit_codes(thumbnails, patches_NP, options, generator, seed, progress)
        if options.method == "patches":
            codes = math.prod(options.levels)
            centroids_KP = kmeans(patches_NP, codes, seed=seed, progress=progress)
            return PatchKMeans(centroids_KP, options.size, options.stride, options.aspect)
        prototypes_KP = fit_map(
            patches_NP, options.levels, progress=lambda message, done: progress(message, done / 8)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Autoencoder(
                options.levels, options.stride, options.dim, options.n_blocks, prototypes_KP
            )
        model.encoder.sharpen(patches_NP)
        model = train(
            model,
            thumbnails,
            options.size,
            options.steps,
            generator,
            progress=lambda message, done, **figures: progress(
                message, (1 + 7 * done) / 8, **figures
            ),
            state=state,
            aside=aside,
            patience=options.patience,
        )
    return ConvFSQ(model, options.size, options.aspect)


def _levels_of(config: Mapping[str, object]) -> tuple[int, ...]:
    levels = config.get("levels")
    if not isinstance(levels, list) or not all(type(n) is int and n >= 2 for n in levels):
        raise ConfigError(f"config.json: levels is {levels!r}, and should be whole numbers above 1")
    if not levels or math.prod(levels) > MAX_CODES:
        raise ConfigError(f"config.json: levels {levels} give more than {MAX_CODES} codes, or none")
    return tuple(levels)
