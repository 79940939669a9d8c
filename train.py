"""The one training entrypoint: `plait train RUN.toml --data STREAM --out RUN [--key value]`.

A step is a pure function of its number: batch, noise and learning rate follow from (config, step).
A checkpoint therefore holds weights, optimizer moments, the step and the sums behind the next log
line, and a run that was killed anywhere and started again by the same command is bit-equal to one
that was not. On SIGTERM or Ctrl-C it finishes the step, saves and exits with 0.

A run's folder holds `config.toml`, `environment.json`, `vocabulary.json`, `tokenizers/`,
`metrics.jsonl`, `resumed.jsonl`, `skipped.jsonl` (models/training/guard.py) and
`checkpoints/step-N/`.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from plait.models import flops
from plait.models.decoder import Decoder
from plait.models.device import find_device
from plait.models.losses import Losses
from plait.models.plan import Plan
from plait.models.ranks import ALONE, Ranks
from plait.models.training import initialise, optimizer, parallel, run_store, schedule, speed
from plait.models.training.interrupt import Interrupt, Interrupted
from plait.models.training.objective import Objective
from plait.models.training.overview import overview
from plait.models.training.run_config import RunConfig, read_config
from plait.models.training.run_rows import rows_of
from plait.models.training.saver import Saver
from plait.models.training.utilisation import Utilisation
from plait.models.training.watch import Watch
from plait.pipeline.batch import Batch
from plait.pipeline.loader import Loader
from plait.pipeline.meters import Clock, Line, Meters, progress_line
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.pipeline.trackers import Trackers
from plait.pipeline.unigram import unigram_counts
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """`plait train`: options override the TOML file or preset that stands first."""
    with parallel.processes() as ranks:
        _run(ranks.of_first(lambda: read_config(argv)), ranks)
    return 0


def _run(config: RunConfig, ranks: Ranks) -> None:
    run = Run(config, ranks)
    if config.dry_run:
        print(run.describe())
    else:
        run.train()


class Run:
    """A run: its model, optimizer and data, at some step; one process's part of it."""

    def __init__(self, config: RunConfig, ranks: Ranks = ALONE) -> None:
        if not config.data:
            raise ConfigError("no data: name a stream with --data STREAM (see `plait shard`)")
        if not config.out and not config.dry_run:
            raise ConfigError("no output: name the run's folder with --out RUN")
        self.config, self.ranks = config, ranks
        self.folder = Path(config.out)
        self.device = parallel.place(find_device(config.device), ranks)
        self.streams = [Stream(path) for path in config.data]
        self.held_out = [Stream(path) for path in config.validation.data]
        self.vocabulary = Vocabulary.merge([stream.tokenizers for stream in self.streams])
        self.objective = Objective(config.objective, self.vocabulary.modalities)
        rows = self._rows("train")
        self.loader = Loader(
            rows,
            batch_size=config.rows.batch_size,
            rank=ranks.rank,
            world_size=ranks.size,
            prepare=self._prepare,
        )
        torch.manual_seed(config.seed)
        self.model = Decoder(config.model, self.vocabulary, ranks.group).to(self.device)
        parallel.distribute(self.model, config.parallel, ranks)
        self.optimizer = optimizer.Optimizer(self.model, config.optimizer)
        speed.apply(self.model, config.speed, self.device)
        self.utilisation = Utilisation(self.model, ranks.size)
        self.meters = Meters(self.vocabulary.modalities)
        self.watch = Watch(
            config.guard,
            self.model,
            self.optimizer,
            self.loader,
            total=ranks.sum,
            first=ranks.first,
        )
        self.interrupt = Interrupt(self.device)
        self.step = 0
        self.unreported: Line = {}
        """The line of the last step while it is still to be written, after a validation."""

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
        with (
            Saver(self.folder, keep=c.checkpoint.keep, best=c.checkpoint.best) as saver,
            contextlib.closing(iter(self.loader)) as batches,
            self._trackers() as trackers,
            self.interrupt,
        ):
            saved = self.step
            try:
                while self.step < steps or self.unreported:
                    if not self.unreported:
                        self.interrupt.check()
                        lr = self._train_step(batches, self._due(self.step + 1))
                        self.unreported, saved = self._line(lr, clock), None
                    loss = self._report(clock, trackers) if self.unreported else None
                    if self.step == steps or self.step % c.checkpoint.every == 0:
                        self._save(saver, loss)
                        saved = self.step
            except Interrupted:
                if saved is None:
                    self._save(saver, None)
            saver.wait(last=True)
        if self.step < steps or self.unreported:
            print(f"stopped at step {self.step} of {steps}; the same command goes on from there")
            return
        print(f"done: {self.folder}\nnext: plait inspect {self.folder}")

    def _line(self, lr: float, clock: Clock) -> Line:
        """The figures of a step, where one is to be logged."""
        if not self._due(self.step):
            return {}
        rate = clock.line(self.meters.window_tokens, self.step)
        rate |= self.utilisation.line(rate["tokens_per_s"] or 0.0)
        line = {"step": self.step, "lr": lr, **self.meters.line(), **rate}
        return line | self.watch.line(lr, experts=self.config.log.experts)

    def _due(self, step: int) -> bool:
        """Whether a step has a line."""
        log = self.config.log
        return step == self.steps or self._validates(step) or step % log.every == 0

    def _validates(self, step: int) -> bool:
        """Whether there is a validation after a step."""
        c = self.config
        due = step == self.steps or step % c.validation.every == 0
        return due and (c.validation.share > 0 or bool(self.held_out))

    def _report(self, clock: Clock, trackers: Trackers | None) -> float | None:
        """Validate where it is due, and log the step; gives the validation's loss.

        Interrupted leaves the line as it was, to be saved and reported by the resumed run.
        """
        line = self.unreported | (self.validate() if self._validates(self.step) else {})
        self._log(line, clock, trackers)
        self.unreported = {}
        return line.get("validation/loss")

    @property
    def steps(self) -> int:
        """Steps of the run: those asked for, or fewer where it ends with a stream."""
        whole = self.loader.steps
        asked = self.config.steps
        if whole is None:
            return asked
        return min(asked, self.step + (whole - self.loader.step) // self.config.rows.accumulate)

    def _train_step(self, batches: Iterator[tuple[Batch, Plan]], logged: bool = False) -> float:
        """One optimizer step, which may have a line; returns the learning rate that it used."""
        c = self.config
        share = schedule.lr_share(self.step, self.steps, c.optimizer)
        micro_batches = [next(batches) for _ in range(c.rows.accumulate)]
        plans = [plan for _, plan in micro_batches]
        targets = self.objective.targets(plans, self.ranks.numbers) or 1.0
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        self.model.train()
        self.optimizer.zero_grad()
        self.watch.begin()
        parts: list[tuple[Batch, Losses]] = []
        for number, (batch, plan) in enumerate(micro_batches, 1):
            parallel.reduce_now(self.model, last=number == len(micro_batches))
            losses = self._losses(batch, plan)
            (self.objective.total(losses) / targets).backward()
            parts.append((batch, losses))
        norm = self.optimizer.clip()
        self.step += 1
        if self.watch.accepts(self.step, parts, norm, self.folder, logged=logged):
            self.optimizer.step(share)
            for batch, losses in parts:
                self.meters.add(batch, losses.sum_M, losses.count_M, self.ranks.sum)
                self.utilisation.add(batch)
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
            self.interrupt.check()
            numbers = range(start, min(len(rows), start + size))
            batch = parallel.own_rows(rows.batch, numbers, size, self.ranks)
            losses = self._losses(batch, Plan.of(batch), leaking=leaking)
            meters.add(batch, losses.sum_M, losses.count_M, self.ranks.sum)
        return {f"validation/{name}": value for name, value in meters.losses().items()}

    def _rows(self, split: Literal["train", "validation"]) -> Rows:
        return rows_of(self.config, split, self.streams, self.held_out, self.vocabulary)

    def describe(self) -> str:
        """Parameters and FLOPs by modality, memory, and the data."""
        return overview(self.config, self.model, self.optimizer, len(self.loader.rows))

    def _trackers(self) -> contextlib.AbstractContextManager[Trackers | None]:
        """Where figures go, on the first rank."""
        if not self.ranks.first:
            return contextlib.nullcontext()
        c = self.config
        return Trackers(self.folder, c.log, self.step, dataclasses.asdict(c))

    def _log(self, line: Line, clock: Clock, trackers: Trackers | None) -> None:
        if trackers is not None:
            trackers.log(line)
        print(progress_line(line, self.vocabulary.modalities, self.steps), flush=True)
        self.meters.clear()
        clock.restart()

    def _open_folder(self) -> None:
        """Start a new run's folder, or take up the run that it holds."""
        newest = self.ranks.of_first(lambda: run_store.open_folder(self.folder, self.config))
        if newest is not None:
            self._load(newest)
            if self.ranks.first:
                run_store.go_on(self.folder, self.step, reported=not self.unreported)
            return
        counts = self.ranks.of_first(
            lambda: unigram_counts(self.streams, self.vocabulary, self.loader.rows.weights)
        )
        self.model.set_prior(torch.from_numpy(counts))
        about = {
            "preset": self.config.preset,
            "parameters": flops.count_parameters(self.model),
            "device": str(self.device),
        }
        if self.config.init.source:
            report = initialise.begin_with(self.model, self.config.init)
            print("\n".join(report.lines()))
            about["init"] = dataclasses.asdict(report)
        if self.ranks.first:
            run_store.describe(self.folder, about, self.streams, self.vocabulary)

    def _save(self, saver: Saver, validation_loss: float | None) -> None:
        state = {
            "loader": self.loader.state_dict(),
            "meters": self.meters.state(),
            "watch": self.watch.state(),
            "step": self.step,
            "unreported": self.unreported,
            "validation_loss": validation_loss,
        }
        saver.save(self.model, self.optimizer, state)

    def _load(self, folder: Path) -> None:
        state = run_store.load(folder, self.model, self.optimizer)
        self.loader.load_state_dict(state["loader"], new_weights=True)
        meters = state["meters"]
        self.meters = Meters(**{**meters, "modalities": tuple(meters["modalities"])})
        self.watch.load_state(state.get("watch", {}))
        self.step = state["step"]
        self.unreported = state["unreported"]


if __name__ == "__main__":
    from plait.pipeline.cli import run

    sys.exit(run("train", sys.argv[1:]))
