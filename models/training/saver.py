"""Writes a run's checkpoints while training goes on, and keeps the newest and the best of them.

What is to be saved is copied into CPU memory, which is all that training waits for, and written by
a thread; the next save waits for the last one, so one copy is held at most. A checkpoint is written
under a name of its own, and renamed to `step-N` when every rank's files are on the disk: a killed
or failed save leaves nothing that could be taken for a checkpoint. A full disk is no reason to stop
but at the end. Over several ranks the threads talk to each other over a process group of their own.
"""

import contextlib
import functools
import json
import math
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from plait.models import checkpoint, tensor_files
from plait.models.decoder import Decoder
from plait.models.training.optimizer import Optimizer
from plait.pipeline.line_file import DISK_FAULTS
from plait.pipeline.whole_file import write_whole
from plait.tokenizers.errors import PlaitError


class Saver:
    """Saves checkpoints of one run; used as a context, which ends when all is written.

    Every rank makes one and calls each method at the same step; `keep` of the newest stay (0: all)
    and `best` of those with the lowest validation loss.
    """

    def __init__(self, run: Path, *, keep: int = 0, best: int = 0) -> None:
        self.run, self.keep, self.best = run, keep, best
        self.group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self.first = self.group is None or self.group.rank() == 0
        self.failure = ""
        """Why the last save failed; empty if it did not."""
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._flight: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        self.wait()

    def save(self, model: Decoder, optimizer: Optimizer, state: dict) -> None:
        """Copy it, and begin to write checkpoints/step-N; `state` are JSON values, with `step`."""
        self.wait()
        tensors = checkpoint.named_tensors(model) | optimizer.state_tensors()
        copies = tensor_files.staged(tensors)
        texts = {
            "config.json": checkpoint.config_text(model),
            "state.json": json.dumps(state, indent=2),
        }
        self._flight = self._thread.submit(self._write, state["step"], tensors, copies, texts)

    def _write(
        self,
        step: int,
        tensors: dict[str, Tensor],
        copies: dict[str, Tensor],
        texts: dict[str, str],
    ) -> None:
        whole = self.run / "checkpoints" / f"step-{step}"
        partial = whole.with_name(f".{whole.name}.writing")
        self.failure = ""
        try:
            finish = functools.partial(self._finish, partial, whole, texts)
            tensor_files.save(tensors, copies, partial, finish, self.group)
        except BaseException as error:
            if self.first:  # all ranks have written, or failed to
                shutil.rmtree(partial, ignore_errors=True)
            self.failure = self._explain(step, error)

    def _finish(
        self, partial: Path, whole: Path, texts: dict[str, str], checksums: dict[str, str]
    ) -> None:
        """On one rank, when all have written: the rest of the files, and the name that counts."""
        for name, text in texts.items():
            checksums[name] = tensor_files.write_synced(partial / name, text)
        listed = json.dumps(checksums, indent=2)
        tensor_files.write_synced(partial / tensor_files.CHECKSUMS, listed)
        tensor_files.sync(partial)
        if whole.exists():
            _remove(whole)
        partial.rename(whole)
        tensor_files.sync(whole.parent)
        try:
            self._drop()
        except OSError as error:
            self._warn(f"checkpoints that are no longer kept could not be removed: {error}")

    def wait(self, *, last: bool = False) -> None:
        """Wait until the save in flight, if there is one, stands as a checkpoint or has failed.

        PlaitError if it was the `last` one and found no space.
        """
        if self._flight is not None:
            flight, self._flight = self._flight, None
            flight.result()
        if last and self.failure:
            raise PlaitError(f"{self.failure}; free space, and the same command goes on from there")

    def _explain(self, step: int, error: BaseException) -> str:
        """What a full disk means for the run; any other error is raised."""
        causes = [error]
        if isinstance(error, CheckpointException):
            causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if not isinstance(cause, OSError) or cause.errno not in DISK_FAULTS:
                raise cause
        newest = checkpoint.newest_checkpoint(self.run)
        stands = f"{newest.name} stands" if newest else "there is none before it"
        text = f"the checkpoint of step {step} was not written: {causes[0]}; {stands}"
        self._warn(text)
        return text

    def _warn(self, text: str) -> None:
        if self.first:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def _drop(self) -> None:
        """Remove what is neither new nor good, and note in best.json what is best."""
        found = checkpoint.checkpoints(self.run)
        losses = {path: _validation_loss(path) for path in found}
        ranked = [path for path in found if losses[path] < math.inf]
        ranked.sort(key=losses.__getitem__)
        kept = {*ranked[: self.best], *(found[-self.keep :] if self.keep else found)}
        for path in found:
            if path not in kept:
                _remove(path)
        if ranked:
            best = {"checkpoint": ranked[0].name, "validation/loss": losses[ranked[0]]}
            write_whole(self.run / "checkpoints" / "best.json", json.dumps(best), synced=True)


def clear(run: Path) -> None:
    """Remove what a save or removal left that was killed."""
    for path in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; one that is killed at it leaves no half of it by that name."""
    path = path.rename(path.with_name(f".{path.name}.removed"))
    shutil.rmtree(path)


def _validation_loss(path: Path) -> float:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        loss = float(json.loads((path / "state.json").read_text())["validation_loss"])
        return loss if math.isfinite(loss) else math.inf
    return math.inf
