"""What a tokenizer checks when it is loaded or decodes: weights, configuration values, ids."""

from collections.abc import Mapping

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ConfigError, SampleError

WEIGHTS_FILE = "weights.safetensors"


def weights_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; the same bytes for the same tensors."""
    return safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()})


def weights_from_files(files: Mapping[str, bytes], ndims: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of these names and numbers of dimensions; ConfigError if they are not there."""
    if WEIGHTS_FILE not in files:
        raise ConfigError(f"{WEIGHTS_FILE} is missing")
    try:
        tensors = safetensors.torch.load(files[WEIGHTS_FILE])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{WEIGHTS_FILE} is damaged: {error}") from error
    if {name: t.ndim for name, t in tensors.items()} != dict(ndims):
        found = {name: tuple(t.shape) for name, t in tensors.items()}
        raise ConfigError(f"{WEIGHTS_FILE} does not fit this tokenizer: it holds {found}")
    for name, tensor in tensors.items():
        if not tensor.numel() or not torch.isfinite(tensor).all():
            raise ConfigError(f"{WEIGHTS_FILE}: {name} is empty or holds values not finite")
    return tensors


def config_number(config: Mapping[str, object], name: str, low: float, high: float) -> float:
    """A number of config.json within bounds; ConfigError if it is missing or no such number."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"config.json: {name} is {value!r}, and should be in {low:g}..{high:g}")
    return value


def checked_ids(encoded: Encoded, vocab_size: int) -> Tensor:
    """The ids as int64 [n]; SampleError if one is outside 0 .. vocab_size - 1."""
    ids = np.asarray(encoded.ids).astype(np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise SampleError(f"ids {ids.min()}..{ids.max()} are not all in 0..{vocab_size - 1}")
    return torch.from_numpy(ids)
