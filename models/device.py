"""The device that `--device` names."""

import torch

from plait.tokenizers.errors import ConfigError


def find_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; ConfigError where the name is none, or it is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is none: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    return device
