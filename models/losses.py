"""What a pass over a batch gives to learn from and to log."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.models.context import Context

PARTS_WEIGHT = 0.1
"""Of the parts' own losses: no other weight learns from them, and this keeps them from taking part
in the gradient's norm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """Sums over a batch's targets, by the modality of the target."""

    sum_M: Tensor
    """Cross-entropy in nats, float32; its gradient also carries the z-loss."""
    count_M: Tensor
    """Targets, int64."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars by name: `rms/output`, and what the parts note of themselves."""
    tallies: dict[str, Tensor] = field(default_factory=dict)
    """Counts by name, [layers, ...], float32."""


def summed(loss_J: Tensor, counts: Sequence[int], context: Context) -> Losses:
    """The sums of targets' losses, `counts` of each modality in turn, and what the layers noted.

    The gradient of the sums is also that of the parts' own losses.
    """
    sum_M = torch.stack([part.sum() for part in loss_J.split(counts)])
    if context.losses:
        targets = sum(n for (n,) in context.ranks.numbers([sum(counts)]))
        share = PARTS_WEIGHT * targets / len(sum_M)
        own = share * torch.stack(context.losses).mean()
        sum_M = sum_M + (own - own.detach())
    count_M = torch.tensor(counts, device=sum_M.device)
    return Losses(sum_M=sum_M, count_M=count_M, statistics=context.means(), tallies=context.sums())
