"""What a training run counts between two lines of `metrics.jsonl`, and the line a person reads."""

import time
from dataclasses import asdict, dataclass, field

from torch import Tensor

from plait.pipeline.batch import Batch
from plait.pipeline.loader import Loader

Line = dict[str, float | int | None]


@dataclass
class Meters:
    """Sums since the last line, and tokens since the first step; saved with a checkpoint."""

    modalities: tuple[str, ...]
    loss: list[float] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    window_tokens: int = 0
    positions: int = 0
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
        self.window_tokens = self.positions = self.steps = 0
        self.grad_norm = 0.0

    def add(self, batch: Batch, sum_M: Tensor, count_M: Tensor) -> None:
        """Take in a batch and its summed loss and number of targets, by target modality."""
        for m, (total, count) in enumerate(zip(sum_M.tolist(), count_M.tolist(), strict=True)):
            self.loss[m] += total
            self.targets[m] += int(count)
        for m, count in enumerate(batch.modality_masks.flatten(1).sum(1).tolist()):
            self.tokens[m] += count
            self.window_tokens += count
        self.positions += batch.tokens_BT.numel()

    def losses(self) -> Line:
        """Mean loss in nats a target: over all, and by modality (None where there was none)."""
        named = zip(self.modalities, self.loss, self.targets, strict=True)
        by_modality = {f"loss/{m}": total / n if n else None for m, total, n in named}
        n = sum(self.targets)
        return {"loss": sum(self.loss) / n if n else None, **by_modality}

    def line(self) -> Line:
        """The counts and losses of the window."""
        return {
            **self.losses(),
            "grad_norm": self.grad_norm / max(1, self.steps),
            "tokens": sum(self.tokens),
            **{f"tokens/{m}": n for m, n in zip(self.modalities, self.tokens, strict=True)},
            "fill": self.window_tokens / max(1, self.positions),
        }

    def state(self) -> dict[str, object]:
        """As JSON values; `Meters(**state)` is equal."""
        return asdict(self)


class Clock:
    """Tokens a second and the share of time spent waiting for data, since the last line."""

    def __init__(self, loader: Loader, step: int, steps: int) -> None:
        self.loader, self.first, self.steps = loader, step, steps
        self.began = self.start_s = time.perf_counter()
        self.waited = loader.wait_s

    def line(self, tokens: int) -> Line:
        """Figures of the window that ends now; the next one begins when `restart` is called."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self.start_s)
        wait = self.loader.wait_s - self.waited
        return {"tokens_per_s": tokens / seconds, "data_wait": min(1.0, wait / seconds)}

    def restart(self) -> None:
        """Begin a new window."""
        self.start_s, self.waited = time.perf_counter(), self.loader.wait_s

    def left_s(self, step: int) -> float:
        """Estimated seconds to the last step."""
        done = max(1, step - self.first)
        return (time.perf_counter() - self.began) / done * (self.steps - step)


def progress_line(line: Line, modalities: tuple[str, ...], steps: int, left_s: float) -> str:
    """One line for a person: where the run is, how well it does, how fast, when it ends."""

    def losses(prefix: str) -> str:
        parts = [f"{m} {_number(line[f'{prefix}loss/{m}'])}" for m in modalities]
        return f"{_number(line[f'{prefix}loss'])} ({' '.join(parts)})"

    text = f"step {line['step']:>{len(str(steps))}}/{steps}  loss {losses('')}"
    if "validation/loss" in line:
        text += f"  validation {losses('validation/')}"
    if "leaking_validation/loss" in line:
        text += f"  leaking {_number(line['leaking_validation/loss'])}"
    speed = (
        f"{line['tokens_per_s']:,.0f} tok/s  MFU {line['mfu']:.0%}  wait {line['data_wait']:.1%}"
    )
    return (
        f"{text}  lr {line['lr']:.1e}  grad {line['grad_norm']:.2f}"
        f"  {speed}  left {duration(left_s)}"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.3f}"
