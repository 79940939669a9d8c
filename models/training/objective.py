"""What is learned: next tokens, weighted by their modality; `[objective]` in a run's TOML file.

The loss of a step is the weighted mean: sum over targets of weight times loss, over the sum of the
weights. So weights say what matters among modalities and leave the size of a step as it was. What
is logged is not weighted. The z-loss (`model.z_loss`) is weighted as the loss beside it. Which
targets there are at all is in `Batch.loss_mask_BT`, see pipeline/learned.py.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.models.losses import Losses
from plait.models.plan import Plan
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What of the next tokens is learned."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of the loss by modality, as `image 0.5`; 1 where not named, 0 learns nothing of it."""
    mask: tuple[str, ...] = ()
    """Modalities that are read and not learned, as captions that pictures are conditioned on."""
    learn: str = "all"
    """Which spans of a document are learned: `all`; `last`, as an answer after its question; or
    the name of a column of the data that has a list of true and false, one a span."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"objective.weights: {name} has {weight}; should be 0 or more")


class Objective:
    """Weighs the losses of a step."""

    def __init__(self, config: ObjectiveConfig, modalities: Sequence[str]) -> None:
        _check(config, modalities)
        weights = [config.weights.get(name, 1.0) for name in modalities]
        self.weights_M = torch.tensor(weights)

    def targets(
        self,
        plans: Iterable[Plan],
        everybody: Callable[[Sequence[int]], Sequence[Sequence[int]]] = lambda own: [own],
    ) -> float:
        """The sum of the weights of all targets of a step, by which its loss is divided; or 0.

        `everybody` gives the numbers of all ranks for one's own, so that the sum is of them all.
        """
        own = [sum(counts) for counts in zip(*(p.target_counts for p in plans), strict=True)]
        counts_M = torch.tensor(everybody(own)).sum(0).double()
        return float(counts_M @ self.weights_M.cpu().double())

    def total(self, losses: Losses) -> Tensor:
        """The weighted sum of a micro-batch's losses."""
        self.weights_M = self.weights_M.to(losses.sum_M.device)
        return (losses.sum_M * self.weights_M).sum()


def _check(config: ObjectiveConfig, modalities: Sequence[str]) -> None:
    named: Mapping[str, Iterable[str]] = {"weights": config.weights, "mask": config.mask}
    for key, names in named.items():
        for name in names:
            if name not in modalities:
                near = difflib.get_close_matches(name, modalities, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(modalities)}"
                raise ConfigError(f"objective.{key}: the data has no modality {name!r}; {hint}")
    left = [m for m in modalities if m not in config.mask and config.weights.get(m, 1.0) > 0]
    if not left:
        raise ConfigError(
            "objective: no modality is left to learn; every one is masked or weighs 0"
        )
