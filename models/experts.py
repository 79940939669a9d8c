"""Experts in modality groups (MoMa, arXiv:2407.21770): each expert chooses its tokens.

In training an expert of modality m takes the `capacity * n / E` tokens with the highest sigmoid
scores among the n real tokens of m in the batch, all rows together: every expert has the same
load and no balance loss is needed, but the choice looks at later tokens. In eval and in generation
it must not: there a token goes to every expert for which its score is above the expert's
threshold, an average over training steps of the lowest score that was taken. Such a loss is
causal, and what is reported; auxiliary routers would be a finer rule.

A token that no expert takes passes on the residual alone (32 % at the start with 4 experts). The
router reads the normalised stream: with the norm after the gate, as published, the gate of a token
with one expert cancels out, and its router's gradient with it (0.03 where 91.9 was).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.grouped_linear import grouped_linear
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import truncated_normal
from plait.tokenizers.errors import ConfigError

THRESHOLD_DECAY = 0.9
"""Of the average over training steps; at 0.98 it lags, and tokens got 0.8 experts in place of 1."""


class Experts(nn.Module):
    """Feed-forwards of all modalities side by side: weights [E, ...], E over all groups."""

    threshold_E: Tensor

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__()
        if len(config.experts) not in (1, modalities):
            raise ConfigError(
                f"model.experts: {list(config.experts)} for {modalities} modalities; "
                "give one number, or one for each modality"
            )
        self.sizes = config.experts * (modalities // len(config.experts))
        self.capacity, self.noise, self.gain = config.capacity, config.router_noise, gain
        experts, hidden = sum(self.sizes), config.ffn_dim
        self.router = nn.Parameter(torch.empty(experts, config.dim))
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, config.dim))
        self.down = nn.Parameter(torch.empty(experts, config.dim, hidden))
        self.register_buffer("threshold_E", torch.empty(experts))

    def reset_parameters(self) -> None:
        """Truncated normal weights; thresholds at 0, which stands for "never trained"."""
        dim, hidden = self.router.shape[1], self.down.shape[2]
        truncated_normal(self.router, dim**-0.5)
        truncated_normal(self.gate_up, dim**-0.5)
        truncated_normal(self.down, self.gain * hidden**-0.5)
        nn.init.zeros_(self.threshold_E)

    def forward(self, x_ND: Tensor, context: Context) -> Tensor:
        """[N, D] to [N, D], both sorted; padding gives zeros."""
        rows, gates, counts = [], [], []
        start = 0
        weights = zip(
            self.router.split(self.sizes), self.threshold_E.split(self.sizes), strict=True
        )
        for m, (router_ED, threshold_E) in enumerate(weights):
            x_nD = x_ND[start : start + context.order.real[m]]
            with torch.autocast(x_ND.device.type, enabled=False):  # scores are compared: float32
                logits_nE = F.linear(x_nD.float(), router_ED.float())
            choice = self._choose(logits_nE, threshold_E, context)
            rows.append(choice[0] + start)
            gates.append(choice[1])
            counts += choice[2]
            start += context.order.counts[m]
        row_J, gate_J = torch.cat(rows), torch.cat(gates)
        if context.layout is not None:
            taken_N = torch.zeros(len(x_ND), device=row_J.device).index_fill_(0, row_J, 1)
            real = max(1, sum(context.order.real))
            context.note("experts_dropped", 1 - taken_N.sum() / real)
        gate_NF, up_NF = grouped_linear(_Take.apply(x_ND, row_J), self.gate_up, counts).chunk(2, -1)
        y_JD = grouped_linear(F.silu(gate_NF) * up_NF, self.down, counts)
        return _Put.apply((y_JD * gate_J[:, None]).to(x_ND.dtype), row_J, len(x_ND))

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets on average: in products, and others."""
        expert = self.gate_up[0].numel() + self.down[0].numel()
        experts = self.sizes[modality]
        return experts * self.router.shape[1] + min(self.capacity, experts) * expert, 0

    def _choose(
        self, logits_nE: Tensor, threshold_E: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Rows and gates of a group's pairs of token and expert, by expert; and their counts."""
        scores_nE = logits_nE.sigmoid()
        above_nE = scores_nE > threshold_E
        if context.layout is not None and len(scores_nE):
            context.note("experts_load", above_nE.float().sum(1).mean())
        if not self.training or context.layout is None:
            expert_J, row_J = above_nE.T.nonzero().unbind(1)
            return row_J, scores_nE[row_J, expert_J], above_nE.sum(0).tolist()
        n, experts = scores_nE.shape
        taken = min(n, math.ceil(self.capacity * n / experts))
        clean_nE = scores_nE.detach()
        if self.noise:
            noise_nE = torch.rand_like(logits_nE).clamp(1e-6, 1 - 1e-6).logit()
            scores_nE = (logits_nE + self.noise * noise_nE).sigmoid()
        gate_kE, row_kE = scores_nE.topk(taken, dim=0)
        if taken:
            self._average(threshold_E, clean_nE.topk(taken, dim=0).values[-1])
        return row_kE.T.flatten(), gate_kE.T.flatten(), [taken] * experts

    @torch.no_grad()
    def _average(self, threshold_E: Tensor, lowest_E: Tensor) -> None:
        """Move a group's thresholds towards the lowest scores taken, or there at the first time."""
        moved_E = lowest_E.lerp(threshold_E, THRESHOLD_DECAY)
        threshold_E.copy_(torch.where(threshold_E == 0, lowest_E, moved_E))


class _Take(torch.autograd.Function):
    """Rows of x, some of them more than once; twenty times faster backward than index_select's."""

    @staticmethod
    def forward(ctx, x_ND, row_J):
        ctx.save_for_backward(row_J)
        ctx.rows = len(x_ND)
        return x_ND.index_select(0, row_J)

    @staticmethod
    def backward(ctx, *dy):
        return _Put.apply(dy[0], *ctx.saved_tensors, ctx.rows), None


class _Put(torch.autograd.Function):
    """Rows added up at their places among `rows` rows; the same result whatever the threads."""

    @staticmethod
    def forward(ctx, y_JD, row_J, rows):
        ctx.save_for_backward(row_J)
        index_JD = row_J[:, None].expand_as(y_JD)
        return y_JD.new_zeros(rows, y_JD.shape[1]).scatter_add_(0, index_JD, y_JD)

    @staticmethod
    def backward(ctx, *dy):
        return _Take.apply(dy[0], *ctx.saved_tensors), None, None
