"""The options of `plait fit image`."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from plait.tokenizers.early_stop import check_patience
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.image_grid import MAX_BLOCKS, MAX_CODES, MAX_DIM, check_grid

Method = Literal["fsq", "patches", "kl"]
QuantizerName = Literal["fsq", "vq", "simvq", "rvq", "lfq", "bsq"]
PresetName = Literal["tiny", "small", "base"]
Pixels = Literal["l2", "l1"]
Gradient = Literal["rotation", "straight"]
NAMES = {"method": Method, "preset": PresetName, "pixels": Pixels, "gradient": Gradient}


class Preset(NamedTuple):
    """Size of an autoencoder that is trained end to end."""

    dim: int
    n_blocks: int


PRESETS: dict[str, Preset] = {
    "tiny": Preset(64, 2),
    "small": Preset(128, 3),
    "base": Preset(256, 4),
}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Turning pictures into grids of codes, or of latents."""

    method: Method = "fsq"
    """`fsq`: convolutional autoencoder around finite scalar quantization; `patches`: k-means;
    `kl`: an autoencoder of continuous latents, whose ids are all 0."""
    quantizer: QuantizerName | None = None
    """Instead of `method`: train encoder, decoder and this quantizer together by gradient."""
    preset: PresetName = "small"
    """Size of the encoder and the decoder of --quantizer and of method `kl`."""
    size: int = 64
    """Pixels a side; pictures are resized to it by their short side and cut to the middle."""
    stride: int = 8
    """Pixels a side of one code's patch; a picture has (size / stride)^2 tokens."""
    aspect: float = 1.0
    """Above 1: keep pictures' shapes up to this ratio of sides, in about as many tokens."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each axis of the FSQ grid; either method has their product of codes."""
    codes: int = 1024
    """Codes of a codebook of --quantizer but for `fsq`; a power of two for `lfq` and `bsq`."""
    codebooks: int = 4
    """Codebooks of --quantizer rvq: tokens at each place of the grid."""
    gradient: Gradient = "straight"
    """How gradients pass the codes of vq and rvq: `straight` through, or turned as the code is."""
    channels: int = 16
    """Numbers at each place of the grid, of method `kl`."""
    kl_weight: float = 1e-4
    """Weight of its KL term, in nats a number, beside the error of pixels -1..1."""
    dim: int = 256
    """Width of the decoder of method `fsq`."""
    n_blocks: int = 4
    """Residual blocks of that decoder."""
    steps: int = 1500
    """Training steps, each on 16 crops; method `patches` has none."""
    patience: int = 0
    """End training after so many looks (50 in all) at pictures that are set aside without a lower
    error, and keep the best weights; 0 makes all steps."""
    pixels: Pixels = "l2"
    """Error of a pixel that --quantizer and `kl` train for: squared or absolute."""
    perceptual: float = 0.0
    """Weight of a perceptual loss: of features with --perceptual-weights, else of gradients."""
    perceptual_weights: str = ""
    """A safetensors file with the weights of torchvision's VGG-16 for the perceptual loss."""
    adversarial: float = 0.0
    """Weight of a patch discriminator's loss, in the second half of the steps; it makes errors
    larger, so patience may keep weights from before."""
    n_patches: int = 60_000
    """Patches that the codes are laid out on, a random choice."""
    max_images: int = 20_000
    """Pictures that are used, a random choice; each takes about 40 kB of memory at 64 pixels."""
    threads: int = 2
    """Threads of a fit, whatever the machine has: the weights' last bits depend on it."""

    def __post_init__(self) -> None:
        for name, known in NAMES.items():
            if getattr(self, name) not in get_args(known):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; there is {', '.join(get_args(known))}"
                )
        self._check_quantizer()
        check_patience(self.patience)
        check_grid(self.size, self.stride, self.aspect)
        if min(self.levels, default=0) < 2 or math.prod(self.levels) > MAX_CODES:
            raise ConfigError(
                f"levels are {self.levels}: each 2 or more, {MAX_CODES} codes at most"
            )
        limits = {
            "dim": MAX_DIM,
            "channels": MAX_DIM,
            "n_blocks": MAX_BLOCKS,
            "steps": 10**9,
            "threads": 1024,
        }
        for name, highest in limits.items():
            lowest = 0 if name in ("n_blocks", "steps") else 1
            if not lowest <= getattr(self, name) <= highest:
                raise ConfigError(f"{name} is {getattr(self, name)}, not in {lowest}..{highest}")
        for name in ("n_patches", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, and should be 1 or more")
        for name in ("perceptual", "adversarial", "kl_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, and should be 0 or more")

    def _check_quantizer(self) -> None:
        if self.gradient != "straight" and self.quantizer not in ("vq", "rvq"):
            raise ConfigError(f"gradient is {self.gradient}, for --quantizer vq or rvq")
        if self.quantizer is None:
            for name in ("perceptual", "adversarial", "perceptual_weights"):
                if getattr(self, name) and self.method != "kl":
                    raise ConfigError(f"{name} is for --quantizer or --method kl")
            return
        if self.quantizer not in get_args(QuantizerName):
            names = ", ".join(get_args(QuantizerName))
            raise ConfigError(f"quantizer is {self.quantizer!r}; there is {names}")
        if self.method != "fsq":
            raise ConfigError(f"quantizer is {self.quantizer}, so method {self.method} has no use")
        binary = self.quantizer in ("lfq", "bsq")
        if not 2 <= self.codes <= MAX_CODES or (binary and self.codes & (self.codes - 1)):
            raise ConfigError(
                f"codes is {self.codes}: 2..{MAX_CODES}, and a power of two for lfq and bsq"
            )
        if not 1 <= self.codebooks <= 16:
            raise ConfigError(f"codebooks is {self.codebooks}, and should be in 1..16")
