"""A block of the decoder: a sequence mixer and a channel mixer, named by the configuration."""

import torch
from torch import Tensor, nn

from plait.models.attention import Attention, AttentionCache
from plait.models.config import Channel, Mixer, ModelConfig
from plait.models.context import Context
from plait.models.depth import Depth, DepthCache
from plait.models.experts import Experts
from plait.models.feed_forward import FeedForward
from plait.models.layers import ModalityNorm
from plait.models.mamba import Mamba, MambaCache
from plait.models.memory import Memory
from plait.models.memory_beside import MemoryBeside

MIXERS = {"attention": Attention, "mamba": Mamba}
CHANNELS = {
    "ffn": FeedForward,
    "experts": Experts,
    "memory": Memory,
    "ffn+memory": MemoryBeside,
}
BlockCache = AttentionCache | MambaCache | DepthCache


class Block(nn.Module):
    """A sequence mixer and a channel mixer, each with its norm before or after it."""

    def __init__(
        self,
        config: ModelConfig,
        mixer: Mixer,
        channel: Channel,
        modalities: int,
        gain: float,
        depth: bool = False,
    ) -> None:
        """`depth` says whether only some tokens pass it."""
        super().__init__()
        self.depth = Depth(config) if depth else None
        self.post = config.norm == "post"
        norms = modalities if "norm" in config.untie else 1
        self.mixer_norm = ModalityNorm(config.dim, norms, config.norm_eps)
        self.mixer = MIXERS[mixer](config, modalities, gain)
        self.channel = None
        self.gated_after = channel == "experts" and self.post and config.gate_after_norm
        if channel != "none":
            self.channel_norm = ModalityNorm(config.dim, norms, config.norm_eps)
            self.channel = CHANNELS[channel](config, modalities, gain)

    def forward(self, x_ND: Tensor, context: Context, cache: BlockCache | None = None) -> Tensor:
        """[N, D] to [N, D], sorted; a cache takes in what later steps need."""
        if self.depth is not None:
            assert cache is None or isinstance(cache, DepthCache)
            return self.depth(x_ND, context, self.mixer, cache, self._run)
        if cache is None:
            return self._run(x_ND, context)
        return self._run(x_ND, context, lambda x, c: self.mixer(x, c, cache))

    def start(self, batch_size: int, device: torch.device) -> BlockCache:
        """An empty cache."""
        if self.depth is not None:
            return DepthCache([self.mixer.start(1, device) for _ in range(batch_size)])
        return self.mixer.start(batch_size, device)

    def step(self, x_BD: Tensor, context: Context, cache: BlockCache) -> Tensor:
        """One position of each row, [B, D] sorted."""
        if self.depth is not None:
            assert isinstance(cache, DepthCache)
            return self.depth.step(x_BD, context, self.mixer.step, cache, self._run)
        return self._run(x_BD, context, lambda x, c: self.mixer.step(x, c, cache))

    def _run(self, x_ND: Tensor, context: Context, mix=None) -> Tensor:
        """The block itself, with its sequence mixer or `mix` in its place."""
        x_ND = self._residual(x_ND, self.mixer_norm, mix or self.mixer, context)
        return self._channel(x_ND, context)

    def _channel(self, x_ND: Tensor, context: Context) -> Tensor:
        if self.channel is None:
            return x_ND
        if self.gated_after:
            return x_ND + self.channel(x_ND, context, self.channel_norm)
        return self._residual(x_ND, self.channel_norm, self.channel, context)

    def _residual(self, x_ND: Tensor, norm: ModalityNorm, part, context: Context, *more) -> Tensor:
        if self.post:
            return x_ND + norm(part(x_ND, context, *more), context.order)
        return x_ND + part(norm(x_ND, context.order), context, *more)
