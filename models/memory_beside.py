"""A memory beside a feed-forward: what a dense model grows into without forgetting anything.

Where memory.py takes the feed-forward's place (arXiv:2412.09764), a trained feed-forward would be
lost. Here both read the same stream and their outputs add up, so a memory whose output projection
begins at zero changes nothing; it costs its queries, keys, gate and output on top.
"""

from torch import Tensor

from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.feed_forward import FeedForward
from plait.models.memory import Memory


class MemoryBeside(FeedForward):
    """y = feed_forward(x) + memory(x); the feed-forward's weights have the names of one alone."""

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__(config, modalities, gain)
        self.memory = Memory(config, modalities, gain)

    def forward(self, x_ND: Tensor, context: Context) -> Tensor:
        """[N, D] to [N, D], both sorted."""
        return super().forward(x_ND, context) + self.memory(x_ND, context)
