"""Pictures to tensors: the middle rectangle that a tokenizer sees, and crops to fit one on.

Only thumbnails, small uint8 pictures, are kept in memory for a fit. B pictures, S pixels a side.
"""

import math
from collections.abc import Sequence

import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from torchvision.transforms.v2 import CenterCrop, Resize
from torchvision.transforms.v2.functional import pil_to_tensor, resize

ZOOM = 1.5
"""A thumbnail's short side over the size of a training crop: crops differ by that much in scale."""
LONGEST = 4.0
"""Pictures longer than this many short sides are cut: a thumbnail must not be of any length."""
WHOLE = 0.3
"""Share of training crops that span the short side, as `to_tensor` does."""


def to_tensor(image: Image, size: int) -> Tensor:
    """The middle square of a picture, uint8 [3, size, size]."""
    return to_rectangle(image, size, size)


def to_rectangle(image: Image, height: int, width: int) -> Tensor:
    """The largest middle part of this shape, resized, uint8 [3, height, width]."""
    scale = min(image.height / height, image.width / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = round((image.width - wide) / 2), round((image.height - tall) / 2)
    middle = _rgb(image).crop((left, top, left + wide, top + tall))
    return pil_to_tensor(middle.resize((width, height), Resampling.BILINEAR))


def to_thumbnail(image: Image, size: int) -> Tensor:
    """A whole picture, or most of a very long one, uint8 [3, H, W] of short side ZOOM * size."""
    short = round(ZOOM * size)
    width, height = image.size
    longest = math.ceil(LONGEST * min(width, height))
    middle = CenterCrop((min(height, longest), min(width, longest)))(_rgb(image))
    return pil_to_tensor(Resize(short, antialias=True)(middle))


def whole_crops(thumbnails: Sequence[Tensor], size: int) -> Tensor:
    """The middle squares of thumbnails, uint8 [B, 3, S, S]."""
    side = round(ZOOM * size)
    squares = torch.stack([CenterCrop(side)(t) for t in thumbnails])
    return resize(squares, [size, size], antialias=True)


def random_crops(
    thumbnails: Sequence[Tensor], count: int, size: int, generator: torch.Generator
) -> Tensor:
    """Squares of random thumbnails, places and scales, half of them mirrored, [B, 3, S, S]."""
    crops = []
    for which, scale, top, left, mirror, whole in torch.rand(
        count, 6, generator=generator
    ).tolist():
        thumbnail = thumbnails[int(which * len(thumbnails))]
        height, width = thumbnail.shape[1:]
        short = min(height, width)
        side = short if whole < WHOLE else round(size + (short - size) * scale)
        top, left = int(top * (height - side + 1)), int(left * (width - side + 1))
        crop = thumbnail[:, top : top + side, left : left + side]
        crop = resize(crop, [size, size], antialias=True)
        crops.append(crop.flip(-1) if mirror < 0.5 else crop)
    return torch.stack(crops)


def scale(pixels: Tensor) -> Tensor:
    """Uint8 0..255 to float32 -1..1."""
    return pixels.float() / 127.5 - 1


def _rgb(image: Image) -> Image:
    return image if image.mode == "RGB" else image.convert("RGB")
