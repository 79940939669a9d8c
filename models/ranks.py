"""What the processes of a run tell each other in the middle of a pass; one alone pays nothing.

Whatever a layer takes over "the batch" is of the global one: expert choice, thresholds, means. So
the same run on another number of processes is the same run. Nothing here carries a gradient. All
ranks make the same calls in the same order, whatever tokens they have: a rank without any calls
too. `P` ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """The processes that train one model on parts of the same batches; `ALONE` is the only one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All of them; None if alone."""
        return None if self.size == 1 else dist.group.WORLD

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def numbers(self, own: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Everybody's numbers, of which each rank has as many, by rank."""
        if self.size == 1:
            return (tuple(own),)
        found = torch.empty(self.size * len(own), dtype=torch.int64)
        dist.all_gather_single(found, torch.tensor(own, dtype=torch.int64))
        return tuple(map(tuple, found.view(self.size, -1).tolist()))

    def rows(self, parts: Sequence[Tensor], counts_PM: Sequence[Sequence[int]]) -> list[Tensor]:
        """Everybody's rows of each part [n, W], rank by rank, in one message.

        `counts_PM[p][m]` are the rows that rank p has of part m; widths are the same everywhere.
        """
        widths = [part.shape[1] for part in parts]
        sizes_PM = [[n * w for n, w in zip(counts, widths, strict=True)] for counts in counts_PM]
        most = max(map(sum, sizes_PM))
        if self.size == 1 or not most:
            return [part.detach() for part in parts]
        own = torch.cat([part.detach().flatten() for part in parts])
        found = own.new_empty(self.size * most)
        dist.all_gather_single(found, F.pad(own, (0, most - len(own))))
        lines = zip(found.view(self.size, most), sizes_PM, strict=True)
        by_rank = [line[: sum(sizes)].split(sizes) for line, sizes in lines]
        return [
            torch.cat(of_part).view(-1, width)
            for of_part, width in zip(zip(*by_rank, strict=True), widths, strict=True)
        ]

    def of_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on the first rank, everywhere; what it raises is raised everywhere."""
        if self.size == 1:
            return make()
        told: list = [None, None]
        if self.first:
            try:
                told[0] = make()
            except (Exception, SystemExit) as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]


ALONE = Ranks()
