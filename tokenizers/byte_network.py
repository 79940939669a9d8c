"""A small causal language model of bytes with sliding-window attention and hashed n-grams.

Special here: it runs block by block. A byte attends to the `window` bytes up to itself, which lie
in its own block of `window` bytes and the one before, so a block needs only the keys and values of
the last block, and a document costs linear time. Input i is byte i - 1 (the first is a marker),
output i foretells byte i. Besides its own embedding, an input has those of its last 2, 3 and 4
bytes, hashed (arXiv:2412.09871, section 3.2.1); nothing reaches back over a document's start.
Letters: `N` blocks of `W` bytes, `X` = 2W keys.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.tokenizers.errors import ConfigError

BEGIN = 256
"""The input before a document's first byte, and all before that."""
GRAMS = 3
"""Hashed n-grams of an input: its last 2, 3 and 4 bytes."""
Previous = list[tuple[Tensor, Tensor]]
"""For each layer, the last block's keys and values [B, 1, W, H, K]."""
BOUNDS = {
    "dim": (8, 1024),
    "n_layers": (1, 32),
    "n_heads": (1, 64),
    "window": (8, 2048),
    "hash_bits": (4, 18),
}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes; ConfigError if one is out of bounds."""

    dim: int
    n_layers: int
    n_heads: int
    window: int
    hash_bits: int
    """The n-grams of each length share 2^hash_bits embeddings."""

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}: should be in {low}..{high}")
        if self.dim % (2 * self.n_heads):
            raise ConfigError(f"dim {self.dim} should be a multiple of 2 x n_heads {self.n_heads}")


class ByteNetwork(nn.Module):
    """Log-probabilities of the next byte."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(BEGIN + 1, config.dim)
        self.grams = nn.Embedding(GRAMS << config.hash_bits, config.dim)
        nn.init.normal_(self.embed.weight, std=0.5 / math.sqrt(config.dim))
        nn.init.zeros_(self.grams.weight)  # most are met a few times: noise would stay in them
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, 256)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, inputs_BNW4: Tensor, allowed_BNWX: Tensor, previous: Previous | None = None
    ) -> tuple[Tensor, Previous]:
        """Log-probabilities [B, N, W, 256] (natural), and what the next block needs.

        `inputs_BNW4` int64: the input and the three before it, newest first. `allowed_BNWX`: which
        keys of the block before and its own a byte may attend to.
        """
        x_BNWD = self.embed(inputs_BNW4[..., 0]) + self.grams(self._hashes(inputs_BNW4)).sum(-2)
        kept: Previous = []
        for number, layer in enumerate(self.layers):
            x_BNWD, last = layer(x_BNWD, allowed_BNWX, previous and previous[number])
            kept.append(last)
        return F.log_softmax(self.head(self.norm(x_BNWD)).float(), -1), kept

    def _hashes(self, inputs_BNW4: Tensor) -> Tensor:
        """Rows of the table of n-grams [B, N, W, GRAMS]."""
        code = inputs_BNW4[..., 0]
        rows = []
        for place in range(GRAMS):
            code = code * (BEGIN + 1) + inputs_BNW4[..., place + 1]
            mixed = (code * 0x1E3779B97F4A7C15) >> 40  # wraps: Fibonacci hashing
            size = 1 << self.config.hash_bits
            rows.append((mixed & (size - 1)) + place * size)
        return torch.stack(rows, -1)


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a norm and added to its input."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.norm1, self.norm2 = nn.RMSNorm(config.dim), nn.RMSNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.up = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.down = nn.Linear(4 * config.dim, config.dim, bias=False)
        for last in (self.out, self.down):
            nn.init.zeros_(last.weight)
        half = config.dim // config.n_heads // 2
        speed = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(2 * config.window, dtype=torch.float64)[:, None, None] * speed
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(
        self, x_BNWD: Tensor, allowed_BNWX: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The layer's output, and the last block's keys and values."""
        B, N, W, D = x_BNWD.shape
        qkv = self.qkv(self.norm1(x_BNWD)).view(B, N, W, 3, self.n_heads, D // self.n_heads)
        q, k, v = qkv.unbind(3)
        before = previous or (torch.zeros_like(k[:, :1]), torch.zeros_like(v[:, :1]))
        k_BNXHK, v_BNXHK = (
            torch.cat([torch.cat([old, new[:, :-1]], 1), new], 2)
            for old, new in zip(before, (k, v), strict=True)
        )
        q, keys = self._turned(q, W), self._turned(k_BNXHK, 0)
        q, keys, values = (x.flatten(0, 1).transpose(1, 2) for x in (q, keys, v_BNXHK))
        allowed = allowed_BNWX.flatten(0, 1)[:, None]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)
        x_BNWD = x_BNWD + self.out(y.transpose(1, 2).reshape(B, N, W, D))
        x_BNWD = x_BNWD + self.down(F.gelu(self.up(self.norm2(x_BNWD))))
        return x_BNWD, (k[:, -1:], v[:, -1:])

    def _turned(self, x: Tensor, first: int) -> Tensor:
        """Rotary positions (arXiv:2104.09864) from `first` on."""
        place = slice(first, first + x.shape[2])
        cos, sin = self.cos[place], self.sin[place]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def window_mask(window: int) -> Tensor:
    """Bool [W, X]: keys from `window` - 1 before a byte up to itself."""
    query, key = torch.arange(window)[:, None] + window, torch.arange(2 * window)
    return (key <= query) & (query - key < window)
