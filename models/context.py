"""What the parts of a decoder share in one forward pass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.kernels.attention import AttentionLayout
from plait.models.plan import Order
from plait.models.values import ValueTable


@dataclass(kw_only=True, eq=False)
class Context:
    """One pass over a batch, or one step of inference; given to every block."""

    order: Order
    """How the flat positions N are sorted."""
    turn: tuple[Tensor, Tensor] | None = None
    """Rotary cosine and sine, [B, T, 1, K/2], sorted; None without attention."""
    layout: AttentionLayout | None = None
    """That of sorted positions; None in a step, where the cache takes its place."""
    seen_BS: Tensor | None = None
    """In a step: which cached positions a row attends to; None for all."""
    document_BT: Tensor | None = None
    reset_BT: Tensor | None = None
    values: ValueTable | None = None
    """The table that the memory layers share."""
    leaking: bool = False
    """Whether experts choose among all tokens in eval too, as they do in training."""
    losses: list[Tensor] = field(default_factory=list)
    """Losses of the parts' own, beside the cross-entropy."""
    statistics: dict[str, list[Tensor]] = field(default_factory=dict)
    """Scalars noted by layers, by name; `means` gives one number for each name."""

    tallies: dict[str, list[Tensor]] = field(default_factory=dict)
    """Vectors that layers counted, by name; `sums` gives one tensor [layers, ...] for each name."""

    def note(self, name: str, value: Tensor) -> None:
        """Add a layer's figure."""
        self.statistics.setdefault(name, []).append(value.detach())

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a layer's own loss, a mean over tokens."""
        self.losses.append(value)
        self.note(name, value)

    def tally(self, name: str, value: Tensor) -> None:
        """Add a layer's counts, of the same shape whenever it is called."""
        self.tallies.setdefault(name, []).append(value.detach())

    def tally_rows(self, name: str, row_J: Tensor) -> Tensor:
        """Tally, by modality, these sorted rows and all real ones, [2, M]; the former, [M]."""
        taken_N = torch.zeros(sum(self.order.counts), device=row_J.device)
        taken_N.index_fill_(0, row_J, 1)
        taken_M = torch.stack([part.sum() for part in taken_N.split(self.order.counts)])
        real_M = torch.stack([taken_N.new_full((), n) for n in self.order.real])
        self.tally(name, torch.stack((taken_M, real_M)))
        return taken_M

    def sums(self) -> dict[str, Tensor]:
        """The layers' counts."""
        return {name: torch.stack(values) for name, values in self.tallies.items()}

    def means(self) -> dict[str, Tensor]:
        """The mean over layers of each figure."""
        return {name: torch.stack(values).mean() for name, values in self.statistics.items()}
