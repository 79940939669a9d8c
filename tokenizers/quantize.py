"""Finite scalar quantization, and how evenly codes are used.

FSQ (arXiv:2309.15505) has no codebook to learn or to collapse: a vector of a few numbers is rounded
number by number, each to one of a few levels, and the codebook is the grid of all combinations;
[8, 5, 5, 5] gives 1000 codes. Here the numbers are counted in steps of the grid, 0 .. levels - 1,
and limited by clamping, where the paper has tanh: our encoder's output is bounded by itself.

K codes, A axes of the grid; `...` any leading dimensions.
"""

import math
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
