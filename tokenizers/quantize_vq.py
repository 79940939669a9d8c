"""Quantizers that learn their codebook: VQ, SimVQ and residual VQ.

A learned codebook collapses when left alone: codes that no vector is near are never moved, and few
remain. The remedies: a start by k-means on the encoder's first output, codes that are
hardly used moved to vectors of the batch, and, where it is asked for, gradients that reach the
encoder turned as the code is turned (the rotation trick, arXiv:2410.06424). After a start by
k-means that is a loss: on emoji (800 steps, 1024 codes) VQ has 21.1 dB with it and 22.0 straight
through. SimVQ (arXiv:2411.02038) moves all codes at once by one linear map instead, always straight
through: turned, its use fell to 80 % of 512 codes in 200 steps, straight it stayed at 100 %, and
held-out PSNR was 20.5 dB, not 18.0. Residual VQ is VQ on what the last level left; quantizer
dropout (arXiv:2107.03312, section 3.3) makes its first levels useful alone.

The training step is that of `vector-quantize-pytorch` (the extra `quantizers`); the start is ours,
from many more vectors than one batch. N vectors, D width, C codebooks, K codes.
"""

import torch
from torch import Tensor

from plait.tokenizers.kmeans import assign, kmeans
from plait.tokenizers.quantize import Quantized, Quantizer
from plait.tokenizers.quantize_scalar import package
from plait.tokenizers.residual import fit_codebooks

DECAY, COMMITMENT = 0.95, 0.25
DEAD = 0.1
"""A code is dead when a batch brings it fewer vectors than this share of an even share."""


class VectorQuantizer(Quantizer):
    """A codebook of running means (van den Oord 2017, appendix A.1)."""

    def __init__(
        self, codes: int, width: int, *, batch: int, remedies: bool = True, rotation: bool = True
    ) -> None:
        """`batch` is the usual number of vectors; without `remedies` it is the plain VQ-VAE's.

        Without `rotation` gradients pass the code as if it were not there (straight through).
        """
        super().__init__()
        self.width, self.remedies = width, remedies
        self.inner = package().VectorQuantize(
            width, codes, **_options(codes, batch, remedies, rotation and remedies)
        )

    def forward(self, z_ND: Tensor) -> Quantized:
        """The nearest codes; in training mode the codebook then follows its vectors."""
        vectors, ids, loss = self.inner(z_ND[None])
        return Quantized(vectors_ND=vectors[0], ids_NC=ids[0][:, None], loss=loss.sum())

    def codebooks(self) -> Tensor:
        """The running means."""
        return self.inner._codebook.embed.detach().clone()

    def start(self, z_ND: Tensor, seed: int) -> None:
        """K-means, unless without remedies."""
        if self.remedies:
            centroids_KD = kmeans(z_ND, self.inner.codebook_size, seed=seed, iterations=10)
            _set(self.inner, centroids_KD, z_ND)

    def settle(self) -> None:
        """No code is moved for being dead any more."""
        self.inner._codebook.has_dead_code_replacement = False


class SimVQ(Quantizer):
    """A frozen codebook behind a learned linear map, which begins as k-means and no map."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.inner = package().SimVQ(width, codes, rotation_trick=False)

    def forward(self, z_ND: Tensor) -> Quantized:
        """The nearest codes; the codebook learns by the loss."""
        vectors, ids, loss = self.inner(z_ND[None])
        return Quantized(vectors_ND=vectors[0], ids_NC=ids[0][:, None], loss=loss)

    def codebooks(self) -> Tensor:
        """The frozen codes, mapped."""
        return self.inner.codebook.detach()[None].clone()

    def start(self, z_ND: Tensor, seed: int) -> None:
        """K-means for the frozen codes, the identity for the map."""
        codes = self.inner.codebook_size
        self.inner.frozen_codebook.copy_(kmeans(z_ND, codes, seed=seed, iterations=10))
        with torch.no_grad():
            self.inner.code_transform.weight.copy_(torch.eye(self.width))


class ResidualQuantizer(Quantizer):
    """Levels of VQ; in training a random number of the last ones is left out."""

    def __init__(
        self,
        codes: int,
        width: int,
        levels: int,
        *,
        batch: int,
        rotation: bool = True,
        decay: float = DECAY,
    ) -> None:
        """`batch` is the usual number of vectors, `decay` that of the running means."""
        super().__init__()
        self.width = width
        self.inner = package().ResidualVQ(
            dim=width,
            num_quantizers=levels,
            codebook_size=codes,
            quantize_dropout=levels > 1,
            **{**_options(codes, batch, True, rotation), "decay": decay},
        )

    def forward(self, z_ND: Tensor) -> Quantized:
        """The sum of the levels' codes."""
        vectors, ids, loss = self.inner(z_ND[None])
        return Quantized(vectors_ND=vectors[0], ids_NC=ids[0], loss=loss.sum())

    def codebooks(self) -> Tensor:
        """A codebook of running means a level."""
        return torch.cat([layer._codebook.embed.detach() for layer in self.inner.layers])

    def start(self, z_ND: Tensor, seed: int) -> None:
        """K-means on what each level leaves."""
        layers = self.inner.layers
        codes = layers[0].codebook_size
        for layer, codebook_KD in zip(
            layers, fit_codebooks(z_ND, len(layers), codes, seed=seed), strict=True
        ):
            _set(layer, codebook_KD, z_ND)
            z_ND = z_ND - codebook_KD[assign(z_ND, codebook_KD)[0]]

    def leave_out_levels(self, on: bool) -> None:
        """Whether the next training steps leave out a random number of the last levels."""
        self.inner.quantize_dropout = on and len(self.inner.layers) > 1

    def settle(self) -> None:
        """No code is moved for being dead any more."""
        for layer in self.inner.layers:
            layer._codebook.has_dead_code_replacement = False


def _options(codes: int, batch: int, remedies: bool, rotation: bool) -> dict:
    return {
        "decay": DECAY,
        "commitment_weight": COMMITMENT,
        "threshold_ema_dead_code": DEAD * batch / codes if remedies else 0,
        "rotation_trick": rotation,
    }


def _set(layer, codebook_KD: Tensor, z_ND: Tensor) -> None:
    """Give a layer of the package a codebook, and the counts that a batch would bring."""
    counts_K = torch.bincount(assign(z_ND, codebook_KD)[0], minlength=len(codebook_KD)).float()
    even = float(layer._codebook.threshold_ema_dead_code) / DEAD
    counts_K = (counts_K * even * len(counts_K) / len(z_ND)).clamp(min=DEAD * even)
    layer._codebook.embed.copy_(codebook_KD[None])
    layer._codebook.embed_avg.copy_((codebook_KD * counts_K[:, None])[None])
    layer._codebook.cluster_size.copy_(counts_K[None])
