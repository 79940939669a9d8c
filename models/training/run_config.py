"""A training run's configuration: one TOML file or preset, overridden by `--section.key value`.

Each part owns its own section: the model in config.py, the optimizer in optimizer.py; what is here
is what holds them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plait.models.config import ModelConfig
from plait.models.training.guard import GuardConfig
from plait.models.training.initialise import InitConfig
from plait.models.training.objective import ObjectiveConfig
from plait.models.training.optimizer import OptimizerConfig
from plait.models.training.parallel import ParallelConfig
from plait.models.training.speed import SpeedConfig
from plait.pipeline import config as toml
from plait.pipeline.trackers import LogConfig
from plait.tokenizers.errors import ConfigError

PRESETS = Path(__file__).resolve().parents[1] / "presets"


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How documents become batches."""

    seq_len: int = 512
    """Tokens in a row."""
    batch_size: int = 8
    """Rows in a micro-batch, of all processes together."""
    accumulate: int = 1
    """Micro-batches in a step."""
    packing: Literal["best_fit", "concat"] = "best_fit"
    """best_fit keeps documents and images whole; concat cuts at row ends and wastes nothing."""
    cut: tuple[str, ...] = ("text",)
    """Modalities whose documents best_fit may cut to fill a row; images never are."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Weights from some step on."""

    step: int
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """How often each stream of `data` comes; choose one of weights, schedule, temperature, shares.

    A resumed run may be given another choice, which holds from there on.
    """

    weights: tuple[float, ...] = ()
    """Shares of the rows, one a stream; by their size when empty."""
    temperature: float = 1.0
    """Shares by size to the power 1 / temperature: above 1, small streams come more often."""
    shares: dict[str, float] = field(default_factory=dict)
    """Wanted share of all tokens by modality, as `text 0.5 image 0.5`; names all that there are."""
    schedule: Annotated[tuple[Stretch, ...], tyro.conf.Suppress] = ()
    """Weights by step, in the TOML file alone: `schedule = [{step = 0, weights = [3, 1]}, ...]`."""
    exhausted: Literal["repeat", "stop", "error"] = "repeat"
    """What happens before a stream's first row comes again."""

    def __post_init__(self) -> None:
        given = {
            "weights": bool(self.weights),
            "temperature": self.temperature != 1,
            "shares": bool(self.shares),
            "schedule": bool(self.schedule),
        }
        names = [name for name, there in given.items() if there]
        if len(names) > 1:
            raise ConfigError(f"mixture: only one can be given of {', '.join(names)}")

    def stretches(self, rows_per_step: int) -> list[tuple[int, tuple[float, ...]]] | None:
        """(first row, weights) of the schedule or the weights; None if neither is given."""
        if self.weights:
            return [(0, self.weights)]
        return [(s.step * rows_per_step, s.weights) for s in self.schedule] or None


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss on documents that are never trained on."""

    share: float = 0.05
    """Share of the documents held out, chosen by the seed; 0 is off."""
    data: tuple[str, ...] = ()
    """Streams to validate on, in place of a share of the data (`plait shard --validation`)."""
    every: int = 100
    """Steps between validations; there is always one after the last step."""
    batches: int = 48
    """Batches of one validation, always the same ones; too few, and a rare modality is noise."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saved state."""

    every: int = 100
    """Steps between checkpoints; there is always one after the last step."""
    keep: int = 2
    """How many of the newest are kept; 0 keeps all."""
    best: int = 1
    """How many are kept besides for their validation loss, of those saved at a step at which there
    was a validation; `checkpoints/best.json` names the best one."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run; one TOML file, in which each option below is a key."""

    data: tuple[str, ...] = ()
    """One stream or more (folders that `plait shard` wrote, or their URLs)."""
    out: str = ""
    """The run's folder; if it holds a run already, that one is resumed."""
    preset: str = ""
    """Name of the file that the run started from."""
    steps: int = 300
    """Optimizer steps."""
    seed: int = 0
    """Of weights, order, validation split and noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; bf16 autocast on a GPU, fp32 on a CPU."""
    dry_run: bool = False
    """Print sizes and FLOPs by modality, and stop."""
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    def __post_init__(self) -> None:
        for name, value in {
            "steps": self.steps,
            "rows.seq_len": self.rows.seq_len,
            "rows.batch_size": self.rows.batch_size,
            "rows.accumulate": self.rows.accumulate,
            "validation.every": self.validation.every,
            "validation.batches": self.validation.batches,
            "checkpoint.every": self.checkpoint.every,
            "log.every": self.log.every,
        }.items():
            if value < 1:
                raise ConfigError(f"{name}: should be at least 1, not {value}")
        for name in ("keep", "best"):
            if getattr(self.checkpoint, name) < 0:
                raise ConfigError(f"checkpoint.{name}: should not be below 0")
        if not 0 <= self.validation.share < 1:
            raise ConfigError(f"validation.share: from 0 to below 1, not {self.validation.share}")


def read_config(argv: Sequence[str]) -> RunConfig:
    """The run's configuration: its file (or a preset's name), then the options."""
    names = sorted(p.stem for p in PRESETS.glob("*.toml"))
    first, *rest = argv or ["--help"]
    if first in ("-h", "--help"):
        print(f"The first argument is a TOML file or a preset: {', '.join(names)}.\n")
        tyro.cli(RunConfig, args=["--help"], prog="plait train RUN.toml")
    path = Path(first) if first.endswith(".toml") else PRESETS / f"{first}.toml"
    if not path.is_file():
        raise ConfigError(f"{first}: no such file or preset; the presets are {', '.join(names)}")
    table = toml.read_toml(path)
    config = toml.build(RunConfig, {"preset": path.stem, **table}, str(path))
    return tyro.cli(RunConfig, default=config, args=rest, prog=f"plait train {first}")
