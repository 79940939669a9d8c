"""Causal self-attention inside documents, with projections and QK-norm that may be untied.

Queries, keys and values are made, normalised and rotated in sorted order; the gathers that
attention packs documents with start and end in it, so that untying moves nothing more. Attention
itself sees the original interleaving (arXiv:2411.04996, algorithm 1). QK-norm comes before the
rotation (arXiv:2405.09818, section 2.3).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.attention import attention
from plait.kernels.rotary import rotary_heads, rotate
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import ModalityLayerNorm, ModalityLinear, ModalityNorm


@dataclass(eq=False)
class AttentionCache:
    """Keys and values so far, with room to grow: [B, H, room, K]; `S` counts those in use."""

    k_BHSK: Tensor
    v_BHSK: Tensor
    length: int = 0

    def append(self, k_BTHK: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """Take in T positions; returns all keys and values up to them, [B, H, S, K]."""
        end = self.length + k_BTHK.shape[1]
        if end > self.k_BHSK.shape[2]:
            room = max(end + 64, 2 * self.k_BHSK.shape[2])
            self.k_BHSK, self.v_BHSK = (_grown(x, room) for x in (self.k_BHSK, self.v_BHSK))
        self.k_BHSK[:, :, self.length : end] = k_BTHK.transpose(1, 2)
        self.v_BHSK[:, :, self.length : end] = v_BTHK.transpose(1, 2)
        self.length = end
        return self.k_BHSK[:, :, :end], self.v_BHSK[:, :, :end]

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows, which may repeat."""
        self.k_BHSK, self.v_BHSK = self.k_BHSK[rows_B], self.v_BHSK[rows_B]


class Attention(nn.Module):
    """Multi-head attention over rows sorted by modality."""

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__()
        self.heads, self.head_dim = config.n_heads, config.head_dim
        untied = {part: modalities if part in config.untie else 1 for part in ("qkv", "o", "norm")}
        self.qkv = ModalityLinear(config.dim, 3 * config.dim, untied["qkv"])
        self.o = ModalityLinear(config.dim, config.dim, untied["o"], gain=gain)
        self.q_norm = self.k_norm = None
        if config.qk_norm != "none":
            norm = ModalityNorm if config.qk_norm == "rms" else ModalityLayerNorm
            self.q_norm = norm(self.head_dim, untied["norm"], config.norm_eps)
            self.k_norm = norm(self.head_dim, untied["norm"], config.norm_eps)

    def forward(
        self, x_ND: Tensor, context: Context, cache: AttentionCache | None = None
    ) -> Tensor:
        """[N, D] to [N, D], both sorted; a cache takes in the keys and values."""
        assert context.layout is not None and context.document_BT is not None
        assert context.turn is not None
        shape = (*context.document_BT.shape, self.heads, self.head_dim)
        q_NHK, k_NHK, v_NHK = self._project(x_ND, context)
        q_BTHK, k_BTHK, v_BTHK = (x_NHK.view(shape) for x_NHK in (q_NHK, k_NHK, v_NHK))
        if cache is not None:
            k_NHK, v_NHK = map(context.order.unsort, (k_BTHK.flatten(0, 1), v_NHK))
            cache.append(k_NHK.view(shape), v_NHK.view(shape))
        o_BTHK = attention(q_BTHK, k_BTHK, v_BTHK, context.layout)
        return self.o(o_BTHK.reshape(len(x_ND), -1), context.order)

    def start(self, batch_size: int, device: torch.device) -> AttentionCache:
        """An empty cache."""
        room = torch.zeros(batch_size, self.heads, 64, self.head_dim, device=device)
        return AttentionCache(room, room.clone())

    def step(self, x_BD: Tensor, context: Context, cache: AttentionCache) -> Tensor:
        """One position of each row, [B, D] sorted, to [B, D]."""
        assert context.turn is not None
        cosine_B1C, sine_B1C = map(context.order.sort, context.turn)
        heads = self._project(x_BD, replace(context, turn=(cosine_B1C, sine_B1C)))
        q_B1HK, k_B1HK, v_B1HK = (context.order.unsort(x_BHK)[:, None] for x_BHK in heads)
        k_BHSK, v_BHSK = cache.append(k_B1HK, v_B1HK)
        seen = None if context.seen_BS is None else context.seen_BS[:, None, None]
        o_BH1K = F.scaled_dot_product_attention(q_B1HK.transpose(1, 2), k_BHSK, v_BHSK, seen)
        return self.o(context.order.sort(o_BH1K.flatten(1)), context.order)

    def _project(self, x_ND: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, sorted, each [N, H, K]; turned by as many sorted positions."""
        assert context.turn is not None
        order, turn_NC = (
            context.order,
            (context.turn[0].flatten(0, 1), context.turn[1].flatten(0, 1)),
        )
        qkv_N3HK = self.qkv(x_ND, order).view(len(x_ND), 3, self.heads, self.head_dim)
        if isinstance(self.q_norm, ModalityNorm) and isinstance(self.k_norm, ModalityNorm):
            (q_gain_MK, counts), (k_gain_MK, _) = (
                norm.gains(qkv_N3HK, order) for norm in (self.q_norm, self.k_norm)
            )
            gain_2MK = torch.stack((q_gain_MK, k_gain_MK))
            return rotary_heads(qkv_N3HK, turn_NC, gain_2MK, counts, self.q_norm.eps)
        if self.q_norm is None or self.k_norm is None:
            return rotary_heads(qkv_N3HK, turn_NC)
        q_NHK, k_NHK, v_NHK = qkv_N3HK.unbind(1)
        q_NHK, k_NHK = self.q_norm(q_NHK, order), self.k_norm(k_NHK, order)
        return rotate(q_NHK, turn_NC), rotate(k_NHK, turn_NC), v_NHK


def _grown(x_BHSK: Tensor, room: int) -> Tensor:
    B, H, S, K = x_BHSK.shape
    return torch.cat((x_BHSK, x_BHSK.new_zeros(B, H, room - S, K)), dim=2)
