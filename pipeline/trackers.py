"""Where a run's figures go: metrics.jsonl always, and the trackers that `[log]` asks for.

TensorBoard, Weights & Biases and trackio get the same lines under the same names, and a resumed run
goes on in the run that it had there. `RUN/trackers.json` holds that run's id and the last step that
was sent: steps after a checkpoint are trained again, but not sent again. TensorBoard needs no such
note, for it forgets what a newer file says anew.
"""

import contextlib
import importlib
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from plait.pipeline.line_file import LineFile
from plait.pipeline.whole_file import write_whole
from plait.tokenizers.errors import ConfigError

Line = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training."""

    every: int = 10
    """Steps between lines of metrics.jsonl and of the terminal."""
    experts: bool = True
    """Also the share of each expert of each block; off where that would be thousands of figures."""
    tensorboard: bool = False
    """Also write RUN/tensorboard (needs the extra plait[tensorboard])."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Also log to Weights & Biases (needs plait[wandb]); offline keeps all in RUN/wandb, to be sent
    by `wandb sync`."""
    trackio: bool = False
    """Also log to trackio (needs plait[trackio]), to the folder or server that it is set up for."""
    project: str = "plait"
    """The project's name at Weights & Biases and trackio."""


class Trackers:
    """All outputs of a run that is at `step`; `about` is its configuration, for those who show it.

    A context manager. Raises ConfigError, which says what to install, where a package is missing.
    """

    def __init__(
        self, folder: Path, config: LogConfig, step: int, about: Mapping[str, object]
    ) -> None:
        self.folder = folder
        self._metrics = LineFile(folder / "metrics.jsonl")
        self._board = _board(folder, step) if config.tensorboard else None
        self._runs: dict[str, _Run] = {}
        self._sent = _read(folder / "trackers.json")
        try:
            if config.wandb != "off":
                options = {"dir": str(folder), "mode": config.wandb}
                self._open("wandb", config.project, about, options)
            if config.trackio:
                self._open("trackio", config.project, about, {"embed": False})
        except BaseException:
            self.close()
            raise

    def log(self, line: Line) -> None:
        """Write a line, which has a `step`; no finite number is null, or left out by trackers."""
        numbers = {k: v if v is None or math.isfinite(v) else None for k, v in line.items()}
        self._metrics.append(json.dumps(numbers))
        step = int(line["step"] or 0)
        figures = {k: v for k, v in numbers.items() if k != "step" and v is not None}
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        new = {k: r for k, r in self._runs.items() if step > int(self._sent[k]["step"])}
        for name, run in new.items():
            run.log(figures, step=step)
            self._sent[name]["step"] = step
        if new:
            self._note()

    def close(self) -> None:
        """Send what is still to be sent."""
        for run in self._runs.values():
            run.finish()
        self._runs = {}
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(
        self, name: str, project: str, about: Mapping[str, object], options: Mapping[str, object]
    ) -> None:
        """Begin or go on with the run at one of the trackers; both have W&B's calls."""
        module = _import(name)
        entry = self._sent.setdefault(name, {"id": secrets.token_hex(4), "step": 0})
        self._note()
        options = {**options, "id": entry["id"]} if name == "wandb" else options
        # trackio knows a run by its name alone
        title = f"{self.folder.resolve().name}-{entry['id']}"
        options = {**options, "config": dict(about), "resume": "allow"}
        try:
            self._runs[name] = module.init(project=project, name=title, **options)
        except Exception as error:  # no account, no network: theirs are of many kinds
            raise ConfigError(
                f"log.{name}: no run could be opened there: {error}; log in, work offline "
                "(--log.wandb offline), or leave it out"
            ) from error

    def _note(self) -> None:
        write_whole(self.folder / "trackers.json", json.dumps(self._sent))


class _Run(Protocol):
    """What a run of W&B and one of trackio have in common."""

    def log(self, figures: dict[str, float | int], *, step: int) -> None: ...
    def finish(self) -> None: ...


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name != name.partition(".")[0] and name in ("wandb", "trackio"):
            raise
        extra = "tensorboard" if "." in name else name
        raise ConfigError(f"log.{extra} needs `pip install 'plait[{extra}]'`") from None


def _board(folder: Path, step: int):
    """A TensorBoard writer; readers forget the steps after `step` that an older file has."""
    module = _import("torch.utils.tensorboard")
    return module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _read(path: Path) -> dict[str, dict[str, str | int]]:
    with contextlib.suppress(OSError, ValueError):  # none yet, or cut: a run with a new id
        return json.loads(path.read_text(encoding="utf-8"))
    return {}
