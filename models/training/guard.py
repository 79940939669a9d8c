"""The guard: a batch whose loss or gradient is no number, or a spike, is skipped and named.

Of a skipped batch nothing stays: weights, moments and the routers' running thresholds are as
before, the step counts, and its documents stand in `RUN/skipped.jsonl`. A spike is a value above
the median of the last accepted steps by so many robust deviations (1.4826 times the median absolute
one), and by twice as much as any of theirs, for some batches are far off each time: of a modality's
loss (fewer targets, more allowance), or of the logarithm of the gradient's norm. The loss over all
is not judged, as it moves with the share of each modality. The guard's state is part of a
checkpoint, so a resumed run judges alike. All ranks of a run should judge the same figures.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.tokenizers.errors import ConfigError

FLOOR = 0.01
"""Least deviation of a loss, as a share of its median; a still window would call noise a spike."""
LOG_NORM_FLOOR = 0.05
"""The same for the logarithm of the gradient's norm."""
NORM = "gradient norm"


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Which batches are skipped, and when that is too much."""

    deviations: float = 12.0
    """Robust deviations above the median at which a loss or gradient norm is a spike, if also twice
    as far as any in the window; 0 skips only what is no finite number."""
    window: int = 128
    """Accepted steps that a value is compared with; there are no spikes before half of them."""
    in_a_row: int = 5
    """Skipped batches in a row that end the run with an error; 0 is off."""
    of_100: int = 20
    """Skipped batches among 100 steps that do; 0 is off."""

    def __post_init__(self) -> None:
        if self.deviations < 0 or self.in_a_row < 0 or self.of_100 < 0:
            raise ConfigError("guard: deviations, in_a_row and of_100 should be at least 0")
        if self.window < 8:
            raise ConfigError(f"guard.window: should be at least 8, not {self.window}")


@dataclass(frozen=True)
class Fault:
    """Why a step is skipped, and which of its micro-batches are to blame, as far as is known."""

    reason: str
    batches: tuple[int, ...]


@dataclass
class Guard:
    """What a step's figures are compared with; `Guard(config, modalities, **state())` is equal."""

    config: GuardConfig
    modalities: tuple[str, ...]
    window: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """The last accepted values, and of how many targets each is the mean."""
    skipped: list[int] = field(default_factory=list)
    """The last skipped steps, at most 100 back."""
    total: int = 0
    """Steps skipped so far."""

    def judge(
        self, sums: Sequence[Sequence[float]], counts: Sequence[Sequence[float]], norm: float
    ) -> Fault | None:
        """What is wrong with a step, or None, which makes it part of the window.

        `sums` and `counts` are losses and targets of each micro-batch by modality; `norm` is that
        of the gradient of all.
        """
        everyone = tuple(range(len(sums)))
        bad = tuple(i for i in everyone if not all(map(math.isfinite, sums[i])))
        if bad:
            names = zip(self.modalities, zip(*(sums[i] for i in bad), strict=True), strict=True)
            which = [m for m, values in names if not all(map(math.isfinite, values))]
            return Fault(f"the loss of {', '.join(which)} is {sum(sums[bad[0]])}", bad)
        if not math.isfinite(norm):
            return Fault(f"the {NORM} is {norm}", everyone)
        step = _means(self.modalities, sums, counts)
        step[NORM] = (math.log(max(norm, 1e-30)), 1.0)
        for name, (value, n) in step.items() if self.config.deviations else ():
            if self._deviations(name, value, n) > self.config.deviations:
                return Fault(self._describe(name, value, n), self._blame(name, sums, counts))
        for name, entry in step.items():
            self.window[name] = [*self.window.get(name, []), entry][-self.config.window :]
        return None

    def skip(self, step: int) -> str | None:
        """Count a skipped step; why the run should end, or None."""
        c = self.config
        self.total += 1
        self.skipped = [s for s in (*self.skipped, step) if s > step - 100]
        row = 0
        while row < len(self.skipped) and self.skipped[-1 - row] == step - row:
            row += 1
        if c.in_a_row and row >= c.in_a_row:
            return f"{row} batches in a row were skipped"
        if c.of_100 and len(self.skipped) >= c.of_100:
            return f"{len(self.skipped)} batches of 100 were skipped"
        return None

    def state(self) -> dict[str, object]:
        """As JSON values."""
        return {"window": self.window, "skipped": self.skipped, "total": self.total}

    def _deviations(self, name: str, value: float, n: float) -> float:
        """How far above its window's median a value is; 0 while the window is short."""
        past = self.window.get(name, [])
        if 2 * len(past) < self.config.window:
            return 0.0
        median = statistics.median(v for v, _ in past)
        spread = 1.4826 * statistics.median(abs(v - median) for v, _ in past)
        spread = max(spread, LOG_NORM_FLOOR if name == NORM else FLOOR * abs(median))
        farthest = max(v for v, _ in past) - median
        spread = max(spread, 2 * farthest / self.config.deviations)
        usual = statistics.median(n for _, n in past)
        return (value - median) / (spread * max(1.0, usual / n) ** 0.5)

    def _describe(self, name: str, value: float, n: float) -> str:
        far = self._deviations(name, value, n)
        median = statistics.median(v for v, _ in self.window[name])
        if name == NORM:
            value, median = math.exp(value), math.exp(median)
        return f"the {name} {value:.4g} is {far:.1f} deviations over its median {median:.4g}"

    def _blame(
        self, name: str, sums: Sequence[Sequence[float]], counts: Sequence[Sequence[float]]
    ) -> tuple[int, ...]:
        """Micro-batches whose own loss is a spike; all of them if none is."""
        everyone = tuple(range(len(sums)))
        if name == NORM:
            return everyone
        found = []
        for i in everyone:
            own = _means(self.modalities, sums[i : i + 1], counts[i : i + 1]).get(name)
            if own is not None and self._deviations(name, *own) > self.config.deviations:
                found.append(i)
        return tuple(found) or everyone


def _means(
    modalities: Sequence[str], sums: Sequence[Sequence[float]], counts: Sequence[Sequence[float]]
) -> dict[str, tuple[float, float]]:
    """Mean losses of a step by modality and their numbers of targets, where there are any."""
    sum_M = [sum(column) for column in zip(*sums, strict=True)]
    count_M = [sum(column) for column in zip(*counts, strict=True)]
    named = zip(modalities, sum_M, count_M, strict=True)
    return {f"loss of {m}": (total / n, float(n)) for m, total, n in named if n}
