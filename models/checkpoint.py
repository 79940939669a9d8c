"""A model on disk: `model.safetensors` and `config.json` (configuration and vocabulary)."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError

FORMAT = 1


def save(decoder: Decoder, folder: str | Path) -> None:
    """Write the folder that `load` reads; each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in decoder.state_dict().items()}
    weights = folder / "model.safetensors.partial"
    save_file(tensors, weights)
    config = folder / "config.json.partial"
    config.write_text(_config_text(decoder), encoding="utf-8")
    for path in (weights, config):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(path.with_suffix(""))


def load(folder: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that `save` wrote; ConfigError where the folder is none or does not fit."""
    folder = Path(folder)
    config, vocabulary = _read_config(folder / "config.json")
    with torch.device("meta"):
        decoder = Decoder(config, vocabulary)
    tensors = _read_tensors(folder / "model.safetensors", decoder)
    # Copies are aligned as torch's own memory is, without which a product's last bits may differ.
    decoder.load_state_dict({k: v.clone() for k, v in tensors.items()}, assign=True)
    return decoder.to(device)


def load_into(decoder: Decoder, folder: str | Path) -> None:
    """Put the saved weights into a decoder that was made with the same configuration."""
    folder = Path(folder)
    config, vocabulary = _read_config(folder / "config.json")
    if (config, vocabulary) != (decoder.config, decoder.vocabulary):
        what = "configuration" if config != decoder.config else "vocabulary"
        raise ConfigError(f"{folder}/config.json: its {what} is not the model's")
    decoder.load_state_dict(_read_tensors(folder / "model.safetensors", decoder))


def checkpoints(run: Path) -> list[Path]:
    """The folders `checkpoints/step-N` of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def newest_checkpoint(run: Path) -> Path | None:
    """The folder of a run's newest checkpoint, or None."""
    return next(reversed(checkpoints(run)), None)


def _read_tensors(path: Path, decoder: Decoder) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: the file is missing; it holds the model's weights") from None
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a whole safetensors file: {error}") from None
    check_tensors(decoder.state_dict(), tensors, str(path))
    return tensors


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """ConfigError that names the tensors which are missing, too many or of another shape."""
    faults = [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is not of this model" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            faults.append(f"{name} is {_describe(have)}, the configuration says {_describe(want)}")
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ConfigError(f"{where}: {'; '.join(sorted(faults)[:5])}{more}")


def _config_text(decoder: Decoder) -> str:
    content = {
        "format": FORMAT,
        "model": asdict(decoder.config),
        "vocabulary": json.loads(decoder.vocabulary.to_json()),
    }
    return json.dumps(content, indent=2) + "\n"


def _read_config(path: Path) -> tuple[ModelConfig, Vocabulary]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        number, table = content["format"], content["model"]
        vocabulary = Vocabulary.from_json(json.dumps(content["vocabulary"]))
    except FileNotFoundError:
        raise ConfigError(f"{path}: the file is missing; is this a model's folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a model's configuration: {error!r}") from None
    if number != FORMAT or not isinstance(table, dict):
        raise ConfigError(f"{path}: format {number!r}; this version reads format {FORMAT}")
    return ModelConfig.from_table(table, f"{path}: model"), vocabulary


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
