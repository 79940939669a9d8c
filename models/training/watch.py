"""What a run tells of itself beside its losses, and the guard's place in a step.

Sums of what layers note stay on the device until a line is due; norms by part are taken only in
steps that have a line. A step without one costs an addition for each figure, and one transfer of a
few numbers after `Optimizer.clip`, which waited for the device already. Over several ranks losses
and counts of tokens are those of all, in one message a step.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plait.models.decoder import Decoder
from plait.models.losses import Losses
from plait.models.training.expert_loads import loads
from plait.models.training.guard import Fault, Guard, GuardConfig
from plait.models.training.norms import norms
from plait.models.training.optimizer import Optimizer
from plait.pipeline.batch import Batch
from plait.pipeline.loader import Loader
from plait.pipeline.meters import Line
from plait.tokenizers.errors import PlaitError

NAMED = 5
"""Documents that an error names; skipped.jsonl has them all."""


class Watch:
    """Sums since the last line, and the guard; its state is part of a checkpoint.

    A step calls `begin` before its passes and `accepts` after `Optimizer.clip`. Over several ranks
    `total` adds up their tensors, and only the `first` writes.
    """

    def __init__(
        self,
        config: GuardConfig,
        model: Decoder,
        optimizer: Optimizer,
        loader: Loader,
        *,
        total: Callable[[Tensor], Tensor] = Tensor.detach,
        first: bool = True,
    ) -> None:
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self._total, self._first = total, first
        self.guard = Guard(config, model.vocabulary.modalities)
        self._means: dict[str, tuple[Tensor, int]] = {}
        self._tallies: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._clipped = 1.0
        self._before: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Remember what a training pass moves besides weights: the routers' thresholds."""
        self._norms = {}
        self._before = [(buffer, buffer.clone()) for buffer in self.model.blocks.buffers()]

    def accepts(
        self,
        step: int,
        parts: Sequence[tuple[Batch, Losses]],
        norm: float,
        folder: Path,
        *,
        logged: bool,
    ) -> bool:
        """Whether step number `step` should move the weights; if not, RUN/skipped.jsonl says why.

        `parts` are its micro-batches, `norm` what `clip` gave; `logged` says that a line follows.
        Raises PlaitError where too many were skipped.
        """
        all_losses = [losses for _, losses in parts]
        counted = {
            "sums": torch.stack([losses.sum_M.detach() for losses in all_losses]),
            "counts": torch.stack([losses.count_M for losses in all_losses]),
        }
        for name in all_losses[0].tallies:
            counted[name] = torch.stack([losses.tallies[name] for losses in all_losses]).sum(0)
        counted = _shaped(self._total(_flat(counted)), counted)
        sums, counts = counted.pop("sums").tolist(), counted.pop("counts").tolist()
        fault = self.guard.judge(sums, counts, norm)
        if fault is None:
            self._add(all_losses, counted)
            self._norms = norms(self.model) if logged else {}
            self._clipped = self.optimizer.clipped
            return True
        for buffer, before in self._before:
            buffer.copy_(before)
        self._skip(step, fault, [parts[i][0].step for i in fault.batches], folder)
        return False

    def line(self, lr: float, *, experts: bool = True) -> Line:
        """The window's figures, with or without those of single experts; the next one begins."""
        means = {name: total / n for name, (total, n) in self._means.items()}
        tensors = {**means, **self._norms, **self._tallies}
        shaped = _shaped(_flat(tensors).cpu(), tensors) if tensors else {}
        values = {name: tensor.numpy() for name, tensor in shaped.items()}
        single = {name: float(values[name]) for name in (*means, *self._norms)}
        unclipped = {k: single[k] / self._clipped for k in self._norms if k.startswith("grad_")}
        found: Line = {**single, **unclipped}
        found |= loads(values, self.model, experts)
        peaks, table = self.optimizer.peaks, self.optimizer.table
        found |= {f"lr/{name}": lr * p / self.optimizer.config.lr for name, p in peaks.items()}
        if table is not None:
            found["memory_slots_ever_read"] = float((table.reads_R > 0).float().mean())
            if self._norms:
                found["grad_norm/values"] = self.optimizer.values_norm
        self._means, self._tallies, self._norms = {}, {}, {}
        return {**found, **self._position(), "skipped": self.guard.total}

    def state(self) -> dict[str, object]:
        """As JSON values."""
        means = {name: (float(total), n) for name, (total, n) in self._means.items()}
        tallies = {name: total.tolist() for name, total in self._tallies.items()}
        return {"means": means, "tallies": tallies, "guard": self.guard.state()}

    def load_state(self, state: Mapping[str, dict]) -> None:
        """Put back what `state` gave; a checkpoint of before there was a watch has none."""
        device = self.model.embedding.device

        def tensor(value: object) -> Tensor:
            return torch.tensor(value, dtype=torch.float64, device=device)

        means, tallies = state.get("means", {}), state.get("tallies", {})
        self._means = {name: (tensor(total), n) for name, (total, n) in means.items()}
        self._tallies = {name: tensor(total) for name, total in tallies.items()}
        guard = state.get("guard", {})
        self.guard = Guard(self.guard.config, self.guard.modalities, **guard)

    def _add(self, all_losses: Sequence[Losses], tallies: Mapping[str, Tensor]) -> None:
        for losses in all_losses:
            for name, value in losses.statistics.items():
                total, n = self._means.get(name, (0.0, 0))
                self._means[name] = (total + value.double(), n + 1)
        for name, value in tallies.items():
            self._tallies[name] = self._tallies.get(name, 0.0) + value

    def _position(self) -> Line:
        """Epochs and tokens of each stream so far; a row counts as filled as its stream's mean."""
        rows = self.loader.rows
        epochs = rows.epochs(self.loader.step * self.loader.batch_size)
        found: Line = {}
        for name, epoch, tokens in zip(rows.names, epochs, rows.epoch_tokens, strict=True):
            found |= {f"epoch/{name}": epoch, f"stream_tokens/{name}": round(epoch * tokens)}
        return found

    def _skip(self, step: int, fault: Fault, batches: Sequence[int], folder: Path) -> None:
        """Write down what a skipped step held; PlaitError where the run should end."""
        ends = self.guard.skip(step)
        documents = [found for number in batches for found in self._documents(number)]
        line = {"step": step, "reason": fault.reason, "micro_batches": fault.batches}
        path = folder / "skipped.jsonl"
        if self._first:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "documents": documents}) + "\n")
        print(f"step {step}: skipped, {fault.reason}; its documents stand in {path}", flush=True)
        if ends is not None:
            first = ", ".join(f"{d['key']} ({d['shard']})" for d in documents[:NAMED])
            raise PlaitError(
                f"step {step}: {ends}, the last because {fault.reason}. It held {first}"
                f"{' and others' if len(documents) > NAMED else ''}; {path} names all of all. "
                f"Nothing of them was learned, and the last checkpoint stands in {folder}. If the "
                "documents are sound, try a lower --optimizer.lr in a new run; if these are no "
                "faults, a higher --guard.deviations, or 0"
            )

    def _documents(self, number: int) -> list[dict[str, str | int]]:
        """Where the documents of a batch come from."""
        rows, size = self.loader.rows, self.loader.batch_size
        found = []
        for row in range(number * size, (number + 1) * size):
            for at, document in rows.documents_of(row):
                stream = rows.streams[at]
                shard = int(np.searchsorted(stream.starts, document, "right")) - 1
                where = {"stream": stream.url, "shard": stream.shards[shard].name}
                key = stream.document(document).key
                found.append({**where, "key": key, "document": document, "row": row})
        return found


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def _shaped(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_flat` made one, by name and shape again."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    named = zip(like.items(), parts, strict=True)
    return {name: part.view(tensor.shape) for (name, tensor), part in named}
