"""Weighted sums of a few rows of a large table: what a memory layer reads, and how it learns.

Special here: rows are summed as they are read and never gathered into a tensor of their own (17
times faster than gather and sum at a table of 1 GiB), and a step costs what it reads, not what the
table holds. A `Ledger` notes what was read and the gradient of each reading; at the end of a step
one reverse index over all of it, however many layers and micro-batches, gives every row that was
read its gradient, in a fixed order, and moves that row alone. Letters: `R` rows of the table, `J`
rows read for each position, `P` = N * J places, `U` rows that were read at all.
"""

import itertools
import weakref
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, triton_runs
from plait.kernels.compile_c import call, library

CHUNK = 256
"""Positions whose rows are gathered at once where there is no compiler."""
WIDEST = 8192
"""Widest row of the Triton kernels: it is held in registers."""


def weighted_bag(
    values_RD: Tensor, index_NJ: Tensor, weight_NJ: Tensor, *, ledger: "Ledger | None" = None
) -> Tensor:
    """y[n] = sum over j of weight[n, j] values[index[n, j]]; [N, D].

    With a `ledger` the table gets no gradient: the backward notes there what its gradient is made
    of. Without, it is dense, as large as the table. ValueError where shapes disagree.

    >>> values_RD = torch.tensor([[1.0], [10.0], [100.0]])
    >>> weighted_bag(values_RD, torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.5]]))
    tensor([[51.]])
    """
    if index_NJ.shape != weight_NJ.shape or index_NJ.ndim != 2 or values_RD.ndim != 2:
        shapes = [tuple(x.shape) for x in (values_RD, index_NJ, weight_NJ)]
        raise ValueError(f"values [R, D], index [N, J] and weight [N, J] are {shapes}")
    if ledger is None and choose("weighted_bag", "embedding_bag") == "reference":
        return reference(values_RD, index_NJ, weight_NJ)
    weight_NJ = weight_NJ.to(values_RD.dtype)
    if ledger is not None:
        return bag_op(values_RD.detach(), index_NJ, weight_NJ, ledger.number)
    return bag_op(values_RD, index_NJ, weight_NJ, 0)


def reference(values_RD: Tensor, index_NJ: Tensor, weight_NJ: Tensor) -> Tensor:
    """The definition: gather and sum."""
    return (values_RD[index_NJ] * weight_NJ[..., None]).sum(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What one backward noted: y[n] was read from `index` with `weight`, and got gradient `dy`."""

    index_NJ: Tensor
    weight_NJ: Tensor
    dy_ND: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """All readings of a step by the row that was read."""

    row_U: Tensor
    """Rows that were read, each once and rising."""
    first_U1: Tensor
    """Where each row's places begin in `order_P`."""
    order_P: Tensor
    """Places n * J + j, by row, rising."""
    weight_P: Tensor
    """By place."""
    dy_ND: Tensor

    @property
    def reads(self) -> int:
        """J."""
        return len(self.order_P) // max(1, len(self.dy_ND))

    def gradients(self) -> Tensor:
        """The gradients of the rows, [U, D]."""
        return _row_gradients(self, self.dy_ND)


_numbers = itertools.count(1)
_ledgers: "weakref.WeakValueDictionary[int, Ledger]" = weakref.WeakValueDictionary()


@dataclass(eq=False)
class Ledger:
    """What was read from a table since it was last cleared."""

    readings: list[Reading] = field(default_factory=list)
    number: int = field(default_factory=lambda: next(_numbers))
    """By which the backward, an opaque op with tensors and numbers alone, finds it."""

    def __post_init__(self) -> None:
        _ledgers[self.number] = self

    def __deepcopy__(self, memo: dict) -> "Ledger":
        return Ledger()

    def clear(self) -> None:
        """Forget all."""
        self.readings.clear()

    def rows(self, table_rows: int) -> Rows | None:
        """The readings by row of a table of so many; None if nothing was read."""
        if not self.readings:
            return None
        index_P = torch.cat([r.index_NJ for r in self.readings]).flatten()
        row_U, first_U1, order_P = index_op(index_P, table_rows)
        return Rows(
            row_U=row_U,
            first_U1=first_U1,
            order_P=order_P,
            weight_P=torch.cat([r.weight_NJ for r in self.readings]).flatten(),
            dy_ND=torch.cat([r.dy_ND for r in self.readings]),
        )


@dataclass(frozen=True, kw_only=True)
class RowAdam:
    """Numbers of one step of Adam on the rows that were read."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    scale: float = 1.0
    """Factor of the gradients: what clipping leaves."""


def row_squares(rows: Rows) -> Tensor:
    """The sum of squares of each row's gradient, float64 [U]."""
    if _triton(rows):
        from plait.kernels import value_table_triton

        return value_table_triton.row_squares(_parts(rows), rows.reads).double()
    if not _compiled(rows.dy_ND, rows.weight_P):
        return rows.gradients().double().square().sum(1)
    square_U = torch.empty(len(rows.row_U), dtype=torch.float64)
    sizes = (len(rows.row_U), rows.reads, rows.dy_ND.shape[1])
    call("value_table", "row_squares", sizes, (*_parts(rows), square_U))
    return square_U


def adam_rows(
    rows: Rows,
    numbers: RowAdam,
    fresh_U: Tensor,
    kept_U: Tensor,
    values_RD: Tensor,
    mean_RD: Tensor,
    square_R: Tensor,
    reads_R: Tensor,
) -> None:
    """Move the rows that were read, in place; the others are not touched.

    A row has its own clock, int32 `reads`: its moments change when it is read, and are corrected
    for bias by how often that was. The second moment is one number a row, of the mean squares of
    its gradients, `fresh` in this step (float64). Each row is first multiplied by its `kept`: the
    weight decay of the steps since it was read.
    """
    if _compiled(rows.dy_ND, rows.weight_P, values_RD, mean_RD):
        number = (numbers.scale, numbers.lr, numbers.beta1, numbers.beta2, numbers.eps)
        tail = (rows.row_U, torch.tensor(number, dtype=torch.float64), fresh_U, kept_U)
        sizes = (len(rows.row_U), rows.reads, rows.dy_ND.shape[1])
        state = (values_RD, mean_RD, square_R, reads_R)
        call("value_table", "adam_rows", sizes, (*_parts(rows), *tail, *state))
        return
    row_U = rows.row_U
    reads_R[row_U] += 1
    t_U = reads_R[row_U].double()
    square_U = square_R[row_U].lerp((fresh_U * numbers.scale**2).float(), 1 - numbers.beta2)
    square_R[row_U] = square_U
    deviation_U = (square_U / (1 - numbers.beta2**t_U).float()).sqrt() + numbers.eps
    rate_U = (numbers.lr / (1 - numbers.beta1**t_U)).float() / deviation_U
    if _triton(rows):
        from plait.kernels import value_table_triton

        parts, reads = _parts(rows), rows.reads
        number = (numbers.scale, 1 - numbers.beta1)
        by_row = (row_U, kept_U.float(), rate_U)
        value_table_triton.adam_rows(parts, reads, by_row, (values_RD, mean_RD), number)
        return
    gradient_UD = rows.gradients().float() * numbers.scale
    mean_UD = mean_RD[row_U].lerp(gradient_UD, 1 - numbers.beta1)
    mean_RD[row_U] = mean_UD
    moved_UD = kept_U[:, None] * values_RD[row_U].float() - rate_U[:, None] * mean_UD
    values_RD[row_U] = moved_UD.to(values_RD.dtype)


@torch.library.custom_op("plait::weighted_bag", mutates_args=())
def bag_op(values: Tensor, index: Tensor, weight: Tensor, ledger: int) -> Tensor:
    """The weighted sums, [N, D]; the ledger's number matters to the backward, 0 is none."""
    return F.embedding_bag(index, values, per_sample_weights=weight, mode="sum")


@bag_op.register_fake
def _(values, index, weight, ledger):
    return values.new_empty(len(index), values.shape[1])


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.ledger = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    values_RD, index_NJ, weight_NJ = ctx.saved_tensors
    dweight_NJ = dots_op(values_RD, index_NJ, weight_NJ, dy, ctx.ledger)
    dvalues_RD = None
    if ctx.needs_input_grad[0]:
        dvalues_RD = table_op(dy, index_NJ, weight_NJ, len(values_RD))
    return dvalues_RD, None, dweight_NJ, None


bag_op.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("plait::weighted_bag_dots", mutates_args=())
def dots_op(values: Tensor, index: Tensor, weight: Tensor, dy: Tensor, ledger: int) -> Tensor:
    """values[index[n, j]] . dy[n], [N, J]; and the reading is noted in the ledger."""
    dy = dy.contiguous()
    found = _ledgers.get(ledger)
    if found is not None:
        found.readings.append(Reading(index_NJ=index, weight_NJ=weight, dy_ND=dy))
    if _compiled(values, dy):
        out_NJ = dy.new_empty(index.shape)
        inputs = (dy, values.contiguous(), index.contiguous())
        call("value_table", "bag_dots", (*index.shape, dy.shape[1]), (*inputs, out_NJ))
        return out_NJ
    parts = [
        torch.bmm(F.embedding(index, values), dy[:, :, None]).squeeze(-1)
        for index, dy in zip(index.split(CHUNK), dy.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)


@dots_op.register_fake
def _(values, index, weight, dy, ledger):
    return dy.new_empty(index.shape)


@torch.library.custom_op("plait::weighted_bag_table", mutates_args=())
def table_op(dy: Tensor, index: Tensor, weight: Tensor, table_rows: int) -> Tensor:
    """The dense gradient of a table of so many rows."""
    row_U, first_U1, order_P = index_op(index.flatten(), table_rows)
    rows = Rows(
        row_U=row_U,
        first_U1=first_U1,
        order_P=order_P,
        weight_P=weight.flatten(),
        dy_ND=dy.contiguous(),
    )
    dvalues_RD = dy.new_zeros(table_rows, dy.shape[1])
    return dvalues_RD.index_copy_(0, row_U, rows.gradients())


@table_op.register_fake
def _(dy, index, weight, table_rows):
    return dy.new_empty(table_rows, dy.shape[1])


def index_op(index_P: Tensor, table_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reverse index: rows read [U], where their places begin [U + 1], places by row [P]."""
    if index_P.device.type == "cpu" and library("value_table") is not None:
        order_P, row_P = torch.empty_like(index_P), torch.empty_like(index_P)
        first_P1 = index_P.new_empty(len(index_P) + 1)
        inputs = (index_P.contiguous(), order_P, row_P, first_P1)
        count = call("value_table", "reverse_index", (len(index_P), table_rows), inputs)
        return row_P[:count], first_P1[: count + 1], order_P
    slot_P, order_P = index_P.sort(stable=True)
    row_U, count_U = slot_P.unique_consecutive(return_counts=True)
    return row_U, torch.cat([count_U.new_zeros(1), count_U.cumsum(0)]), order_P


def _row_gradients(rows: Rows, dy_ND: Tensor) -> Tensor:
    if _triton(rows):
        from plait.kernels import value_table_triton

        return value_table_triton.row_gradients(_parts(rows), rows.reads)
    if _compiled(dy_ND, rows.weight_P):
        out_UD = dy_ND.new_empty(len(rows.row_U), dy_ND.shape[1])
        call("value_table", "bag_rows", (len(out_UD), rows.reads, out_UD.shape[1]),
             (*_parts(rows), out_UD))  # fmt: skip
        return out_UD
    place_P = rows.order_P // max(1, rows.reads)
    return F.embedding_bag(
        place_P,
        dy_ND,
        rows.first_U1[:-1],
        per_sample_weights=rows.weight_P[rows.order_P],
        mode="sum",
    )


def _parts(rows: Rows) -> tuple[Tensor, ...]:
    return rows.dy_ND, rows.weight_P, rows.order_P, rows.first_U1


def _compiled(*tensors: Tensor) -> bool:
    """Whether value_table.c serves: float32 on a CPU."""
    plain = all(x.device.type == "cpu" and x.dtype is torch.float32 for x in tensors)
    return plain and library("value_table") is not None


def _triton(rows: Rows) -> bool:
    """Whether value_table_triton.py serves."""
    x_ND = rows.dy_ND
    fast = triton_runs(x_ND.device.type, x_ND.dtype) and x_ND.shape[1] <= WIDEST
    return fast and choose("value_table rows", "triton") == "triton"
