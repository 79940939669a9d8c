"""Causal self-attention inside documents, with projections and QK-norm that may be untied.

Queries, keys and values are made, normalised and rotated in sorted order; the gathers that
attention packs documents with start and end in it, so that untying moves nothing more. Attention
itself sees the original interleaving (arXiv:2411.04996, algorithm 1). QK-norm comes before the
rotation (arXiv:2405.09818, section 2.3).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.attention import attention
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import ModalityLayerNorm, ModalityLinear, ModalityNorm, rotate


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
        q_BTHK = rotate(q_NHK.view(shape), context.turn)
        k_BTHK = rotate(k_NHK.view(shape), context.turn)
        v_BTHK = v_NHK.view(shape)
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
        q_BHK, k_BHK, v_BHK = map(context.order.unsort, self._project(x_BD, context))
        q_B1HK = rotate(q_BHK[:, None], context.turn)
        k_B1HK = rotate(k_BHK[:, None], context.turn)
        k_BHSK, v_BHSK = cache.append(k_B1HK, v_BHK[:, None])
        seen = None if context.seen_BS is None else context.seen_BS[:, None, None]
        o_BH1K = F.scaled_dot_product_attention(q_B1HK.transpose(1, 2), k_BHSK, v_BHSK, seen)
        return self.o(context.order.sort(o_BH1K.flatten(1)), context.order)

    def _project(self, x_ND: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, sorted, each [N, H, K]."""
        qkv_N3HK = self.qkv(x_ND, context.order).view(len(x_ND), 3, self.heads, self.head_dim)
        q_NHK, k_NHK, v_NHK = qkv_N3HK.unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            q_NHK = self.q_norm(q_NHK, context.order)
            k_NHK = self.k_norm(k_NHK, context.order)
        return q_NHK, k_NHK, v_NHK


def _grown(x_BHSK: Tensor, room: int) -> Tensor:
    B, H, S, K = x_BHSK.shape
    return torch.cat((x_BHSK, x_BHSK.new_zeros(B, H, room - S, K)), dim=2)
