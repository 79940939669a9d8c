"""What all image tokenizers share: pictures to grids of codes or latents, and back.

A tokenizer is made for squares of `size` pixels, (size / stride)^2 codes. With `aspect` above 1 a
picture gets, instead of a square, the rectangle of about as many codes that is nearest its own
shape, and no side more than `aspect` times the other: the columns are stored as `width`, and a
picture's length is no longer known in advance. B pictures, h w rows and columns, C codebooks.
"""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.checks import checked_ids, config_number
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.pictures import to_rectangle

MAX_SIZE, MAX_STRIDE, MAX_CODES, MAX_DIM, MAX_BLOCKS = 4096, 64, 65_536, 4096, 64
MAX_ASPECT = 8.0
BATCH = 16
"""Pictures that are encoded at once."""


class GridTokenizer(Tokenizer):
    """The picture's rectangle, batches by shape, and pixels to a picture."""

    modality = "image"
    splittable = False

    def __init__(
        self, size: int, stride: int, codes: int, *, codebooks: int = 1, aspect: float = 1.0
    ) -> None:
        self.size, self.stride, self.aspect = size, stride, aspect
        self.codes, self.codebooks = codes, codebooks
        self.vocab_size = codes * codebooks
        self.width = size // stride * codebooks
        self.grids = grids(size // stride, aspect)
        if len(self.grids) == 1:
            self.span_length = (size // stride) ** 2 * codebooks

    def to_pixels(self, image: Image.Image) -> Tensor:
        """What the tokenizer sees of a picture, uint8 [3, H, W]."""
        rows, columns = nearest_grid(self.grids, *checked(image).size)
        return to_rectangle(image, rows * self.stride, columns * self.stride)

    def encode_batch(self, samples: Sequence[Image.Image]) -> list[Encoded]:
        """Row by row; what lies beyond the rectangle is lost."""
        pixels = [self.to_pixels(image) for image in samples]
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, picture in enumerate(pixels):
            by_shape[tuple(picture.shape)].append(i)
        encoded: dict[int, Encoded] = {}
        for which in by_shape.values():
            for start in range(0, len(which), BATCH):
                part = which[start : start + BATCH]
                found = self.encode_grids(torch.stack([pixels[i] for i in part]))
                encoded |= dict(zip(part, found, strict=True))
        return [encoded[i] for i in range(len(samples))]

    def decode(self, encoded: Encoded) -> Image.Image:
        """An RGB picture; SampleError if the ids are not one picture's."""
        ids = checked_ids(encoded, self.vocab_size)
        x_13HW = self.decode_grid(encoded, ids, *self._shape(len(ids), encoded.width))
        pixels = ((x_13HW[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def _shape(self, length: int, width: int) -> tuple[int, int]:
        if self.span_length is not None:
            if length != self.span_length:
                raise SampleError(f"{length} ids; a picture has {self.span_length}")
            side = self.size // self.stride
            return side, side
        most = max(rows * columns for rows, columns in self.grids) * self.codebooks
        if not 0 < length <= most or width < 1 or length % width or width % self.codebooks:
            raise SampleError(f"{length} ids in rows of {width}: no picture of at most {most}")
        return length // width, width // self.codebooks

    @abstractmethod
    def encode_grids(self, pixels_B3HW: Tensor) -> list[Encoded]:
        """Uint8 pictures [B, 3, H, W] of one shape, each encoded."""

    @abstractmethod
    def decode_grid(self, encoded: Encoded, ids_N: Tensor, rows: int, columns: int) -> Tensor:
        """A picture float32 [1, 3, H, W], values about -1..1, of ids that were checked."""

    def grid_config(self) -> dict[str, object]:
        """Size, stride, and the aspect where it is not that of squares."""
        config: dict[str, object] = {"size": self.size, "stride": self.stride}
        return config | ({"aspect": self.aspect} if self.aspect > 1 else {})


class PictureTokenizer(GridTokenizer):
    """Pictures as codes; local id = level * K + code."""

    def allowed(self, position: int) -> range:
        """The codes of the level whose turn it is."""
        first = position % self.codebooks * self.codes
        return range(first, first + self.codes)

    def encode_grids(self, pixels_B3HW: Tensor) -> list[Encoded]:
        """Codes row by row, uint16 where they fit."""
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.int32
        offsets_C = torch.arange(self.codebooks) * self.codes
        ids_BhwC = self.encode_pixels(pixels_B3HW) + offsets_C
        width = ids_BhwC.shape[2] * self.codebooks
        rows = ids_BhwC.flatten(1).numpy().astype(dtype)
        return [Encoded(ids=ids, width=width) for ids in rows]

    def decode_grid(self, encoded: Encoded, ids_N: Tensor, rows: int, columns: int) -> Tensor:
        """An id of another level than its place asks for counts as its code."""
        return self.decode_ids(ids_N.view(1, rows, columns, self.codebooks) % self.codes)

    @abstractmethod
    def encode_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """Uint8 pictures [B, 3, H, W] to codes int64 [B, rows, columns, C]."""

    @abstractmethod
    def decode_ids(self, ids_BhwC: Tensor) -> Tensor:
        """Codes to pictures float32 [B, 3, H, W], values about -1..1."""


def grids(side: int, aspect: float) -> tuple[tuple[int, int], ...]:
    """Rows and columns of all rectangles of at most side^2 codes, as large as they can be.

    >>> grids(4, 2.0)
    ((3, 5), (4, 4), (5, 3))
    """
    found = set()
    for short in range(1, side + 1):
        long = side * side // short
        if long <= aspect * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def nearest_grid(shapes: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The grid whose shape is nearest a picture's, by the logarithm of width over height."""
    shape = math.log(width / height)
    return min(shapes, key=lambda grid: (abs(math.log(grid[1] / grid[0]) - shape), grid))


def checked(image: object) -> Image.Image:
    """The picture; SampleError if it is none or has no pixels."""
    if not isinstance(image, Image.Image):
        raise SampleError(f"the image tokenizer takes PIL pictures, not {type(image).__name__}")
    if not min(image.size):
        raise SampleError(f"a picture of {image.width}x{image.height} pixels")
    return image


def check_grid(size: int, stride: int, aspect: float) -> None:
    """ConfigError if the size is no multiple of the stride or a number is out of bounds."""
    if not 1 <= stride <= MAX_STRIDE:
        raise ConfigError(f"stride is {stride}, and should be in 1..{MAX_STRIDE}")
    if not stride <= size <= MAX_SIZE or size % stride:
        raise ConfigError(f"size is {size}: a multiple of stride {stride}, at most {MAX_SIZE}")
    if not 1 <= aspect <= MAX_ASPECT:
        raise ConfigError(f"aspect is {aspect}, and should be in 1..{MAX_ASPECT:g}")


def grid_of(config: Mapping[str, object]) -> tuple[int, int, float]:
    """Size, stride and aspect of a config.json."""
    stride = int(config_number(config, "stride", 1, MAX_STRIDE))
    size = int(config_number(config, "size", 1, MAX_SIZE))
    aspect = config_number({"aspect": 1.0, **config}, "aspect", 1, MAX_ASPECT)
    check_grid(size, stride, aspect)
    return size, stride, aspect
