"""A trained key-value memory in a feed-forward's place ("Memory Layers at Scale", 2412.09764).

A head has n half keys for each half of its query; the sums of the best k of both sides name the
best k of all n * n slots exactly, without scoring them. What the heads read is summed and gated by
the input ("Memory+"). All memory layers of a decoder read one value table (values.py), which the
decoder owns.

Letters: `R` slots, `n` half keys of a head, `k` slots that a head reads, `J` = H * k.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.product_key_lookup import product_key_lookup
from plait.models.config import ModelConfig
from plait.models.context import Context


class Memory(nn.Module):
    """Product-key look-up in the shared table: out = W_out(read(x) * silu(W_gate x))."""

    no_decay = ("query_bias", "gate_bias", "out_bias", "query_gain", "key_gain")

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__()
        heads, half = config.memory_heads, config.key_dim // 2
        self.top_k, self.gain, self.eps = config.memory_top_k, gain, config.norm_eps
        self.query = nn.Parameter(torch.empty(2 * heads * half, config.dim))
        self.query_bias = nn.Parameter(torch.empty(2 * heads * half))
        self.keys = nn.Parameter(torch.empty(heads, 2, config.memory_keys, half))
        self.query_gain = self.key_gain = None
        if config.memory_qk_norm:
            self.query_gain = nn.Parameter(torch.empty(half))
            self.key_gain = nn.Parameter(torch.empty(half))
        self.gate = self.gate_bias = self.out = self.out_bias = None
        if config.memory_gate:
            self.gate = nn.Parameter(torch.empty(config.value_dim, config.dim))
            self.gate_bias = nn.Parameter(torch.empty(config.value_dim))
            self.out = nn.Parameter(torch.empty(config.dim, config.value_dim))
            self.out_bias = nn.Parameter(torch.empty(config.dim))

    def reset_parameters(self) -> None:
        """Queries Xavier-uniform, half keys uniform within key_dim ** -0.5, biases 0."""
        nn.init.xavier_uniform_(self.query)
        bound = (2 * self.keys.shape[-1]) ** -0.5
        nn.init.uniform_(self.keys, -bound, bound)
        for bias in (self.query_bias, self.gate_bias, self.out_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.query_gain is not None and self.key_gain is not None:
            nn.init.ones_(self.query_gain)
            nn.init.ones_(self.key_gain)
        if self.gate is not None and self.out is not None:
            nn.init.normal_(self.gate, std=len(self.gate) ** -0.5)
            nn.init.normal_(self.out, std=self.gain * len(self.out) ** -0.5)

    def forward(self, x_ND: Tensor, context: Context) -> Tensor:
        """[N, D] to [N, D]."""
        values = context.values
        assert values is not None
        scores_NHk, slot_NHk = self._look_up(x_ND)
        share_NHk = scores_NHk.float().softmax(-1)  # over the slots of one head
        slot_NJ = slot_NHk.flatten(1)
        self._note_use(slot_NJ, share_NHk.flatten(1), len(values.weight), context)
        read_ND = values.read(slot_NJ, share_NHk.flatten(1), context.most)
        if self.gate is None or self.out is None:
            return read_ND
        read_ND = read_ND * F.silu(F.linear(x_ND, self.gate, self.gate_bias))
        return F.linear(read_ND, self.out, self.out_bias)

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets: in products, and others; the values that it reads too."""
        own = {name: p.numel() for name, p in self.named_parameters()}
        products = sum(own.get(name, 0) for name in ("query", "keys", "gate", "out"))
        width = self.out.shape[1] if self.out is not None else self.query.shape[1]
        return products, sum(own.values()) - products + self.keys.shape[0] * self.top_k * width

    def _look_up(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and slots of the best k of each head, [N, H, k]."""
        heads, _, _, half = self.keys.shape
        query = F.linear(x_ND, self.query, self.query_bias).view(-1, heads, 2, half)
        keys = self.keys
        if self.query_gain is not None and self.key_gain is not None:
            gain = self.query_gain.to(query.dtype)
            query = F.rms_norm(query, (half,), gain, self.eps) * half**-0.5
            keys = F.rms_norm(keys, (half,), self.key_gain, self.eps)
        return product_key_lookup(query, keys, self.top_k)

    @staticmethod
    def _note_use(slot_NJ: Tensor, share_NJ: Tensor, slots: int, context: Context) -> None:
        """Share of all slots that the batch read, and how far from evenly (arXiv:1907.05242, 4.5).

        That is the Kullback-Leibler divergence, in nats, of the weight that each slot got from
        equal weights: 0 if even, the logarithm of the number of slots if one slot got all.
        """
        if context.layout is None or not slot_NJ.numel():
            return
        mass_R = torch.zeros(slots, device=slot_NJ.device)
        mass_R.index_add_(0, slot_NJ.flatten(), share_NJ.detach().flatten().float())
        mass_R = context.ranks.sum(mass_R)
        mass_R /= mass_R.sum()
        context.note("memory_slots_hit", (mass_R > 0).float().mean())
        context.note("memory_kl_uniform", math.log(slots) - torch.special.entr(mass_R).sum())
