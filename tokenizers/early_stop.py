"""Ending a fit when samples that it does not learn from get no better, with its best weights.

The loss on these samples is looked at `CHECKS` times in a fit, evenly; after `patience` looks
without a new lowest one the fit ends. What is kept is the state of the best look.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.errors import ConfigError

CHECKS = 50
"""Looks in a whole fit: one every 2 % of its steps."""
MOST_ASIDE = 64
"""Samples that are set aside at most, of ten one; of more they are spread over all."""

T = TypeVar("T")


class EarlyStop(nn.Module):
    """Watches a fit of so many steps, and copies `kept` at its best; patience 0 does nothing.

    `measure` gives the loss of `kept` on what is set aside; it is shown as `loss_aside`. This is a
    module, so that a resumed fit (fit_state.Loop) takes it up like its other parts.
    """

    lowest: Tensor
    failed: Tensor

    def __init__(
        self,
        kept: nn.Module,
        steps: int,
        patience: int,
        measure: Callable[[], float],
        progress: Progress = ignore,
    ) -> None:
        super().__init__()
        self.steps, self.patience, self.every = steps, patience, max(1, steps // CHECKS)
        self._measure, self._progress = measure, progress
        self._kept = (kept,)  # in a tuple, so that it is no submodule
        self.best = copy.deepcopy(kept) if patience else nn.Module()
        self.register_buffer("lowest", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("failed", torch.tensor(0))

    def ends(self, step: int) -> bool:
        """Whether the fit ends after step `step`, from 0."""
        if not self.patience or (step + 1) % self.every:
            return False
        loss = self._measure()
        self._progress("training", (step + 1) / self.steps, loss_aside=loss)
        if loss < self.lowest.item():
            self.lowest.fill_(loss)
            self.failed.zero_()
            self.best.load_state_dict(self._kept[0].state_dict())
        else:
            self.failed += 1
        return int(self.failed) >= self.patience

    def restore(self) -> None:
        """Give `kept` its best state, if there was a look."""
        if math.isfinite(self.lowest.item()):
            self._kept[0].load_state_dict(self.best.state_dict())


def set_aside(samples: Sequence[T], patience: int) -> tuple[Sequence[T], Sequence[T]]:
    """Samples to learn from, and those to look at: none without patience, else a tenth or less.

    ConfigError if there are too few to set any aside.
    """
    if not patience:
        return samples, ()
    if len(samples) < 2:
        raise ConfigError("patience is for two samples or more: some are set aside to look at")
    every = max(2, min(10, len(samples)), -(-len(samples) // MOST_ASIDE))
    aside = set(range(0, len(samples), every))
    return [s for i, s in enumerate(samples) if i not in aside], [samples[i] for i in sorted(aside)]


def check_patience(patience: int) -> None:
    """ConfigError if it is out of range."""
    if not 0 <= patience <= CHECKS:
        raise ConfigError(f"patience is {patience}, and should be in 0..{CHECKS}")
