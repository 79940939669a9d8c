"""The one training entrypoint: `plait train RUN.toml --data STREAM --out RUN [--key value]`.

A step is a pure function of its number: batch, noise and learning rate follow from (config, step).
A checkpoint therefore holds weights, optimizer moments, the step and the sums behind the next log
line, and a run that was killed anywhere and started again by the same command is bit-equal to one
that was not.

A run's folder holds `config.toml`, `environment.json`, `vocabulary.json`, `tokenizers/`,
`metrics.jsonl`, `resumed.jsonl` and `checkpoints/step-N/`.
"""

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from plait.models import flops, optimizer, run_store, speed
from plait.models.decoder import Decoder, Losses
from plait.models.plan import Plan
from plait.models.run_config import RunConfig, read_config
from plait.models.utilisation import Utilisation
from plait.pipeline.batch import Batch
from plait.pipeline.loader import Loader
from plait.pipeline.meters import Clock, Line, Meters, progress_line
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.pipeline.unigram import unigram_counts
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError, PlaitError

MAY_CHANGE = (
    *("steps", "data", "mixture.", "out", "log.", "checkpoint.", "speed."),
    *("validation.batches", "dry_run"),
)
"""Keys that a resumed run may be given anew: more `steps` stretch the learning-rate curve, `data`
may have moved (what it holds is compared by the loader's fingerprint), and another mixture holds
from the step at which the run resumes."""


def main(argv: Sequence[str]) -> int:
    """`plait train`: options override the TOML file or preset that stands first."""
    run = Run(read_config(argv))
    if run.config.dry_run:
        print(run.describe())
    else:
        run.train()
    return 0


class Run:
    """A run: its model, optimizer and data, at some step."""

    def __init__(self, config: RunConfig) -> None:
        if not config.data:
            raise ConfigError("no data: name a stream with --data STREAM (see `plait shard`)")
        if not config.out and not config.dry_run:
            raise ConfigError("no output: name the run's folder with --out RUN")
        self.config = config
        self.folder = Path(config.out)
        self.device = _device(config.device)
        self.streams = [Stream(path) for path in config.data]
        self.held_out = [Stream(path) for path in config.validation.data]
        self.vocabulary = Vocabulary.merge([stream.tokenizers for stream in self.streams])
        rows = self._rows("train")
        self.loader = Loader(rows, batch_size=config.rows.batch_size, prepare=self._prepare)
        torch.manual_seed(config.seed)
        self.model = Decoder(config.model, self.vocabulary).to(self.device)
        self.optimizer = optimizer.Optimizer(self.model, config.optimizer)
        speed.apply(self.model, config.speed, self.device)
        self.utilisation = Utilisation(self.model)
        self.meters = Meters(self.vocabulary.modalities)
        self.step = 0

    def train(self) -> None:
        """Train from the newest checkpoint, or from the start, to the last step."""
        c = self.config
        self._open_folder()
        print(self.describe())
        steps = self.steps
        if steps < c.steps:
            print(f"ends at step {steps} of {c.steps}, where a stream is exhausted")
        if self.step:
            print(f"resumed at step {self.step} of {steps}")
        clock = Clock(self.loader, self.step, steps)
        validating = c.validation.share > 0 or bool(self.held_out)
        with (
            contextlib.closing(iter(self.loader)) as batches,
            _board(self.folder if c.log.tensorboard else None) as board,
        ):
            while self.step < steps:
                lr = self._train_step(batches)
                last = self.step == steps
                validate = validating and (last or self.step % c.validation.every == 0)
                if last or validate or self.step % c.log.every == 0:
                    rate = clock.line(self.meters.window_tokens)
                    rate |= self.utilisation.line(rate["tokens_per_s"] or 0.0)
                    line = {"step": self.step, "lr": lr, **self.meters.line(), **rate}
                    if validate:
                        line |= self.validate()
                    self._log(line, clock, board)
                if last or self.step % c.checkpoint.every == 0:
                    self._save()
        print(f"done: {self.folder}\nnext: plait inspect {self.folder}")

    @property
    def steps(self) -> int:
        """Steps of the run: those asked for, or fewer where it ends with a stream."""
        whole = self.loader.steps
        asked = self.config.steps
        if whole is None:
            return asked
        return min(asked, self.step + (whole - self.loader.step) // self.config.rows.accumulate)

    def _train_step(self, batches: Iterator[tuple[Batch, Plan]]) -> float:
        """One optimizer step; returns the learning rate that it used."""
        c = self.config
        share = optimizer.lr_share(self.step, self.steps, c.optimizer)
        micro_batches = [next(batches) for _ in range(c.rows.accumulate)]
        targets = max(1, sum(int(batch.loss_mask_BT.sum()) for batch, _ in micro_batches))
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        self.model.train()
        self.optimizer.zero_grad()
        for batch, plan in micro_batches:
            losses = self._losses(batch, plan)
            (losses.sum_M.sum() / targets).backward()
            self.meters.add(batch, losses.sum_M, losses.count_M)
            self.utilisation.add(batch)
        norm = self.optimizer.clip()
        if not math.isfinite(norm):
            raise PlaitError(
                f"step {self.step + 1}: the gradient's norm is {norm}; nothing was updated, and the"
                f" last checkpoint stands in {self.folder}; try a lower --optimizer.lr"
            )
        self.optimizer.step(share)
        self.step += 1
        self.meters.grad_norm += norm
        self.meters.steps += 1
        return c.optimizer.lr * share

    def _prepare(self, batch: Batch) -> tuple[Batch, Plan]:
        """A batch and its plan, in the loader's thread; page-locked, so that no GPU is awaited."""
        plan = Plan.of(batch)
        pinned = self.device.type == "cuda"
        return (batch.pin_memory(), plan.pin_memory()) if pinned else (batch, plan)

    def _losses(self, batch: Batch, plan: Plan, *, leaking: bool = False) -> Losses:
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
        with autocast:
            batch = batch.to(self.device, non_blocking=True)
            plan = plan.to(self.device, non_blocking=True)
            return self.model.loss(batch, plan, leaking=leaking)

    @torch.no_grad()
    def validate(self) -> Line:
        """Losses over the first batches of the held-out documents; causal for every model.

        Beside them, where parts choose among all tokens in training, the same by that choice.
        """
        found = self._validate(leaking=False)
        if self.config.model.chooses:
            leaking = self._validate(leaking=True)
            found |= {f"leaking_{name}": value for name, value in leaking.items()}
        return found

    def _validate(self, *, leaking: bool) -> Line:
        rows, size = self._rows("validation"), self.config.rows.batch_size
        self.model.eval()
        meters = Meters(self.vocabulary.modalities)
        for start in range(0, min(len(rows), self.config.validation.batches * size), size):
            batch = rows.batch(range(start, min(len(rows), start + size)))
            losses = self._losses(batch, Plan.of(batch), leaking=leaking)
            meters.add(batch, losses.sum_M, losses.count_M)
        return {f"validation/{name}": value for name, value in meters.losses().items()}

    def _rows(self, split: Literal["train", "validation"]) -> Rows:
        c = self.config
        apart = split == "validation" and bool(self.held_out)
        share = 0.0 if self.held_out else c.validation.share
        return Rows(
            self.held_out if apart else self.streams,
            seq_len=c.rows.seq_len,
            packing=c.rows.packing,
            cut=c.rows.cut,
            seed=c.seed,
            **self._mixture() if split == "train" else {},
            split=split if share else "all",
            validation=share,
            vocabulary=self.vocabulary,
        )

    def _mixture(self) -> dict[str, Any]:
        m, rows = self.config.mixture, self.config.rows
        return {
            "weights": m.stretches(rows.batch_size * rows.accumulate),
            "temperature": m.temperature,
            "modality_shares": m.shares or None,
            "exhausted": m.exhausted,
        }

    def describe(self) -> str:
        """Parameters and FLOPs by modality, memory, and the data."""
        c = self.config
        sizes = flops.count_parameters(self.model)
        per_token = flops.flops_per_token(self.model, c.rows.seq_len)
        lines = [f"{c.preset or 'model'}: {sizes['total']:,} parameters on {self.device}"]
        for name, active in sizes["active"].items():
            lines.append(f"  {name:<7}{active:>13,} active {per_token[name]:>15,.0f} FLOPs a token")
        lines.append(f"  {16 * sizes['total'] / 2**20:,.0f} MiB of weights and optimizer state")
        step = c.rows.batch_size * c.rows.accumulate
        lines.append(
            f"  {len(self.loader.rows):,} rows of {c.rows.seq_len} an epoch, {step} a step"
        )
        return "\n".join(lines)

    def _log(self, line: Line, clock: Clock, board) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        left_s = clock.left_s(self.step)
        print(progress_line(line, self.vocabulary.modalities, self.steps, left_s), flush=True)
        if board is not None:
            for name, value in line.items():
                if name != "step" and value is not None:
                    board.add_scalar(name, value, self.step)
        self.meters.clear()
        clock.restart()

    def _open_folder(self) -> None:
        """Start a new run's folder, or take up the run that it holds."""
        newest = run_store.open_folder(self.folder, self.config, MAY_CHANGE)
        if newest is not None:
            self._load(newest)
            run_store.go_on(self.folder, self.step)
            return
        counts = unigram_counts(self.streams, self.vocabulary, self.loader.rows.weights)
        self.model.set_prior(torch.from_numpy(counts))
        about = {
            "preset": self.config.preset,
            "parameters": flops.count_parameters(self.model),
            "device": str(self.device),
        }
        run_store.describe(self.folder, about, self.streams, self.vocabulary)

    def _save(self) -> None:
        state = {
            "loader": self.loader.state_dict(),
            "meters": self.meters.state(),
            "step": self.step,
        }
        run_store.save(self.folder, self.model, self.optimizer, state)
        run_store.drop_oldest(self.folder, self.config.checkpoint.keep)

    def _load(self, folder: Path) -> None:
        state = run_store.load(folder, self.model, self.optimizer)
        self.loader.load_state_dict(state["loader"], new_weights=True)
        meters = state["meters"]
        self.meters = Meters(**{**meters, "modalities": tuple(meters["modalities"])})
        self.step = state["step"]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is none: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: this machine has no CUDA device; use --device cpu")
    return device


@contextlib.contextmanager
def _board(folder: Path | None):
    """A TensorBoard writer for the run's folder, or None."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("log.tensorboard needs `pip install 'plait[tensorboard]'`") from None
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield writer


if __name__ == "__main__":
    from plait.pipeline.cli import run

    sys.exit(run("train", sys.argv[1:]))
