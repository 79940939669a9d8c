"""Which experts take which tokens: by expert choice in training, causally elsewhere.

Expert choice (MoMa, arXiv:2407.21770, section 2.2): an expert of modality m takes the
`capacity * n / E` tokens with the highest sigmoid scores among the n real tokens of m, of the whole
batch or of each row. Every expert then has the same load and no balance loss is needed, but a
token's experts depend on later tokens. In eval and in generation they must not. There are two rules
for that:

- `threshold` (ours, the default): an expert takes a token whose score is above a running mean, over
  training steps, of the lowest score that it took. The score is what expert choice compares, so all
  that is lost is how this batch differs from the mean.
- `auxiliary` (the paper's, section 2.4): a small network of its own says for each token and expert
  whether the expert would take it, `sigmoid(SiLU(x W1) W2) > 0.5`, learned beside the model from
  what was taken, without a gradient to it. The gate is still the main router's score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import truncated_normal
from plait.tokenizers.errors import ConfigError

THRESHOLD_DECAY = 0.9
"""Of the average over training steps; at 0.98 it lags, and tokens got 0.8 experts in place of 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Pairs of token and expert, by expert."""

    row_J: Tensor
    """Sorted rows; one that several experts take comes several times."""
    gate_J: Tensor
    """Weights of the experts' outputs, float32."""
    counts: list[int]
    """Pairs of each expert."""


class Router(nn.Module):
    """Scores and choice of the experts of all modalities, E in all."""

    threshold_E: Tensor

    def __init__(self, config: ModelConfig, modalities: int, name: str = "experts") -> None:
        """`name` is that of its figures."""
        super().__init__()
        if len(config.experts) not in (1, modalities):
            raise ConfigError(
                f"model.experts: {list(config.experts)} for {modalities} modalities; "
                "give one number, or one for each modality"
            )
        self.sizes = config.experts * (modalities // len(config.experts))
        self.capacity, self.noise = config.capacity, config.router_noise
        self.name, self.by_row = name, config.expert_choice == "row"
        experts, hidden = sum(self.sizes), max(1, config.dim // 2)
        self.weight = nn.Parameter(torch.empty(experts, config.dim))
        self.register_buffer("threshold_E", torch.empty(experts))
        self.auxiliary_in = self.auxiliary_out = None
        if config.causal_choice == "auxiliary":
            self.auxiliary_in = nn.Parameter(torch.empty(modalities, hidden, config.dim))
            self.auxiliary_out = nn.Parameter(torch.empty(experts, hidden))

    def reset_parameters(self) -> None:
        """Truncated normal weights; thresholds at 0, which stands for "never trained"."""
        truncated_normal(self.weight, self.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.threshold_E)
        for weight in (self.auxiliary_in, self.auxiliary_out):
            if weight is not None:
                truncated_normal(weight, weight.shape[-1] ** -0.5)

    def forward(self, x_ND: Tensor, context: Context) -> Choice:
        """The choice among the real tokens of [N, D], sorted; it may note a loss of its own."""
        rows, gates, counts, first, start = [], [], [], 0, 0
        for m, size in enumerate(self.sizes):
            real = context.order.real[m]
            group = slice(first, first + size)
            if context.layout is None and not real and context.order.alone is not None:
                counts, first = counts + [0] * size, first + size  # a step of another modality
                continue
            row_J, gate_J, taken = self._choose(x_ND[start : start + real], m, group, context)
            rows.append(row_J + start)
            gates.append(gate_J)
            counts += taken
            start, first = start + context.order.counts[m], first + size
        if self.training and not any(context.order.real) and self.auxiliary_out is not None:
            assert self.auxiliary_in is not None
            nothing = 0 * (self.auxiliary_in.sum() + self.auxiliary_out.sum())
            context.add_loss("auxiliary_router", nothing)  # gradients of zero, and not none
        return Choice(row_J=torch.cat(rows), gate_J=torch.cat(gates), counts=counts)

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets, in products and others; the auxiliary ones aside."""
        group = modality % len(self.sizes)  # one for all, or one for each
        return self.sizes[group] * self.weight.shape[1], 0

    def _choose(
        self, x_nD: Tensor, m: int, group: slice, context: Context
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Rows and gates of a group's pairs by expert, and their counts."""
        logits_nE = _float32_linear(x_nD, self.weight[group])
        scores_nE = logits_nE.sigmoid()
        margin_nE = self._margin(x_nD, scores_nE, m, group)
        if context.layout is not None:
            taken_E = (margin_nE > 0).float().sum(0)
            context.tally(f"{self.name}_taken/{m}", F.pad(taken_E, (0, 1), value=len(x_nD)))
            if len(x_nD):
                context.note(f"{self.name}_load", taken_E.sum() / len(x_nD))
        parts = context.order.by_row[m] if self.by_row else (len(x_nD),)
        if not self.training and not context.leaking:
            expert_J, row_J = (margin_nE > 0).T.nonzero().unbind(1)
            counts = torch.bincount(expert_J, minlength=scores_nE.shape[1]).tolist()
            return row_J, scores_nE[row_J, expert_J], counts
        row_kE, gate_kE, lowest_E = self._best(scores_nE, parts)
        if self.training and len(x_nD):
            self._learn(row_kE, lowest_E.detach(), margin_nE, group, context)
        if self.training and self.noise:
            noise_nE = torch.rand_like(logits_nE).clamp(1e-6, 1 - 1e-6).logit()
            scores_nE = (logits_nE + self.noise * noise_nE).sigmoid()
            row_kE, gate_kE, _ = self._best(scores_nE, parts)
        return row_kE.T.flatten(), gate_kE.T.flatten(), [len(row_kE)] * scores_nE.shape[1]

    def _best(self, scores_nE: Tensor, parts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Expert choice in each part of the tokens: rows and scores [k, E], lowest scores [E]."""
        rows, gates, lowest, start = [], [], [], 0
        for part_nE in scores_nE.split(parts):
            n, experts = part_nE.shape
            taken = min(n, math.ceil(self.capacity * n / experts))
            gate_kE, row_kE = part_nE.topk(taken, dim=0)
            rows.append(row_kE + start)
            gates.append(gate_kE)
            lowest += [gate_kE[-1]] if taken else []
            start += n
        none_E = scores_nE.new_zeros(scores_nE.shape[1])
        lowest_E = torch.stack(lowest).mean(0) if lowest else none_E
        return torch.cat(rows), torch.cat(gates), lowest_E

    def _margin(self, x_nD: Tensor, scores_nE: Tensor, m: int, group: slice) -> Tensor:
        """Above 0 where an expert takes a token by the rule of inference, [n, E]."""
        if self.auxiliary_in is None or self.auxiliary_out is None:
            return scores_nE.detach() - self.threshold_E[group]
        hidden_nF = F.silu(_float32_linear(x_nD.detach(), self.auxiliary_in[m]))
        return _float32_linear(hidden_nF, self.auxiliary_out[group])

    def _learn(
        self, row_kE: Tensor, lowest_E: Tensor, margin_nE: Tensor, group: slice, context: Context
    ) -> None:
        """Learn the rule of inference from what the experts take without noise."""
        if self.auxiliary_in is None:
            threshold_E = self.threshold_E[group]
            moved_E = lowest_E.lerp(threshold_E, THRESHOLD_DECAY)
            threshold_E.copy_(torch.where(threshold_E == 0, lowest_E, moved_E))
            return
        taken_nE = torch.zeros_like(margin_nE).scatter_(0, row_kE, 1.0)
        loss = F.binary_cross_entropy_with_logits(margin_nE, taken_nE)
        context.add_loss("auxiliary_router", loss)


def _float32_linear(x_nD: Tensor, weight_OD: Tensor) -> Tensor:
    """Scores are compared, so they are made in float32 whatever autocast says."""
    with torch.autocast(x_nD.device.type, enabled=False):
        return F.linear(x_nD.float(), weight_OD.float())
