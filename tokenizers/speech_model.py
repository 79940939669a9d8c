"""Features of one layer of a self-supervised speech model, from a local folder.

HuBERT (arXiv:2106.07447), wav2vec 2.0 (arXiv:2006.11477) and WavLM (arXiv:2110.13900), through
`transformers` (`pip install plait[pretrained]`). Nothing is fetched, no code of the folder is run,
and weights are read from safetensors only. The layers above the one that is read are dropped, and
what is left is saved in the tokenizer's folder, so that it needs the model's folder no more.

Sounds go through one by one, on one thread: padding in a batch, or another number of threads,
changes a model's features and so the units; batches of one length are not faster on a CPU (11 s of
sound a CPU second, alone or by 16, through six layers of HuBERT base). Sounds of more than half a
minute are cut into parts of that length, which bounds the memory of attention.

T frames, F width of the model.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from plait.tokenizers.checks import config_number, weights_to_bytes
from plait.tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = ("hubert", "wav2vec2", "wavlm")
CONFIG_FILE, MODEL_FILE = "model_config.json", "model.safetensors"
RATE_HZ = 16_000
SEGMENT_S = 30
"""Longest part that a model sees at once, whole seconds."""
MAX_LAYERS, MAX_WIDTH = 256, 65_536


class SpeechModel:
    """A model's bottom, up to `layer` (0 is what goes into the first layer)."""

    def __init__(self, model: nn.Module, config: "PretrainedConfig", layer: int, normalize: bool):
        self.model, self.config_of_model = model.eval().requires_grad_(False), config
        self.layer, self.normalize = layer, normalize
        self.width = int(config.hidden_size)
        self.stride, self.receptive = 1, 1
        for kernel, stride in reversed(
            list(zip(config.conv_kernel, config.conv_stride, strict=True))
        ):
            self.receptive = (self.receptive - 1) * stride + kernel
            self.stride *= stride
        if RATE_HZ % self.stride:
            raise ConfigError(f"a model of a frame each {self.stride} samples has no whole rate")
        self.rate_hz = RATE_HZ // self.stride

    @classmethod
    def from_folder(cls, folder: str | Path, layer: int) -> Self:
        """Read a Hugging Face folder; ConfigError if it holds no such model, or not that layer."""
        folder = Path(folder)
        config = _read_config(_read(folder / "config.json"), str(folder / "config.json"))
        if not (folder / MODEL_FILE).is_file():
            raise ConfigError(
                f"{folder}: {MODEL_FILE} is missing; other formats of weights can run code and are "
                "not read: convert them with the model's save_pretrained"
            )
        if not 0 <= layer <= config.num_hidden_layers:
            raise ConfigError(
                f"layer is {layer}: the model in {folder} has layers 0..{config.num_hidden_layers}"
            )
        from transformers import AutoModel

        try:
            model, info = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"{folder}: the model cannot be read: {error}") from error
        missing = set(info["missing_keys"]) - {"masked_spec_embed"}
        if missing:
            raise ConfigError(f"{folder}/{MODEL_FILE} lacks {sorted(missing)[0]} and other weights")
        kept = min(layer + 1, config.num_hidden_layers)  # the top layer's output is normalized
        model.encoder.layers = model.encoder.layers[:kept]
        config.num_hidden_layers = kept
        return cls(model, config, layer, _normalizes(folder))

    @torch.no_grad()
    def features(self, samples: Tensor) -> Tensor:
        """Hidden states [T, F] of sound [n] at 16 kHz; T as the model counts, at least 1."""
        if self.normalize:
            samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        missing = self.receptive - len(samples)
        samples = torch.nn.functional.pad(samples, (0, max(missing, 0)))
        step = SEGMENT_S * RATE_HZ
        overlap = self.receptive - self.stride
        starts = range(0, len(samples) - self.receptive + 1, step)
        with one_thread():
            parts = [self._states(samples[start : start + step + overlap]) for start in starts]
        return torch.cat(parts)

    def _states(self, samples: Tensor) -> Tensor:
        output = self.model(samples[None], output_hidden_states=True)
        return output.hidden_states[self.layer][0]

    def config(self) -> dict[str, object]:
        """What a tokenizer's config.json says of it."""
        return {"layer": self.layer, "normalize": int(self.normalize)}

    def files(self) -> dict[str, bytes]:
        """Configuration and weights, the same bytes each time."""
        text = json.dumps(self.config_of_model.to_dict(), indent=2, sort_keys=True) + "\n"
        return {CONFIG_FILE: text.encode(), MODEL_FILE: weights_to_bytes(self.model.state_dict())}

    @classmethod
    def from_files(cls, config: Mapping[str, object], files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if a file is missing or the weights are not the model's."""
        if CONFIG_FILE not in files or MODEL_FILE not in files:
            raise ConfigError(f"{CONFIG_FILE} or {MODEL_FILE} is missing")
        config_of_model = _read_config(files[CONFIG_FILE], CONFIG_FILE)
        from transformers import AutoModel

        try:
            with torch.device("meta"):  # takes no memory before the weights are known to fit
                model = AutoModel.from_config(config_of_model, attn_implementation="eager")
            model.load_state_dict(safetensors.torch.load(files[MODEL_FILE]), assign=True)
        except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise ConfigError(f"{MODEL_FILE} does not fit {CONFIG_FILE}: {error}") from error
        layer = int(config_number(config, "layer", 0, config_of_model.num_hidden_layers))
        normalize = bool(config_number(config, "normalize", 0, 1))
        return cls(model, config_of_model, layer, normalize)


def _read_config(data: bytes, where: str) -> "PretrainedConfig":
    try:
        values = json.loads(data)
        model_type = values.pop("model_type", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: not a model's configuration: {error}") from None
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"{where}: model_type is {model_type!r}, and should be one of {', '.join(MODEL_TYPES)}"
        )
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ConfigError("speech models need `pip install plait[pretrained]`") from None
    try:
        config = AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: not a model's configuration: {error}") from error
    _check_sizes(config, where)
    return config


def _check_sizes(config: "PretrainedConfig", where: str) -> None:
    """Keep what is made before the weights are read small."""
    for name, most in (("num_hidden_layers", MAX_LAYERS), ("hidden_size", MAX_WIDTH)):
        value = getattr(config, name)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{where}: {name} is {value!r}, and should be in 1..{most}")
    kernels, strides = list(config.conv_kernel), list(config.conv_stride)
    if not 1 <= len(kernels) == len(strides) <= 32 or not all(
        isinstance(size, int) and 1 <= size <= 4096 for size in kernels + strides
    ):
        raise ConfigError(f"{where}: convolutions of {kernels}, strides {strides}, make no model")


def _normalizes(folder: Path) -> bool:
    """Whether the model was trained on sounds of mean 0 and deviation 1."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return True
    try:
        return bool(json.loads(path.read_bytes()).get("do_normalize", True))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; --model takes a model's folder") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, so that sums are rounded alike however many there are outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
