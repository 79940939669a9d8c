"""What a training run counts between two lines of `metrics.jsonl`, and the line a person reads."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

import torch
from torch import Tensor

from plait.pipeline.batch import Batch
from plait.pipeline.loader import Loader

Line = dict[str, float | int | None]
TIMED = (
    *("tokens_per_s", "data_wait", "step_s", "left_s", "flops_per_s", "mfu"),
    "peak_memory_bytes",
)
"""Figures of a line that no other run repeats."""


@dataclass
class Meters:
    """Sums since the last line, and tokens since the first step; saved with a checkpoint."""

    modalities: tuple[str, ...]
    loss: list[float] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    window_tokens: int = 0
    positions: int = 0
    pieces: int = 0
    cut: int = 0
    grad_norm: float = 0.0
    steps: int = 0
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = [0] * len(self.modalities)
            self.clear()

    def clear(self) -> None:
        """Begin a new window."""
        self.loss = [0.0] * len(self.modalities)
        self.targets = [0] * len(self.modalities)
        self.window_tokens = self.positions = self.pieces = self.cut = self.steps = 0
        self.grad_norm = 0.0

    def add(
        self,
        batch: Batch,
        sum_M: Tensor,
        count_M: Tensor,
        total: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> None:
        """Take in a batch and its summed loss and number of targets, by target modality.

        `total` adds up the numbers of all processes that have a part of the batch.
        """
        begins_BT = batch.document_BT >= 0
        begins_BT[:, 1:] &= batch.document_BT[:, 1:] != batch.document_BT[:, :-1]
        cut = (batch.position_BT[begins_BT] > 0).sum()
        pieces = torch.tensor([batch.tokens_BT.numel(), begins_BT.sum(), cut])
        columns = (sum_M, count_M, batch.modality_masks.flatten(1).sum(1), pieces)
        flat = torch.cat([x.detach().to(sum_M.device, torch.float64) for x in columns])
        *by_modality, found = total(flat).split([len(sum_M)] * 3 + [3])
        for m, (loss, targets, tokens) in enumerate(torch.stack(by_modality, 1).tolist()):
            self.loss[m] += loss
            self.targets[m] += int(targets)
            self.tokens[m] += int(tokens)
            self.window_tokens += int(tokens)
        for name, count in zip(("positions", "pieces", "cut"), found.tolist(), strict=True):
            setattr(self, name, getattr(self, name) + int(count))

    def losses(self) -> Line:
        """Mean loss in nats a target: over all, and by modality (None where there was none)."""
        named = zip(self.modalities, self.loss, self.targets, strict=True)
        by_modality = {f"loss/{m}": total / n if n else None for m, total, n in named}
        n = sum(self.targets)
        return {"loss": sum(self.loss) / n if n else None, **by_modality}

    def line(self) -> Line:
        """The counts and losses of the window; `cut` is the share of pieces that begin inside."""
        return {
            **self.losses(),
            "grad_norm": self.grad_norm / self.steps if self.steps else None,
            "tokens": sum(self.tokens),
            **{f"tokens/{m}": n for m, n in zip(self.modalities, self.tokens, strict=True)},
            "fill": self.window_tokens / self.positions if self.positions else None,
            "cut": self.cut / self.pieces if self.pieces else None,
        }

    def state(self) -> dict[str, object]:
        """As JSON values; `Meters(**state)` is equal."""
        return asdict(self)


class Clock:
    """Tokens a second and the share of time spent waiting for data, since the last line."""

    def __init__(self, loader: Loader, step: int, steps: int) -> None:
        self.loader, self.first, self.steps = loader, step, steps
        self.began = self.start_s = time.perf_counter()
        self.waited, self.last, self.step = loader.wait_s, step, step

    def line(self, tokens: int, step: int) -> Line:
        """Figures of the window that ends now; the next one begins when `restart` is called."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self.start_s)
        wait = self.loader.wait_s - self.waited
        self.step = step
        return {
            "tokens_per_s": tokens / seconds,
            "data_wait": min(1.0, wait / seconds),
            "step_s": seconds / max(1, step - self.last),
            "left_s": self.left_s(step),
        }

    def restart(self) -> None:
        """Begin a new window."""
        self.start_s, self.waited = time.perf_counter(), self.loader.wait_s
        self.last = self.step

    def left_s(self, step: int) -> float:
        """Estimated seconds to the last step."""
        done = max(1, step - self.first)
        return (time.perf_counter() - self.began) / done * (self.steps - step)


def progress_line(line: Line, modalities: tuple[str, ...], steps: int) -> str:
    """One line for a person: where the run is, how well it does, how fast, when it ends."""

    def losses(prefix: str) -> str:
        parts = [f"{m} {_number(line[f'{prefix}loss/{m}'])}" for m in modalities]
        return f"{_number(line[f'{prefix}loss'])} ({' '.join(parts)})"

    text = f"step {line['step']:>{len(str(steps))}}/{steps}  loss {losses('')}"
    if "validation/loss" in line:
        text += f"  validation {losses('validation/')}"
    if "leaking_validation/loss" in line:
        text += f"  leaking {_number(line['leaking_validation/loss'])}"
    if line.get("skipped"):
        text += f"  skipped {line['skipped']}"
    speed = f"{line['tokens_per_s']:,.0f} tok/s  MFU {line['mfu']:.0%}"
    speed += f"  wait {line['data_wait']:.1%}"
    left_s = line["left_s"] or 0.0
    left = f"left {duration(left_s)}, to {time_of_day(left_s)}" if left_s else "done"
    return f"{text}  lr {line['lr']:.1e}  grad {_number(line['grad_norm'], 2)}  {speed}  {left}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def time_of_day(left_s: float, now: datetime | None = None) -> str:
    """When so many seconds are over, in local time: 14:05, or Tue 1 Dec 14:05."""
    now = now or datetime.now()
    end = now + timedelta(seconds=left_s)
    day = "" if end.date() == now.date() else f"{end:%a} {end.day} {end:%b} "
    return f"{day}{end:%H:%M}"


def _number(value: float | int | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"
