"""A training run's folder as `train.py` writes it; `pipeline/run_folder.py` reads what it tells.

`config.toml`, `environment.json`, `vocabulary.json` and `tokenizers/` are written when a run
begins; `checkpoints/step-N/` appears whole or not at all. `metrics.jsonl` holds no step twice: what
is past the checkpoint that a run goes on from is cut off, and trained again.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from plait.models import checkpoint
from plait.models.decoder import Decoder
from plait.models.optimizer import Optimizer
from plait.models.run_config import RunConfig
from plait.pipeline import config as toml
from plait.pipeline.environment import describe_environment
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError, ResumeError


def open_folder(folder: Path, config: RunConfig, may_change: Sequence[str]) -> Path | None:
    """The newest checkpoint of the run in the folder, or None where one begins.

    Raises ConfigError where the folder holds something else, ResumeError where it holds a run whose
    configuration differs in a key that does not start with one of `may_change`.
    """
    path = folder / "config.toml"
    if not path.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty and not a run; name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        old = toml.build(RunConfig, toml.read_toml(path), str(path))
        _check_same(folder, old, config, tuple(may_change))
    _write(path, toml.to_toml(config))
    newest = checkpoint.newest_checkpoint(folder)
    if newest is None:
        _drop_lines_after(folder / "metrics.jsonl", 0)
    return newest


def go_on(folder: Path, step: int) -> None:
    """Note that the run was taken up at this step."""
    _drop_lines_after(folder / "metrics.jsonl", step)
    with (folder / "resumed.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "time": round(time.time())}) + "\n")


def describe(
    folder: Path, about: Mapping[str, object], streams: Sequence[Stream], vocabulary: Vocabulary
) -> None:
    """Write what a new run needs besides its checkpoints."""
    _write(folder / "vocabulary.json", vocabulary.to_json())
    for stream in streams:
        for info in stream.tokenizers:
            name = vocabulary.name_of(info.fingerprint)
            source = stream.tokenizer_folder(info.name)
            shutil.copytree(source, folder / "tokenizers" / name, dirs_exist_ok=True)
    data = {"data": {stream.url: stream.fingerprint for stream in streams}}
    environment = {**about, **data, **describe_environment()}
    _write(folder / "environment.json", json.dumps(environment, indent=2))


def save(folder: Path, model: Decoder, optimizer: Optimizer, state: dict) -> None:
    """Write checkpoints/step-N, as a whole or not at all; `state` are JSON values, with `step`."""
    whole = folder / "checkpoints" / f"step-{state['step']}"
    temporary = whole.with_name(f".{whole.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.save(model, temporary)
    save_file(optimizer.state_tensors(), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    for file in temporary.iterdir():
        _sync(file)
    shutil.rmtree(whole, ignore_errors=True)
    temporary.rename(whole)
    _sync(whole.parent)


def drop_oldest(folder: Path, keep: int) -> None:
    """Keep so many of the newest checkpoints; 0 keeps all."""
    for old in checkpoint.checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old)


def load(folder: Path, model: Decoder, optimizer: Optimizer) -> dict:
    """Put back the weights and moments of a checkpoint; what was given to `save` as its state."""
    checkpoint.load_into(model, folder)
    optimizer.load_state_tensors(load_file(folder / "optimizer.safetensors"))
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def _check_same(folder: Path, old: RunConfig, new: RunConfig, may_change: tuple[str, ...]) -> None:
    changed = [
        f"{name} was {before!r}, now {now!r}"
        for name, (before, now) in toml.differences(old, new).items()
        if not name.startswith(may_change)
    ]
    if changed:
        what = "; ".join(changed)
        raise ResumeError(f"{folder} holds another run: {what}. Name another --out.")


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines that the checkpoint stands for; later steps will be trained again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that was cut when the run died
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    _write(path, "".join(kept))


def _write(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
