"""Published picture codecs (Chameleon, Emu3, Janus) behind the contract of every tokenizer.

A picture's short side is resized and the middle square kept, as Chameleon's own preparation does
(arXiv:2405.09818, section 2.1); means, deviations and the filter are those of the folder's
`preprocessor_config.json`. Janus's and Emu3's own preparations keep the whole picture, padded or of
any size: here every picture is one square grid. Pictures are encoded one by one on one thread, so
nothing can change a rounding; batches of 8 were slower (9.6 against 10.6 pictures of 128 pixels a
CPU second), as was a compiled encoder. Channels-last is 1.4 times as fast, but one of 51,200 ids
was not the library's.

Janus normalises its codebook when it decodes, the library not when it encodes: here both do, as
in LlamaGen (arXiv:2406.06525), from which it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plait.tokenizers.base import Encoded, Tokenizer
from plait.tokenizers.checks import WEIGHTS_FILE, checked_ids, config_number
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image_fit import threads
from plait.tokenizers.pretrained import Network, from_files

MAX_SIZE = 2048
LONGEST = 4
"""Pictures longer than this many short sides are cut first: no side may become of any length."""
SCALES = {
    "chameleon_vqgan": {"mean": 1.0, "std": 1.0, "rescale": 0.0078, "resample": 1},
    "emu3_vqgan": {"mean": 0.5, "std": 0.5, "rescale": 1 / 255, "resample": 3},
    "janus_vqgan": {"mean": 0.5, "std": 0.5, "rescale": 1 / 255, "resample": 3},
}
"""Where a folder has no preprocessor_config.json; resample is Pillow's number of the filter."""


class PretrainedImage(Tokenizer):
    """Pictures as the square grid of a published codec, rows first."""

    modality = "image"
    splittable = False

    def __init__(self, network: Network, settings: Mapping[str, object]) -> None:
        self.network = network
        self.size = int(config_number(settings, "size", 1, MAX_SIZE))
        self.resample = int(config_number(settings, "resample", 0, 5))
        self.rescale = config_number(settings, "rescale", 1e-9, 1)
        self.mean, self.std = _channels(settings, "mean"), _channels(settings, "std")
        if not self.std.all():
            raise ConfigError("config.json: std is 0 for a channel")
        self._model: Any = network.model
        codec = self._model.config
        self._vocab_from(codec)
        stride = 2 ** (len(codec.channel_multiplier) - 1)
        wanted = _fixed_size(self.network.kind, codec, stride)
        if self.size % stride or (wanted and self.size != wanted):
            should = f"{wanted}" if wanted else f"a multiple of {stride}"
            raise ConfigError(f"size is {self.size}, and should be {should} for this model")
        self.width = self.size // stride
        self.span_length = self.width**2
        if network.kind == "janus_vqgan":
            weight = self._model.quantize.embedding.weight
            weight.data = torch.nn.functional.normalize(weight.data, dim=-1)

    def _vocab_from(self, codec: object) -> None:
        name = "codebook_size" if self.network.kind == "emu3_vqgan" else "num_embeddings"
        self.vocab_size = self.codes = int(getattr(codec, name))

    @classmethod
    def from_network(cls, network: Network, processor: Mapping[str, object], size: int = 0) -> Self:
        """With the preparation that a folder names; `size` 0 for the model's usual one."""
        usual = SCALES[network.kind]
        codec: Any = network.model.config
        stride = 2 ** (len(codec.channel_multiplier) - 1)
        size = size or _fixed_size(network.kind, codec, stride) or 512 // stride * stride
        settings = {
            "size": size,
            "resample": processor.get("resample", usual["resample"]),
            "rescale": processor.get("rescale_factor", usual["rescale"]),
            "mean": processor.get("image_mean", [usual["mean"]] * 3),
            "std": processor.get("image_std", [usual["std"]] * 3),
        }
        return cls(network, settings)

    def encode_batch(self, samples: Sequence[Image.Image]) -> list[Encoded]:
        """Codes row by row, int32; what lies beyond a picture's middle square is lost."""
        with threads(1):
            return [self._encode(image) for image in samples]

    @torch.inference_mode()
    def _encode(self, image: Image.Image) -> Encoded:
        pixels_13SS = self.prepare(image)
        if self.network.kind == "emu3_vqgan":
            sizes = torch.tensor([[self.size, self.size]])
            ids = self._model.encode(pixels_13SS, image_sizes=sizes).image_tokens[0]
        else:
            ids = self._model.encode(pixels_13SS).image_tokens
        return Encoded(ids=ids.flatten().numpy().astype(np.int32), width=self.width)

    def prepare(self, image: Image.Image) -> Tensor:
        """What the network is given, float32 [1, 3, size, size]."""
        pixels_SS3 = np.asarray(self._square(image)).astype(np.float64) * self.rescale
        pixels_SS3 = (pixels_SS3.astype(np.float32) - self.mean) / self.std
        return torch.from_numpy(pixels_SS3.transpose(2, 0, 1)[None].astype(np.float32))

    def to_pixels(self, image: Image.Image) -> Tensor:
        """The middle square that the tokenizer sees, uint8 [3, size, size]."""
        return torch.from_numpy(np.array(self._square(image))).permute(2, 0, 1)

    def _square(self, image: Image.Image) -> Image.Image:
        if not isinstance(image, Image.Image) or not min(image.size):
            raise SampleError("the image tokenizer takes pictures of at least one pixel")
        return middle_square(image.convert("RGB"), self.size, self.resample)

    @property
    def decodes(self) -> bool:
        """Whether the library has the codec's decoder."""
        return hasattr(self._model, "decode")

    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> Image.Image:
        """An RGB picture of `size` pixels; ConfigError for Chameleon, of which the library has
        the encoder alone; SampleError if the ids are not one picture's.
        """
        if not self.decodes:
            raise ConfigError(
                f"the library has no decoder for {self.network.kind}: its ids cannot become "
                "pictures"
            )
        ids = checked_ids(encoded, self.vocab_size)
        if len(ids) != self.span_length:
            raise SampleError(f"{len(ids)} ids; a picture has {self.span_length}")
        grid = (1, self.width, self.width) if self.network.kind == "emu3_vqgan" else (1, -1)
        pixels_3SS = self._model.decode(ids.view(grid))[0].numpy()
        values = (pixels_3SS.transpose(1, 2, 0) * self.std + self.mean) / self.rescale
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))

    def config(self) -> dict[str, object]:
        """The preparation, and the library's configuration."""
        return {
            "size": self.size,
            "resample": self.resample,
            "rescale": self.rescale,
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
            "model": self.network.config,
        }

    def files(self) -> dict[str, bytes]:
        """The codec's tensors, as published."""
        return {WEIGHTS_FILE: self.network.weights}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if a value is missing or the weights do not fit."""
        return cls(from_files(config, files), config)


def middle_square(image: Image.Image, size: int, resample: int) -> Image.Image:
    """The short side resized to `size` pixels, and the middle of the long side kept."""
    width, height = image.size
    longest = LONGEST * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    image = image.crop((left, top, width - left, height - top))
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    image = image.resize((width, height), Image.Resampling(resample))
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _fixed_size(kind: str, codec: Any, stride: int) -> int | None:
    """Pixels a side that a model is made for; None where it takes any."""
    if kind == "chameleon_vqgan":
        return int(codec.resolution)
    if kind == "janus_vqgan":
        return int(codec.num_patches) * stride
    return None


def _channels(settings: Mapping[str, object], name: str) -> np.ndarray:
    """Three numbers, float32."""
    values = settings.get(name)
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise ConfigError(f"{name} is {values!r}, and should be three numbers")
    numbers = [config_number({name: value}, name, -1e4, 1e4) for value in values]
    return np.array(numbers, np.float32)
