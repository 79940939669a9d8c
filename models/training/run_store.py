"""A training run's folder as `train.py` writes it; `pipeline/run_folder.py` reads what it tells.

`config.toml`, `environment.json`, `vocabulary.json` and `tokenizers/` are written when a run
begins; saver.py writes `checkpoints/step-N/`. `metrics.jsonl` and `skipped.jsonl` hold no step
twice: what is past the checkpoint that a run goes on from is cut off, and trained again.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.distributed as dist

from plait.models import checkpoint, tensor_files
from plait.models.decoder import Decoder
from plait.models.training import saver
from plait.models.training.optimizer import Optimizer
from plait.models.training.run_config import RunConfig
from plait.pipeline import config as toml
from plait.pipeline.environment import describe_environment
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.pipeline.whole_file import write_whole
from plait.tokenizers.errors import ConfigError, ResumeError

MAY_CHANGE = (
    *("steps", "data", "mixture.", "out", "log.", "guard.", "checkpoint.", "parallel."),
    *("speed.", "validation.batches", "dry_run", "optimizer.cooldown"),
)
"""Keys that a resumed run may be given anew: more `steps` stretch the learning-rate curve, but
for a constant one (schedule.py), which may also be given its cooldown when the time comes; `data`
may have moved (what it holds is compared by the loader's fingerprint), and another mixture holds
from the step at which the run resumes."""


def open_folder(folder: Path, config: RunConfig) -> Path | None:
    """The newest checkpoint of the run in the folder, or None where one begins.

    Raises ConfigError where the folder holds something else, ResumeError where it holds a run whose
    configuration differs in a key that does not start with one of MAY_CHANGE.
    """
    path = folder / "config.toml"
    if not path.is_file() and any(not f.name.endswith(".writing") for f in folder.glob("*")):
        raise ConfigError(f"{folder}: not empty and not a run; name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        old = toml.build(RunConfig, toml.read_toml(path), str(path))
        _check_same(folder, old, config)
    write_whole(path, toml.to_toml(config))
    saver.clear(folder)
    newest = checkpoint.newest_checkpoint(folder)
    if newest is None:
        _drop_lines_after(folder / "metrics.jsonl", 0)
        _drop_lines_after(folder / "skipped.jsonl", 0)
    return newest


def go_on(folder: Path, step: int, *, reported: bool = True) -> None:
    """Note that the run was taken up at this step, which has a line already if `reported`."""
    _drop_lines_after(folder / "metrics.jsonl", step if reported else step - 1)
    _drop_lines_after(folder / "skipped.jsonl", step)
    with (folder / "resumed.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "time": round(time.time())}) + "\n")


def describe(
    folder: Path, about: Mapping[str, object], streams: Sequence[Stream], vocabulary: Vocabulary
) -> None:
    """Write what a new run needs besides its checkpoints."""
    write_whole(folder / "vocabulary.json", vocabulary.to_json())
    for stream in streams:
        for info in stream.tokenizers:
            name = vocabulary.name_of(info.fingerprint)
            source = stream.tokenizer_folder(info.name)
            shutil.copytree(source, folder / "tokenizers" / name, dirs_exist_ok=True)
    data = {"data": {stream.url: stream.fingerprint for stream in streams}}
    environment = {**about, **data, **describe_environment()}
    write_whole(folder / "environment.json", json.dumps(environment, indent=2))


def trained_on_streams(folder: Path) -> set[str]:
    """Fingerprints of the streams that a run was begun with; ConfigError if that cannot be read."""
    path = folder / "environment.json"
    try:
        return set(json.loads(path.read_text(encoding="utf-8"))["data"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}") from None


def load(folder: Path, model: Decoder, optimizer: Optimizer) -> dict:
    """Put back the weights and moments of a checkpoint; what was given to `save` as its state.

    All ranks call it. ConfigError names the files that are damaged, and which checkpoint is whole.
    """
    check(folder)
    checkpoint.load_into(model, folder)
    tensors = optimizer.state_tensors()
    tensor_files.read_into(tensors, folder, "optimizer")
    optimizer.load_state_tensors(tensors)
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def check(folder: Path) -> None:
    """ConfigError if a file of a run's checkpoint is not what was written; what to do then."""
    found = _faults(folder)
    if not found:
        return
    older = [p for p in checkpoint.checkpoints(folder.parent.parent) if p != folder]
    whole = next((p for p in reversed(older) if not _faults(p)), None)
    advice = "no other checkpoint is whole; name another --out to begin anew"
    if whole is not None:
        advice = f"{whole.name} is whole: remove {folder}, and the same command goes on from there"
    raise ConfigError(f"{'; '.join(found)}. {advice}")


def _faults(folder: Path) -> list[str]:
    """What is wrong with a folder's files; each rank reads some of them."""
    if not dist.is_initialized():
        return tensor_files.faults(folder)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found: list[list[str]] = [[] for _ in range(ranks)]
    dist.all_gather_object(found, tensor_files.faults(folder, rank, ranks))
    return list(dict.fromkeys(fault for own in found for fault in own))


def _check_same(folder: Path, old: RunConfig, new: RunConfig) -> None:
    changed = [
        f"{name} was {before!r}, now {now!r}"
        for name, (before, now) in toml.differences(old, new).items()
        if not name.startswith(MAY_CHANGE)
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
    write_whole(path, "".join(kept))
