"""What the parts of a decoder share in one forward pass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.kernels.attention import AttentionLayout
from plait.models.plan import Order
from plait.models.ranks import ALONE, Ranks
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
    ranks: Ranks = ALONE
    """The processes whose batches are one: means are taken over all their tokens."""
    most: int = 0
    """Largest number of rows of any rank, where ranks have different numbers."""
    losses: list[Tensor] = field(default_factory=list)
    """Losses of the parts' own, beside the cross-entropy: this rank's share of each."""
    statistics: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)
    """Totals and counts noted by layers, by name; `means` gives one number for each name."""
    tallies: dict[str, list[Tensor]] = field(default_factory=dict)
    """Vectors that layers counted, by name; `sums` gives one tensor [layers, ...] for each name."""
    _real_PM: tuple[tuple[int, ...], ...] = field(default=(), init=False)

    @property
    def real_PM(self) -> tuple[tuple[int, ...], ...]:
        """`order.real` of every rank, asked of them once."""
        self._real_PM = self._real_PM or self.ranks.numbers(self.order.real)
        return self._real_PM

    def among(self, m: int) -> tuple[int, int]:
        """Real tokens of modality m on the ranks before this one, and on all of them."""
        real_P = [real_M[m] for real_M in self.real_PM]
        return sum(real_P[: self.ranks.rank]), sum(real_P)

    def note(self, name: str, total: Tensor, count: int = 1) -> None:
        """Add a layer's figure, a mean: its total and count here; both are summed over ranks."""
        self.statistics.setdefault(name, []).append((total.detach().float(), count))

    def note_rms(self, name: str, x: Tensor) -> None:
        """Add the root mean square of all values; names begin with `rms/`."""
        norm = torch.linalg.vector_norm(x.detach(), dtype=torch.float32)
        self.note(name, norm.square(), x.numel())

    def add_loss(self, name: str, share: Tensor) -> None:
        """Add a layer's own loss: this rank's share of a mean over all ranks' tokens."""
        self.losses.append(share)
        self.note(name, share * self.ranks.size)

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
        """The mean over layers of each figure; none of those that count nothing."""
        noted = [(name, *pair) for name, pairs in self.statistics.items() for pair in pairs]
        if not noted:
            return {}
        total_K = self.ranks.sum(torch.stack([total for _, total, _ in noted]))
        counts_PK = self.ranks.numbers([count for _, _, count in noted])
        found: dict[str, list[Tensor]] = {}
        for (name, *_), total, counts in zip(
            noted, total_K, zip(*counts_PK, strict=True), strict=True
        ):
            if sum(counts):
                found.setdefault(name, []).append(total / sum(counts))
        means = {name: torch.stack(values).mean() for name, values in found.items()}
        return {k: x.sqrt() if k.startswith("rms/") else x for k, x in means.items()}
