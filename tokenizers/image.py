"""Pictures as grids of codes: a convolutional FSQ autoencoder, and patch k-means as its baseline.

Both turn the middle square of a picture, resized to `size` pixels, into (size / stride)^2 codes of
one codebook. `ConvFSQ` begins where patch k-means ends (image_network.py), so it is the better one
at equal bits from its first training steps; `PatchKMeans` is fitted in seconds, and its codes are
nothing but patches.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.base import Encoded, Progress, Tokenizer, ignore
from plait.tokenizers.checks import (
    WEIGHTS_FILE,
    checked_ids,
    config_number,
    weights_from_files,
    weights_to_bytes,
)
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState
from plait.tokenizers.image_fit import sample_patches, threads, train
from plait.tokenizers.image_metrics import psnr, ssim
from plait.tokenizers.image_network import Autoencoder
from plait.tokenizers.kmeans import kmeans
from plait.tokenizers.pictures import scale, to_tensor, to_thumbnail
from plait.tokenizers.quantize import CodeUse
from plait.tokenizers.sampling import choose
from plait.tokenizers.topographic import fit_map

Method = Literal["fsq", "patches"]
MAX_SIZE, MAX_STRIDE, MAX_CODES, MAX_DIM, MAX_BLOCKS = 4096, 64, 65_536, 4096, 64
BATCH = 16
"""Pictures that are encoded at once."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Turning pictures into grids of codes."""

    method: Method = "fsq"
    """`fsq`: convolutional autoencoder around finite scalar quantization; `patches`: k-means."""
    size: int = 64
    """Pixels a side; pictures are resized to it by their short side and cut to the middle."""
    stride: int = 8
    """Pixels a side of one code's patch; a picture has (size / stride)^2 tokens."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each axis of the FSQ grid; either method has their product of codes."""
    dim: int = 256
    """Width of the decoder of method `fsq`."""
    n_blocks: int = 4
    """Residual blocks of that decoder."""
    steps: int = 1500
    """Training steps of method `fsq`, each on 16 crops."""
    n_patches: int = 60_000
    """Patches that the codes are laid out on, a random choice."""
    max_images: int = 20_000
    """Pictures that are used, a random choice; each takes about 40 kB of memory at 64 pixels."""
    threads: int = 2
    """Threads of a fit, whatever the machine has: the weights' last bits depend on it."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"method is {self.method!r}; there is {', '.join(get_args(Method))}")
        _check_grid(self.size, self.stride)
        if min(self.levels, default=0) < 2 or math.prod(self.levels) > MAX_CODES:
            raise ConfigError(
                f"levels are {self.levels}: each 2 or more, {MAX_CODES} codes at most"
            )
        limits = {"dim": MAX_DIM, "n_blocks": MAX_BLOCKS, "steps": 10**9, "threads": 1024}
        for name, highest in limits.items():
            lowest = 0 if name in ("n_blocks", "steps") else 1
            if not lowest <= getattr(self, name) <= highest:
                raise ConfigError(f"{name} is {getattr(self, name)}, not in {lowest}..{highest}")
        for name in ("n_patches", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, and should be 1 or more")


class _PictureTokenizer(Tokenizer):
    """What both methods share: the picture's square, the grid, and pixels to a picture."""

    modality = "image"
    splittable = False

    def __init__(self, size: int, stride: int, vocab_size: int) -> None:
        self.size, self.stride, self.vocab_size = size, stride, vocab_size
        self.width = size // stride
        self.span_length = self.width**2

    def encode_batch(self, samples: Sequence[Image.Image]) -> list[Encoded]:
        """Codes row by row, uint16; the picture's margins beyond its middle square are lost."""
        encoded = []
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            pixels = torch.stack([to_tensor(_checked(image), self.size) for image in batch])
            ids = self.encode_pixels(pixels).flatten(1).numpy().astype(np.uint16)
            encoded += [Encoded(ids=row, width=self.width) for row in ids]
        return encoded

    def decode(self, encoded: Encoded) -> Image.Image:
        """An RGB picture of `size` pixels; SampleError if the ids are not one picture's."""
        ids = checked_ids(encoded, self.vocab_size)
        if len(ids) != self.span_length:
            raise SampleError(f"{len(ids)} ids; a picture has {self.span_length}")
        x_13SS = self.decode_ids(ids.view(1, self.width, self.width))
        pixels = ((x_13SS[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    @abstractmethod
    def encode_pixels(self, pixels_B3SS: Tensor) -> Tensor:
        """Uint8 pictures [B, 3, S, S] to ids int64 [B, rows, columns]."""

    @abstractmethod
    def decode_ids(self, ids_Bhw: Tensor) -> Tensor:
        """Ids to pictures float32 [B, 3, S, S], values about -1..1."""


class ConvFSQ(_PictureTokenizer):
    """A convolutional autoencoder around finite scalar quantization (the default)."""

    def __init__(self, model: Autoencoder, size: int) -> None:
        super().__init__(size, model.encoder.stride, model.fsq.codebook_size)
        self.model = model.eval()

    def encode_pixels(self, pixels_B3SS: Tensor) -> Tensor:
        """Codes of the nearest points of the FSQ grid."""
        return self.model.encode(scale(pixels_B3SS))

    @torch.no_grad()
    def decode_ids(self, ids_Bhw: Tensor) -> Tensor:
        """The decoder's output."""
        return self.model.decode(ids_Bhw)

    def config(self) -> dict[str, object]:
        """The network's dimensions."""
        decoder = self.model.decoder
        return {
            "size": self.size,
            "stride": self.stride,
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
        size, stride = _grid_of(config)
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
        return cls(model, size)


class PatchKMeans(_PictureTokenizer):
    """Each patch is the nearest of the centroids [K, 3 stride^2], values -1..1: the baseline."""

    def __init__(self, centroids_KP: Tensor, size: int, stride: int) -> None:
        super().__init__(size, stride, len(centroids_KP))
        self.centroids_KP = centroids_KP

    def encode_pixels(self, pixels_B3SS: Tensor) -> Tensor:
        """The nearest centroids."""
        patch_BPhw = pixel_unshuffle(scale(pixels_B3SS), self.stride)
        patch_BhwP = patch_BPhw.permute(0, 2, 3, 1)
        ids_N = nearest_code(patch_BhwP.flatten(0, 2), self.centroids_KP)
        return ids_N.view(patch_BhwP.shape[:3])

    def decode_ids(self, ids_Bhw: Tensor) -> Tensor:
        """The centroids side by side."""
        return pixel_shuffle(self.centroids_KP[ids_Bhw].permute(0, 3, 1, 2), self.stride)

    def config(self) -> dict[str, object]:
        """Size and stride."""
        return {"size": self.size, "stride": self.stride}

    def files(self) -> dict[str, bytes]:
        """The centroids."""
        return {WEIGHTS_FILE: weights_to_bytes({"centroids": self.centroids_KP})}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if the centroids are not of the stride's size."""
        size, stride = _grid_of(config)
        centroids_KP = weights_from_files(files, {"centroids": 2})["centroids"].float()
        if centroids_KP.shape[1] != 3 * stride**2 or len(centroids_KP) > MAX_CODES:
            raise ConfigError(
                f"{WEIGHTS_FILE}: centroids {tuple(centroids_KP.shape)}, not {stride}"
            )
        return cls(centroids_KP, size, stride)


def fit(
    samples: Iterable[Image.Image],
    options: FitOptions,
    *,
    seed: int = 0,
    progress: Progress = ignore,
    state: FitState = KEPT_NOWHERE,
) -> "ConvFSQ | PatchKMeans":
    """Fit on pictures; SampleError if there are none."""
    thumbnails = choose(
        (to_thumbnail(_checked(image), options.size) for image in samples),
        lambda _: 1,
        options.max_images,
        seed=seed,
        progress=lambda message, _: progress(message, 0.0),
    )
    if not thumbnails:
        raise SampleError("no pictures to fit an image tokenizer on")
    generator = torch.Generator().manual_seed(seed)
    with threads(options.threads):
        patches_NP = sample_patches(
            thumbnails, options.n_patches, options.size, options.stride, generator
        )
        if options.method == "patches":
            codes = math.prod(options.levels)
            centroids_KP = kmeans(patches_NP, codes, seed=seed, progress=progress)
            return PatchKMeans(centroids_KP, options.size, options.stride)
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
        )
    return ConvFSQ(model, options.size)


def evaluate(tokenizer: ConvFSQ | PatchKMeans, held_out: Iterable[Image.Image]) -> dict[str, float]:
    """Quality of decoded pictures (mean over pictures), use of the codes, and bits."""
    psnr_db, similarity, ids = [], [], []
    for image in held_out:
        (encoded,) = tokenizer.encode_batch([image])
        original = to_tensor(image, tokenizer.size)[None]
        decoded = to_tensor(tokenizer.decode(encoded), tokenizer.size)[None]
        psnr_db.append(psnr(decoded, original).item())
        similarity.append(ssim(decoded, original).item())
        ids.append(encoded.ids.astype(np.int64))
    if not ids:
        raise SampleError("no pictures to evaluate an image tokenizer on")
    use = CodeUse.of(torch.from_numpy(np.concatenate(ids)), tokenizer.vocab_size)
    bits = len(ids[0]) * math.log2(tokenizer.vocab_size)
    return {
        "images": len(ids),
        "psnr": sum(psnr_db) / len(ids),
        "ssim": sum(similarity) / len(ids),
        "codes_used": use.codes_used,
        "codes_dead": use.codes_dead,
        "perplexity": use.perplexity,
        "tokens_per_image": len(ids[0]),
        "bits_per_token": math.log2(tokenizer.vocab_size),
        "bits_per_image": bits,
        "bits_per_pixel": bits / tokenizer.size**2,
    }


def _checked(image: object) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise SampleError(f"the image tokenizer takes PIL pictures, not {type(image).__name__}")
    if not min(image.size):
        raise SampleError(f"a picture of {image.width}x{image.height} pixels")
    return image


def _check_grid(size: int, stride: int) -> None:
    if not 1 <= stride <= MAX_STRIDE:
        raise ConfigError(f"stride is {stride}, and should be in 1..{MAX_STRIDE}")
    if not stride <= size <= MAX_SIZE or size % stride:
        raise ConfigError(f"size is {size}: a multiple of stride {stride}, at most {MAX_SIZE}")


def _grid_of(config: Mapping[str, object]) -> tuple[int, int]:
    stride = int(config_number(config, "stride", 1, MAX_STRIDE))
    size = int(config_number(config, "size", 1, MAX_SIZE))
    _check_grid(size, stride)
    return size, stride


def _levels_of(config: Mapping[str, object]) -> tuple[int, ...]:
    levels = config.get("levels")
    if not isinstance(levels, list) or not all(type(n) is int and n >= 2 for n in levels):
        raise ConfigError(f"config.json: levels is {levels!r}, and should be whole numbers above 1")
    if not levels or math.prod(levels) > MAX_CODES:
        raise ConfigError(f"config.json: levels {levels} give more than {MAX_CODES} codes, or none")
    return tuple(levels)
