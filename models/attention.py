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
    """Keys and values of the steps so far, with room to grow: [B, room, H, K]."""

    k_BSHK: Tensor
    v_BSHK: Tensor
    length: int = 0

    def append(self, k_BHK: Tensor, v_BHK: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one step; returns all keys and values up to it."""
        if self.length == self.k_BSHK.shape[1]:
            self.k_BSHK, self.v_BSHK = _double(self.k_BSHK), _double(self.v_BSHK)
        self.k_BSHK[:, self.length] = k_BHK
        self.v_BSHK[:, self.length] = v_BHK
        self.length += 1
        return self.k_BSHK[:, : self.length], self.v_BSHK[:, : self.length]


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

    def forward(self, x_ND: Tensor, context: Context) -> Tensor:
        """[N, D] to [N, D], both sorted."""
        assert context.layout is not None and context.document_BT is not None
        assert context.turn is not None
        shape = (*context.document_BT.shape, self.heads, self.head_dim)
        q_NHK, k_NHK, v_NHK = self._project(x_ND, context)
        q_BTHK = rotate(q_NHK.view(shape), context.turn)
        k_BTHK = rotate(k_NHK.view(shape), context.turn)
        o_BTHK = attention(q_BTHK, k_BTHK, v_NHK.view(shape), context.layout)
        return self.o(o_BTHK.reshape(len(x_ND), -1), context.order)

    def start(self, batch_size: int, device: torch.device) -> AttentionCache:
        """An empty cache."""
        room = torch.zeros(batch_size, 64, self.heads, self.head_dim, device=device)
        return AttentionCache(room, room.clone())

    def step(self, x_BD: Tensor, context: Context, cache: AttentionCache) -> Tensor:
        """One position of each row, [B, D] sorted, to [B, D]."""
        assert context.turn is not None
        q_BHK, k_BHK, v_BHK = map(context.order.unsort, self._project(x_BD, context))
        q_B1HK = rotate(q_BHK[:, None], context.turn)
        k_B1HK = rotate(k_BHK[:, None], context.turn)
        k_BSHK, v_BSHK = cache.append(k_B1HK[:, 0], v_BHK)
        o_BH1K = F.scaled_dot_product_attention(
            q_B1HK.transpose(1, 2), k_BSHK.transpose(1, 2), v_BSHK.transpose(1, 2)
        )
        return self.o(context.order.sort(o_BH1K.flatten(1)), context.order)

    def _project(self, x_ND: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, sorted, each [N, H, K]."""
        qkv_N3HK = self.qkv(x_ND, context.order).view(len(x_ND), 3, self.heads, self.head_dim)
        q_NHK, k_NHK, v_NHK = qkv_N3HK.unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            q_NHK = self.q_norm(q_NHK, context.order)
            k_NHK = self.k_norm(k_NHK, context.order)
        return q_NHK, k_NHK, v_NHK


def _double(x_BSHK: Tensor) -> Tensor:
    return torch.cat((x_BSHK, torch.zeros_like(x_BSHK)), dim=1)
