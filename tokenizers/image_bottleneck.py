"""What stands between encoder and decoder while both are trained: a quantizer, or noise.

Both are one module to the training loop, with the figures that tell whether it goes well: how many
codes the last batches used, the first sign of a codebook that collapses; or how much the latents
tell of their pictures.

B pictures, h w rows and columns, D width of a code or channels, N vectors, C codebooks.
"""

from abc import ABC, abstractmethod
from collections import deque

import torch
from torch import Tensor, nn

from plait.tokenizers import residual
from plait.tokenizers.image_codes_network import through
from plait.tokenizers.quantize import CodeUse, Quantizer

WINDOW = 32
"""Batches whose codes are counted."""
LOG_VARIANCE = -5.0
"""Logarithm of the noise's variance at first, in latents of variance 1."""
QUICK = 20.0
"""The logarithm learns so much faster than weights: in 1500 steps of 1e-3 it has far to go."""


class Bottleneck(nn.Module, ABC):
    """Grids of vectors [B, D, h, w] to grids that hold less."""

    @abstractmethod
    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder gets in training, and what is added to the loss, a scalar."""

    @abstractmethod
    def plain(self, z_BDhw: Tensor) -> Tensor:
        """What the decoder gets of a fitted tokenizer."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """How the last batches did, by name."""

    def start(self, z_ND: Tensor, seed: int) -> None:
        """Begin with vectors like these."""

    def settle(self) -> None:
        """Training nears its end; may be called more than once."""


class Codes(Bottleneck):
    """A quantizer."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self._recent: deque[Tensor] = deque(maxlen=WINDOW)

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """The codes' vectors; the quantizer's own loss."""
        vectors_BDhw, ids_NC, loss = through(self.quantizer, z_BDhw)
        self._recent.append(ids_NC)
        return vectors_BDhw, loss

    @torch.no_grad()
    def plain(self, z_BDhw: Tensor) -> Tensor:
        """The nearest codes."""
        z_BhwD = z_BDhw.permute(0, 2, 3, 1)
        codebooks_CKD = self.quantizer.codebooks()
        ids_NC = residual.encode(z_BhwD.flatten(0, 2).double(), codebooks_CKD.double())
        return residual.decode(ids_NC, codebooks_CKD).view(z_BhwD.shape).permute(0, 3, 1, 2)

    def figures(self) -> dict[str, float]:
        """Share of all codes that were used, and perplexity, the mean of the codebooks."""
        codebooks, codes, _ = self.quantizer.codebooks().shape
        ids_NC = torch.cat(list(self._recent))
        uses = [CodeUse.of(ids[ids >= 0], codes) for ids in ids_NC.unbind(1)]
        return {
            "codes_used_share": sum(use.codes_used for use in uses) / (codebooks * codes),
            "perplexity": sum(use.perplexity for use in uses) / codebooks,
        }

    def start(self, z_ND: Tensor, seed: int) -> None:
        """The quantizer's start."""
        self.quantizer.start(z_ND, seed)

    def settle(self) -> None:
        """No code is moved for being dead any more."""
        self.quantizer.settle()


class Noise(Bottleneck):
    """Gaussian noise of a learned variance a channel, and the KL term that keeps latents small."""

    def __init__(self, channels: int, weight: float) -> None:
        super().__init__()
        self.weight, self._kl = weight, 0.0
        self.change_D = nn.Parameter(torch.zeros(channels))

    @property
    def log_variance_D(self) -> Tensor:
        """Of the noise."""
        return LOG_VARIANCE + QUICK * self.change_D

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """A sample around the means; the weighted KL term."""
        spread_D11 = (self.log_variance_D / 2).exp()[:, None, None]
        kl = kl_nats(z_BDhw.permute(0, 2, 3, 1), self.log_variance_D)
        self._kl = kl.item()
        return z_BDhw + spread_D11 * torch.randn_like(z_BDhw), self.weight * kl

    def plain(self, z_BDhw: Tensor) -> Tensor:
        """The means."""
        return z_BDhw

    def figures(self) -> dict[str, float]:
        """The KL term of the last batch, nats a number."""
        return {"kl_nats": self._kl}


def kl_nats(mean_xD: Tensor, log_variance_D: Tensor) -> Tensor:
    """KL divergence from N(0, 1), nats a number, the mean (arXiv:1312.6114, appendix B)."""
    own_D = log_variance_D.exp() - 1 - log_variance_D
    return (mean_xD.square().mean() + own_D.mean()) / 2
