"""Which experts take which tokens: by expert choice in training, causally elsewhere.

Expert choice (MoMa, arXiv:2407.21770, section 2.2): an expert of modality m takes the
`capacity * n / E` tokens with the highest sigmoid scores among the n real tokens of m, of the whole
batch or of each row. Every expert then has the same load and no balance loss is needed, but a
token's experts depend on later tokens. Over several processes the batch is that of all of them: the
scores are gathered, and each rank keeps the pairs of its own tokens. In eval and in generation
experts must not look ahead. There are two rules for that:

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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import truncated_normal
from plait.models.plan import counted
from plait.tokenizers.errors import ConfigError

THRESHOLD_DECAY = 0.9
"""Of the average over training steps; at 0.98 it lags, and tokens got 0.8 experts in place of 1."""


EQUAL = 2**-11
"""Of logits. Like tokens, as of a picture's plain ground, have like scores but for their last bits,
which depend on what is computed beside them; these must not choose among them."""
TIE = 1e-5
"""Of scores: a token like the last one taken, as each <bos> is in a first layer, is taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Pairs of token and expert, by expert."""

    row_J: Tensor
    """Sorted rows; one that several experts take comes several times."""
    gate_J: Tensor
    """Weights of the experts' outputs, float32."""
    counts: list[int]
    """Pairs of each expert."""


class _Group(NamedTuple):
    """A modality's real tokens in the order's rows, from `start` on, and its experts' logits."""

    m: int
    start: int
    experts: slice
    x_nD: Tensor
    logits_nE: Tensor


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
        self.fixed = [False] * experts  # by freeze.py: thresholds that stand still
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
        rows, gates, counts = [], [], [0] * len(self.weight)
        groups = self._groups(x_ND, context)
        among = [group.logits_nE for group in groups]
        if not self.by_row and (self.training or context.leaking):
            among = context.ranks.rows(among, context.real_PM)
        for group, all_nE in zip(groups, among, strict=True):
            row_J, gate_J, counts[group.experts] = self._choose(group, all_nE, context)
            rows.append(row_J + group.start)
            gates.append(gate_J)
        if self.auxiliary_out is not None and self.training and not any(map(any, context.real_PM)):
            assert self.auxiliary_in is not None
            nothing = 0 * (self.auxiliary_in.sum() + self.auxiliary_out.sum())
            context.add_loss("auxiliary_router", nothing)  # gradients of zero, and not none
        return Choice(row_J=torch.cat(rows), gate_J=torch.cat(gates), counts=counts)

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets, in products and others; the auxiliary ones aside."""
        group = modality % len(self.sizes)  # one for all, or one for each
        return self.sizes[group] * self.weight.shape[1], 0

    def _groups(self, x_ND: Tensor, context: Context) -> list[_Group]:
        """The modalities; in a step, which mostly has one alone, only that."""
        groups, first, start, order = [], 0, 0, context.order
        for m, size in enumerate(self.sizes):
            experts, x_nD = slice(first, first + size), x_ND[start : start + order.real[m]]
            if len(x_nD) or context.layout is not None or order.alone is None:
                logits_nE = _float32_linear(x_nD, self.weight[experts])
                groups.append(_Group(m, start, experts, x_nD, logits_nE))
            start, first = start + order.counts[m], first + size
        return groups

    def _choose(
        self, group: _Group, all_nE: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Rows and gates of a group's pairs by expert, and their counts.

        `all_nE` are the logits among which experts choose: of all ranks, or (by row) one's own.
        """
        scores_nE, n = group.logits_nE.sigmoid(), len(group.x_nD)
        margin_nE = self._margin(group, scores_nE)
        if context.layout is not None:
            taken_nE = (margin_nE > 0).float()
            tally_E = F.pad(taken_nE, (0, 1), value=1.0).sum(0)  # and the tokens, last
            context.tally(f"{self.name}_taken/{group.m}", tally_E)
            context.note(f"{self.name}_load", taken_nE.sum(), n)
        if not self.training and not context.leaking:
            taken_nE = margin_nE > 0
            expert_J, row_J = taken_nE.T.nonzero().unbind(1)
            return row_J, scores_nE[row_J, expert_J], counted(taken_nE.sum(0))
        before, total = context.among(group.m)
        parts = context.order.by_row[group.m] if self.by_row else (total,)
        row_Ek, lowest_LE = self._best(all_nE, parts)
        own = slice(0, n) if self.by_row else slice(before, before + n)
        if self.training and total:
            taken_nE = torch.zeros_like(all_nE).scatter_(0, row_Ek.T, 1.0)[own]
            self._learn(group, lowest_LE.detach(), taken_nE, margin_nE, context)
        if self.training and self.noise:
            noise_nE = all_nE.new_empty(total, all_nE.shape[1]).uniform_()  # the same on all ranks
            noise_nE = self.noise * noise_nE.clamp(1e-6, 1 - 1e-6).logit()
            own_nE = noise_nE[before : before + n]
            scores_nE = (group.logits_nE + own_nE).sigmoid()
            all_nE = all_nE + (own_nE if self.by_row else noise_nE)
            row_Ek, _ = self._best(all_nE, parts)
        row_Ek = row_Ek - own.start if own.start else row_Ek
        return _pairs(scores_nE, row_Ek, cut=n < len(all_nE))

    def _best(self, logits_nE: Tensor, parts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Expert choice in each part of the tokens: rows [E, k], and each part's lowest scores.

        Logits that are closer than EQUAL count as equal, and places decide.
        """
        rows, lowest, start = [], [], 0
        for part_nE in logits_nE.split(parts):
            n, experts = part_nE.shape
            taken = min(n, math.ceil(self.capacity * n / experts))
            row_Ek = (part_nE / EQUAL).round().T.topk(taken, dim=1).indices
            rows.append(row_Ek + start if start else row_Ek)
            lowest += [part_nE.T.gather(1, row_Ek).amin(1).sigmoid()] if taken else []
            start += n
        return torch.cat(rows, 1), torch.stack(lowest) if lowest else logits_nE[:0]

    def _margin(self, group: _Group, scores_nE: Tensor) -> Tensor:
        """Above 0 where an expert takes a token by the rule of inference, [n, E]."""
        if self.auxiliary_in is None or self.auxiliary_out is None:
            return scores_nE.detach() - self.threshold_E[group.experts] + TIE
        hidden_nF = F.silu(_float32_linear(group.x_nD.detach(), self.auxiliary_in[group.m]))
        return _float32_linear(hidden_nF, self.auxiliary_out[group.experts])

    def _learn(
        self,
        group: _Group,
        lowest_LE: Tensor,
        taken_nE: Tensor,
        margin_nE: Tensor,
        context: Context,
    ) -> None:
        """Learn the rule of inference from what the experts take without noise."""
        if self.auxiliary_in is None:
            if self.fixed[group.experts.start]:
                return
            lowest_E, parts = lowest_LE.sum(0), len(lowest_LE)
            if self.by_row:
                lowest_E = context.ranks.sum(lowest_E)
                parts = sum(n for (n,) in context.ranks.numbers([parts]))
            threshold_E = self.threshold_E[group.experts]
            moved_E = (lowest_E / parts).lerp(threshold_E, THRESHOLD_DECAY)
            threshold_E.copy_(torch.where(threshold_E == 0, lowest_E / parts, moved_E))
            return
        _, total = context.among(group.m)
        loss = F.binary_cross_entropy_with_logits(margin_nE, taken_nE, reduction="sum")
        context.add_loss("auxiliary_router", loss / (total * taken_nE.shape[1]))


def _pairs(scores_nE: Tensor, row_Ek: Tensor, *, cut: bool) -> tuple[Tensor, Tensor, list[int]]:
    """Rows and gates by expert, and their counts; `cut` says that some rows are other ranks'."""
    n, experts = scores_nE.shape
    if not cut:
        gate_Ek = scores_nE.T.gather(1, row_Ek)
        return row_Ek.flatten(), gate_Ek.flatten(), [row_Ek.shape[1]] * experts
    own_Ek = (row_Ek >= 0) & (row_Ek < n)
    expert_J, place_J = own_Ek.nonzero().unbind(1)
    row_J = row_Ek[expert_J, place_J]
    return row_J, scores_nE[row_J, expert_J], own_Ek.sum(1).tolist()


def _float32_linear(x_nD: Tensor, weight_OD: Tensor) -> Tensor:
    """Scores are compared, so they are made in float32 whatever autocast says."""
    with torch.autocast(x_nD.device.type, enabled=False):
        return F.linear(x_nD.float(), weight_OD.float())
