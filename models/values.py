"""The value table that all memory layers of a decoder read, and the optimizer of its rows.

The table takes no part in autograd: each backward notes in the table's ledger what was read and the
gradient that the reading got (kernels/value_table.py). A step of `TableOptimizer` works on the rows
that were read alone, so it costs the same with 2^20 rows as with 2^14, and no gradient or moment of
the table's size is ever walked through.

Over a process group every rank holds some columns of all rows, as in arXiv:2412.09764, section 3.1:
slots and weights are gathered, each rank sums its columns for everybody, and the sums go back. The
gradient of the table needs no exchange at all. `R` rows, `D` width, `J` rows read for each
position, `P` ranks.
"""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from plait.kernels.value_table import Ledger, RowAdam, Rows, adam_rows, row_squares, weighted_bag
from plait.tokenizers.errors import ConfigError

DRAWN = 1 << 16
"""Rows whose values are drawn at once."""


class ValueTable(nn.Module):
    """Values [R, D], or a rank's columns of them, and what was read since the last step."""

    def __init__(self, rows: int, width: int, group: dist.ProcessGroup | None = None) -> None:
        """ConfigError if the width is no multiple of the group's size."""
        super().__init__()
        self.width, self.group = width, group
        self.ranks = 1 if group is None else group.size()
        if width % self.ranks:
            raise ConfigError(
                f"model.memory_value_dim: values of width {width} cannot be cut into {self.ranks} "
                "columns of equal width, one a process; take another number of processes"
            )
        self.weight = nn.Parameter(torch.empty(rows, width // self.ranks))
        self.ledger = Ledger()

    def reset_parameters(self) -> None:
        """Normal, of deviation D ** -0.5; the same values whatever the number of ranks."""
        rank = 0 if self.group is None else self.group.rank()
        own = slice(rank * self.weight.shape[1], (rank + 1) * self.weight.shape[1])
        with torch.no_grad():
            for part in self.weight.split(DRAWN):
                whole = torch.empty(len(part), self.width, device=part.device)
                part.copy_(nn.init.normal_(whole, std=self.width**-0.5)[:, own])

    def read(self, slot_NJ: Tensor, share_NJ: Tensor, most: int = 0) -> Tensor:
        """Sums of the rows `slot` with weights `share`, [N, D]; N >= 1.

        Where N is not the same on all ranks, `most` is the largest.
        """
        ledger = self.ledger if self.weight.requires_grad else None
        if self.group is None:
            return weighted_bag(self.weight, slot_NJ, share_NJ, ledger=ledger)
        N, more = len(slot_NJ), max(0, most - len(slot_NJ))
        slot_NJ = torch.cat((slot_NJ, slot_NJ[-1:].expand(more, -1)))  # rows that were read anyway
        slots = _gathered(slot_NJ, self.group)
        shares = _Gather.apply(F.pad(share_NJ, (0, 0, 0, more)), self.group)
        own = weighted_bag(self.weight.detach(), slots, shares, ledger=ledger)
        return _Exchange.apply(own, self.group)[:N]

    def gradient(self) -> Tensor:
        """The gradient since the last step, sparse [R, D], for an optimizer of torch's own.

        `weight.grad = gradient()`, then `ledger.clear()`; `TableOptimizer` needs neither.
        """
        rows = self.ledger.rows(len(self.weight))
        if rows is None:
            row_U = torch.zeros(0, dtype=torch.int64, device=self.weight.device)
            gradient_UD = self.weight.detach()[:0]
        else:
            row_U, gradient_UD = rows.row_U, rows.gradients()
        return torch.sparse_coo_tensor(
            row_U[None], gradient_UD, self.weight.shape, is_coalesced=True, check_invariants=False
        )

    def whole(self, own: Tensor) -> Tensor:
        """A tensor cut as the table is, seen as what it is a part of: how it is saved and loaded.

        Writing into it writes into `own`.
        """
        if self.group is None:
            return own
        mesh = DeviceMesh.from_group(self.group, own.device.type)
        return DTensor.from_local(own.detach(), mesh, [Shard(1)], run_check=False)

    def active(self, modality: int) -> tuple[float, float]:
        """None: each memory layer counts what it reads."""
        return 0, 0


class TableOptimizer:
    """Adam on the rows that were read (`adam_rows`), with a clip norm and lazy decay of its own.

    Weight decay reaches a row when it is read again, for all the steps since, and a row that was
    never read not at all: 2000 steps of AdamW would shrink it to 0.82.
    """

    def __init__(
        self,
        table: ValueTable,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.table, self.betas, self.eps, self.weight_decay = table, betas, eps, weight_decay
        weight = table.weight
        self.mean_RD = torch.zeros_like(weight, requires_grad=False)
        self.square_R = torch.zeros(len(weight), device=weight.device)
        self.reads_R = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        self.decayed_R = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        """Sum of learning rates times decay up to the step at which a row was read last."""
        self.decayed = 0.0
        self._rows: Rows | None = None
        self._square_U = torch.empty(0)

    def norm(self) -> float:
        """The norm of the gradient since the last step, which `step` then works on."""
        self._rows = self.table.ledger.rows(len(self.table.weight))
        if self._rows is None:
            return 0.0
        self._square_U = row_squares(self._rows)
        if self.table.group is not None:
            dist.all_reduce(self._square_U, group=self.table.group)
        return math.sqrt(self._square_U.cpu().numpy().sum())

    @torch.no_grad()
    def step(self, lr: float, scale: float = 1.0) -> None:
        """Move the rows by their gradients times `scale`; `norm` was called before."""
        rows, self._rows = self._rows, None
        self.decayed += lr * self.weight_decay
        self.table.ledger.clear()
        if rows is None:
            return
        numbers = RowAdam(
            lr=lr, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps, scale=scale
        )
        weight = self.table.weight
        kept_U = torch.ones(len(rows.row_U), device=weight.device)
        if self.weight_decay:
            missed_U = self.decayed - self.decayed_R[rows.row_U]
            missed_U[self.reads_R[rows.row_U] == 0] = 0
            kept_U = (-missed_U).exp().float()
            self.decayed_R[rows.row_U] = self.decayed
        state = (weight.detach(), self.mean_RD, self.square_R, self.reads_R)
        adam_rows(rows, numbers, self._square_U / self.table.width, kept_U, *state)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state by name."""
        mean = self.table.whole(self.mean_RD)
        found = {"mean": mean, "square": self.square_R, "reads": self.reads_R}
        if self.weight_decay:
            found["decayed"] = self.decayed_R
            found["decayed_now"] = torch.tensor(self.decayed, dtype=torch.float64)
        return found

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` gave."""
        for name, tensor in self.state_tensors().items():
            tensor.copy_(tensors[name])
        if self.weight_decay:
            self.decayed = float(tensors["decayed_now"])


class _Gather(torch.autograd.Function):
    """Everybody's rows [P N, J] of one's own [N, J]; gradients are added up where they belong."""

    @staticmethod
    def forward(ctx, x_NJ, group):
        ctx.group = group
        return _gathered(x_NJ, group)

    @staticmethod
    def backward(ctx, *dy):
        own = dy[0].new_empty(len(dy[0]) // ctx.group.size(), dy[0].shape[1])
        dist.reduce_scatter_tensor(own, dy[0].contiguous(), group=ctx.group)
        return own, None


class _Exchange(torch.autograd.Function):
    """One's columns of everybody's rows [P N, D / P] to all columns of one's own rows [N, D]."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return torch.cat(received.chunk(group.size()), dim=1)

    @staticmethod
    def backward(ctx, *dy):
        sent = torch.cat(dy[0].chunk(ctx.group.size(), dim=1))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=ctx.group)
        return received, None


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    found = x.new_empty(group.size() * len(x), *x.shape[1:])
    dist.all_gather_single(found, x.contiguous(), group=group)
    return found
