"""Experts in modality groups (MoMa, arXiv:2407.21770): each expert chooses its tokens (routing.py).

A token that no expert takes passes on the residual alone (32 % at the start with 4 experts). The
router reads the normalised stream where norms come first. Where they come after the sublayer, an
expert's output is normalised before its gate: as published, with the norm over the sum of gated
outputs, the gate of a token with one expert cancels out, and its router's gradient with it.
"""

import dataclasses

import torch
from torch import Tensor, nn

from plait.kernels.gated_silu import gated_silu
from plait.kernels.grouped_linear import grouped_linear
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import ModalityNorm, put, take, truncated_normal
from plait.models.routing import Router


class Experts(nn.Module):
    """Feed-forwards of all modalities side by side: weights [E, ...], E over all groups."""

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__()
        self.router = Router(config, modalities)
        self.capacity, self.gain = config.capacity, gain
        experts, hidden = sum(self.router.sizes), config.ffn_dim
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, config.dim))
        self.down = nn.Parameter(torch.empty(experts, config.dim, hidden))

    def reset_parameters(self) -> None:
        """Truncated normal weights."""
        dim, hidden = self.gate_up.shape[2], self.down.shape[2]
        truncated_normal(self.gate_up, dim**-0.5)
        truncated_normal(self.down, self.gain * hidden**-0.5)

    def forward(self, x_ND: Tensor, context: Context, norm: ModalityNorm | None = None) -> Tensor:
        """[N, D] to [N, D], both sorted; padding gives zeros. `norm` is that of the outputs."""
        choice = self.router(x_ND, context)
        if context.layout is not None:
            reached_M = context.tally_rows("experts_reached", choice.row_J)
            real = sum(context.order.real)
            context.note("experts_dropped", real - reached_M.sum(), real)
        x_JD = take(x_ND, choice.row_J)
        h_JF = gated_silu(grouped_linear(x_JD, self.gate_up, choice.counts))
        y_JD = grouped_linear(h_JF, self.down, choice.counts)
        if norm is not None:
            y_JD = norm(
                y_JD, dataclasses.replace(context.order, counts=self._groups(choice.counts))
            )
        return put((y_JD * choice.gate_J[:, None]).to(x_ND.dtype), choice.row_J, len(x_ND))

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets on average: in products, and others."""
        expert = self.gate_up[0].numel() + self.down[0].numel()
        return min(self.capacity, self.router.sizes[modality]) * expert, 0

    def _groups(self, counts: list[int]) -> tuple[int, ...]:
        """Pairs of each modality."""
        found, first = [], 0
        for size in self.router.sizes:
            found.append(sum(counts[first : first + size]))
            first += size
        return tuple(found)
