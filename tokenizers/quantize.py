"""Quantizers: one interface, finite scalar quantization, and how evenly codes are used.

A `Quantizer` learns; what it has learned is always one or more codebooks of vectors, each of which
codes what the ones before it left over. So encoding is the same for all of them (residual.py): the
nearest code, in float64, which is the sign of a vector for binary codes and rounding for FSQ.
quantize_vq.py holds the learned codebooks, quantize_scalar.py those that are fixed grids.

FSQ (arXiv:2309.15505) has no codebook to learn or to collapse: a vector of a few numbers is rounded
number by number, each to one of a few levels, and the codebook is the grid of all combinations;
[8, 5, 5, 5] gives 1000 codes. Here the numbers are counted in steps of the grid, 0 .. levels - 1,
and limited by clamping, where the paper has tanh: our encoder's output is bounded by itself.

K codes, A axes of the grid; `...` any leading dimensions. N vectors, D width, C codebooks.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Rounds vectors [..., A] to a grid of `levels`, and numbers the grid's points.

    >>> fsq = FSQ([3, 2])
    >>> fsq(torch.tensor([[1.6, -4.0]])).tolist(), fsq.to_index(torch.tensor([2, 0])).item()
    ([[2.0, 0.0]], 4)
    >>> fsq.to_point(torch.tensor(4)).tolist()
    [2, 0]
    """

    steps_A: Tensor
    highest_A: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or any(n < 2 for n in levels):
            raise ValueError(f"FSQ needs one level count or more, each at least 2, not {levels}")
        self.levels = tuple(levels)
        self.codebook_size = math.prod(levels)
        steps = [math.prod(levels[i + 1 :]) for i in range(len(levels))]
        self.register_buffer("steps_A", torch.tensor(steps), persistent=False)
        self.register_buffer("highest_A", torch.tensor(levels) - 1, persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """The nearest grid point, a float [..., A]; its gradient is that of the clamped input."""
        bounded = torch.minimum(y.clamp(min=0), self.highest_A.to(y.dtype))
        return bounded + (bounded.round() - bounded).detach()

    def to_index(self, points: Tensor) -> Tensor:
        """Grid points [..., A], whole numbers of any type, to codes 0 .. K - 1, int64 [...]."""
        return (points.detach().round().long() * self.steps_A).sum(-1)

    def to_point(self, index: Tensor) -> Tensor:
        """Codes [...] to their grid points, int64 [..., A]."""
        return index[..., None] // self.steps_A % (self.highest_A + 1)

    def grid(self) -> Tensor:
        """All grid points in the order of their codes, float32 [K, A]."""
        return self.to_point(torch.arange(self.codebook_size)).float()


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """What a quantizer makes of vectors [N, D] while it learns."""

    vectors_ND: Tensor
    """The codes' vectors, with a gradient for the input (straight through or by rotation)."""
    ids_NC: Tensor
    """Codes int64, -1 in a codebook that quantizer dropout left out."""
    loss: Tensor
    """What the quantizer adds to the loss, a scalar: commitment, entropy; 0 for FSQ."""


class Quantizer(nn.Module, ABC):
    """Vectors float [N, D] to codes and back, by codebooks that may be learned."""

    width: int
    """D."""

    @abstractmethod
    def forward(self, z_ND: Tensor) -> Quantized:
        """Quantize for training; in training mode it may also move the codebooks."""

    @abstractmethod
    def codebooks(self) -> Tensor:
        """The vectors of all codes, float32 [C, K, D]: all that is kept of a fitted quantizer."""

    def start(self, z_ND: Tensor, seed: int) -> None:
        """Begin with vectors like these; nothing to do for a codebook that is fixed."""

    def settle(self) -> None:
        """Stop moving whole codes: called when training nears its end."""

    def deviations(self) -> Tensor | None:
        """The deviation of each axis [D] that suits the codes best; None where any does."""
        return None


@dataclass(frozen=True, kw_only=True)
class CodeUse:
    """How a set of tokens uses a codebook."""

    tokens: int
    """Tokens that were counted; few tokens cannot use many codes."""
    codes_used: int
    """Codes that occur at least once."""
    codes_dead: int
    """Codes that never occur."""
    perplexity: float
    """exp of the entropy: the number of equally frequent codes that would be as uncertain."""

    @classmethod
    def of(cls, ids: Tensor, codebook_size: int) -> "CodeUse":
        """Count ids of any shape; IndexError if one is not in 0 .. codebook_size - 1."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < codebook_size:
            raise IndexError(f"ids from {ids.min()} to {ids.max()} of {codebook_size} codes")
        counts_K = torch.bincount(ids.flatten().long(), minlength=codebook_size).double()
        share_K = counts_K / counts_K.sum().clamp(min=1)
        used = int((counts_K > 0).sum())
        return cls(
            tokens=ids.numel(),
            codes_used=used,
            codes_dead=codebook_size - used,
            perplexity=float(torch.special.entr(share_K).sum().exp()),
        )
