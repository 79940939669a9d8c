"""Mixture-of-depths: a block that only some tokens pass, the others staying on the residual alone.

As in MoMa (arXiv:2407.21770, section 2.3): of the n real tokens of a micro-batch, whatever their
modality, the `depth_capacity * n` with the highest scores sigmoid(x w) pass the block, and what it
adds to them is weighted by the score: x + sigmoid(x w) (block(x) - x). They attend to each other
alone, at their own positions; a Mamba block's state passes over the others. Experts in the block
choose among the tokens that pass. Who passes in eval and in generation follows from the token
itself, by the same rules as for experts (routing.py).

At a capacity of 1/4 and width 512 such a block costs 0.29 of the whole one on a CPU. The chosen
tokens of all rows become one row of documents; this is worked out on the CPU, so a GPU is waited
for in each such block. In `step` each row has a cache of its own, for the tokens that took the
block, and mixes by itself.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from plait.kernels.attention import AttentionLayout
from plait.models.attention import AttentionCache
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import put, take
from plait.models.mamba import MambaCache
from plait.models.plan import Order
from plait.models.routing import Router


@dataclass(eq=False)
class DepthCache:
    """A cache for each row, of the tokens that took the block."""

    rows: list[AttentionCache | MambaCache]

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows, which may repeat."""
        self.rows = [copy.deepcopy(self.rows[b]) for b in rows_B.tolist()]


class Depth(nn.Module):
    """The choice of the tokens that pass a block, and their way in and out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(
            replace(
                config,
                experts=(1,),
                capacity=config.depth_capacity,
                expert_choice="batch",
                router_noise=0.0,
            ),
            modalities=1,
            name="depth",
        )

    def forward(
        self, x_ND: Tensor, context: Context, mixer, cache: DepthCache | None, block: Callable
    ) -> Tensor:
        """[N, D] to [N, D], sorted; `block` is called with the tokens that pass it, sorted too.

        A cache, of one document a row, has the block called row by row, and its `mixer` take in
        what later steps need.
        """
        row_J, gate_J = self._choose(x_ND, context)
        together = context.ranks.size > 1  # a rank whose tokens all stay has its part in the block
        most = max(n for (n,) in context.ranks.numbers([len(row_J) or len(x_ND)]))
        context = replace(context, most=most if together else 0)
        if not len(row_J):
            runs = self.training or together
            return self._nothing(x_ND, context, block, gate_J) if runs else x_ND
        parts = [slice(None)] if cache is None else self._by_row(row_J, context)
        states = [None] if cache is None else cache.rows
        for part, state in zip(parts, states, strict=True):
            part_J = row_J[part]
            if not len(part_J):
                continue
            mix = None if state is None else partial(mixer, cache=state)
            x_JD = take(x_ND, part_J)
            added_JD = block(x_JD, chosen(context, part_J), mix) - x_JD
            added_JD = (added_JD * gate_J[part, None]).to(x_ND.dtype)
            x_ND = x_ND + put(added_JD, part_J, len(x_ND))
        return x_ND

    @staticmethod
    def _by_row(row_J: Tensor, context: Context) -> list[Tensor]:
        """Which of the sorted rows are of each row of the batch."""
        order = context.order
        flat_J = row_J if order.permutation_N is None else order.permutation_N[row_J]
        B = len(order.by_row[0])
        batch_J = flat_J // (sum(order.counts) // B)
        return [(batch_J == b).nonzero().flatten() for b in range(B)]

    @staticmethod
    def _nothing(x_ND: Tensor, context: Context, block, gate_J: Tensor) -> Tensor:
        """All pass unchanged, and every parameter gets a gradient of zero."""
        order = context.order
        none = tuple((0,) * len(row) for row in order.by_row)
        order = replace(order, real=(0,) * len(none), by_row=none)
        return x_ND + 0 * (block(x_ND, replace(context, order=order)) - x_ND + gate_J.sum())

    def step(self, x_BD: Tensor, context: Context, mix, cache: DepthCache, block) -> Tensor:
        """One position of each row, [B, D] sorted.

        `mix(x_1D, context, cache)` is the sequence mixer's step of one row, and `block(x_JD,
        context, mix)` the block with a mixer of all rows in place of its own.
        """
        row_J, gate_J = self._choose(x_BD, context)
        if not len(row_J):
            return x_BD

        def mix_rows(x_JD: Tensor, part: Context) -> Tensor:
            permutation_B = context.order.permutation_N
            b_J = row_J if permutation_B is None else permutation_B[row_J]
            modality_J = _modality(row_J.cpu(), context.order).tolist()
            singles = zip(x_JD.split(1), modality_J, b_J.tolist(), strict=True)
            return torch.cat([mix(x, _single(context, m, b), cache.rows[b]) for x, m, b in singles])

        x_JD = take(x_BD, row_J)
        added_JD = (block(x_JD, chosen(context, row_J), mix_rows) - x_JD) * gate_J[:, None]
        return x_BD + put(added_JD.to(x_BD.dtype), row_J, len(x_BD))

    def _choose(self, x_ND: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Rows that pass, ascending, and their gates."""
        if context.document_BT is None:
            real_J = torch.arange(len(x_ND), device=x_ND.device)
        else:
            real_N = context.document_BT.flatten() >= 0
            flat_J1 = real_N.nonzero_static(size=sum(context.order.real))  # the device is not asked
            real_J = context.order.rows(flat_J1.flatten())
        n = (len(real_J),)
        order = Order(counts=n, real=n, by_row=(n,))
        choice = self.router(take(x_ND, real_J), replace(context, order=order))
        row_J, place_J = real_J[choice.row_J].sort()
        if context.layout is not None:
            context.tally_rows("depth_passed", row_J)
        return row_J, take(choice.gate_J[:, None], place_J)[:, 0]


def chosen(context: Context, row_J: Tensor) -> Context:
    """The context of some sorted rows, ascending, as one row [1, J] in sequence order.

    Each document of each row stays a document; padding is not among the rows.
    """
    order, document_BT = context.order, context.document_BT
    flat_J = row_J if order.permutation_N is None else order.permutation_N[row_J]
    T = sum(order.counts) // len(order.by_row[0])
    line_J, inverse_J = flat_J.sort()
    part = replace(context, order=_part(order, row_J, flat_J.cpu() // T, inverse_J))
    if document_BT is None:
        return part
    document_J = torch.stack((line_J // T, document_BT.flatten()[line_J].long())).cpu()
    start_J = torch.ones(len(line_J), dtype=torch.bool)
    start_J[1:] = (document_J[:, 1:] != document_J[:, :-1]).any(0)
    document_1J = (start_J.cumsum(0) - 1).int()[None]
    turn = context.turn
    if turn is not None:
        turn = (turn[0].flatten(0, 1)[row_J][None], turn[1].flatten(0, 1)[row_J][None])
    layout = AttentionLayout.of(document_1J).to(row_J.device)
    permutation_J, inverse_J = part.order.permutation_N, part.order.inverse_N
    if permutation_J is not None and inverse_J is not None:
        layout = layout.sorted(permutation_J, inverse_J)
    return replace(
        part,
        turn=turn,
        layout=layout,
        document_BT=document_1J.to(row_J.device),
        reset_BT=start_J[None].to(row_J.device),
    )


def _part(order: Order, row_J: Tensor, batch_J: Tensor, inverse_J: Tensor) -> Order:
    """The order of some rows; `batch_J` are their rows in the batch, `inverse_J` their places."""
    modalities, rows = len(order.counts), len(order.by_row[0])
    cell_J = _modality(row_J.cpu(), order) * rows + batch_J
    by_row = torch.bincount(cell_J, minlength=modalities * rows).view(modalities, rows)
    counts = tuple(by_row.sum(1).tolist())
    permutation_J = None
    if order.permutation_N is not None:
        permutation_J = torch.empty_like(inverse_J)
        permutation_J[inverse_J] = torch.arange(len(inverse_J), device=inverse_J.device)
    return Order(
        counts=counts,
        real=counts,
        by_row=tuple(map(tuple, by_row.tolist())),
        permutation_N=permutation_J,
        inverse_N=None if permutation_J is None else inverse_J,
    )


def _single(context: Context, modality: int, b: int) -> Context:
    """The context of row b of a step alone."""
    one = tuple(int(m == modality) for m in range(len(context.order.counts)))
    order = Order(counts=one, real=one, by_row=tuple((n,) for n in one))
    turn = context.turn
    if turn is not None:
        turn = (turn[0][b : b + 1], turn[1][b : b + 1])
    return replace(context, order=order, turn=turn, seen_BS=None)


def _modality(row_J: Tensor, order: Order) -> Tensor:
    """The segment in which each sorted row lies, on the CPU."""
    ends = torch.tensor(order.counts).cumsum(0)
    return torch.bucketize(row_J, ends, right=True)
