"""A model on disk: `model.safetensors` and `config.json` (configuration and vocabulary).

A run's checkpoints, which several ranks may have written (tensor_files.py, saver.py), hold the
same and more, and are read alike, whatever the number of ranks that read.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from plait.models import tensor_files
from plait.models.config import ModelConfig
from plait.models.decoder import VALUES, Decoder
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
    config.write_text(config_text(decoder), encoding="utf-8")
    for path in (weights, config):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(path.with_suffix(""))


def load(folder: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that `save` wrote; ConfigError where the folder is none or does not fit."""
    folder = Path(folder)
    config, vocabulary = _read_config(folder / "config.json")
    check_files(folder)
    with torch.device("meta"):
        decoder = Decoder(config, vocabulary)
    tensors = {k: torch.empty_like(v, device="cpu") for k, v in decoder.state_dict().items()}
    tensor_files.read_into(tensors, folder, "model")
    decoder.load_state_dict(tensors, assign=True)
    return decoder.to(device)


def load_into(decoder: Decoder, folder: str | Path) -> None:
    """Put the saved weights into a decoder that was made with the same configuration.

    It may be sharded (`fully_shard`, columns of memory values): each rank reads what it holds.
    """
    folder = Path(folder)
    config, vocabulary = _read_config(folder / "config.json")
    if (config, vocabulary) != (decoder.config, decoder.vocabulary):
        what = "configuration" if config != decoder.config else "vocabulary"
        raise ConfigError(f"{folder}/config.json: its {what} is not the model's")
    tensor_files.read_into(named_tensors(decoder), folder, "model")


def named_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Parameters and buffers by name; what a rank holds only a part of is a DTensor."""
    found = decoder.state_dict()
    if decoder.values is not None:
        found[VALUES] = decoder.values.whole(found[VALUES])
    return found


def check_files(folder: Path) -> None:
    """ConfigError that names the files which are not what was written, where sums were kept."""
    if (folder / tensor_files.CHECKSUMS).is_file() and (found := tensor_files.faults(folder)):
        raise ConfigError("; ".join(found))


def checkpoints(run: Path) -> list[Path]:
    """The folders `checkpoints/step-N` of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def newest_checkpoint(run: Path) -> Path | None:
    """The folder of a run's newest checkpoint, or None."""
    return next(reversed(checkpoints(run)), None)


def config_text(decoder: Decoder) -> str:
    """The content of `config.json`."""
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
