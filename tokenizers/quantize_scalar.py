"""Quantizers whose codebook is a fixed grid: FSQ, and the binary LFQ and BSQ.

There is nothing to learn and nothing to collapse in a fixed codebook, but codes may stay unused:
FSQ (arXiv:2309.15505) has no remedy for that and seldom needs one, LFQ (arXiv:2310.05737, eq. 4)
and BSQ (arXiv:2406.07548) add an entropy loss, each vector sure of its code and all codes alike
frequent. LFQ and BSQ are those of `vector-quantize-pytorch` (the extra `quantizers`).

N vectors, D width, A axes of FSQ (its width), K codes.
"""

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from plait.tokenizers.errors import ConfigError
from plait.tokenizers.quantize import FSQ, Quantized, Quantizer

ENTROPY, COMMITMENT = 0.02, 0.25
"""Weights of the losses of the binary quantizers, beside a squared error of pictures."""
SPREAD = 1.7
"""Half the extent of an FSQ axis, in deviations of what is put on it."""


class FiniteScalar(Quantizer):
    """FSQ on vectors around 0: an axis of L levels has the values -(L - 1) / 2 .. (L - 1) / 2."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.fsq = FSQ(levels)
        self.width = len(levels)

    def forward(self, z_ND: Tensor) -> Quantized:
        """Rounded; the gradient is that of the input, clamped."""
        middle_D = self.fsq.highest_A.to(z_ND.dtype) / 2
        points_ND = self.fsq(z_ND + middle_D)
        return Quantized(
            vectors_ND=points_ND - middle_D,
            ids_NC=self.fsq.to_index(points_ND)[:, None],
            loss=z_ND.new_zeros(()),
        )

    def codebooks(self) -> Tensor:
        """The grid's points in the order of their codes."""
        return (self.fsq.grid() - self.fsq.highest_A / 2)[None]

    def deviations(self) -> Tensor:
        """Such that the outermost levels are SPREAD deviations out."""
        return self.fsq.highest_A / 2 / SPREAD


class Binary(Quantizer):
    """LFQ, the signs of a vector; or BSQ (`spherical`), the same on the unit sphere."""

    def __init__(self, codes: int, *, spherical: bool) -> None:
        super().__init__()
        if codes < 2 or codes & (codes - 1):
            raise ConfigError(f"codes is {codes}: binary quantizers need a power of two")
        self.width = codes.bit_length() - 1
        self.spherical = spherical
        self.inner = package().LFQ(
            codebook_size=codes,
            entropy_loss_weight=ENTROPY,
            commitment_loss_weight=COMMITMENT,
            spherical=spherical,
        )

    def forward(self, z_ND: Tensor) -> Quantized:
        """Signs, straight through, with entropy and commitment as the loss."""
        vectors, ids, loss = self.inner(z_ND[None])
        return Quantized(vectors_ND=vectors[0], ids_NC=ids[0][:, None], loss=loss)

    def codebooks(self) -> Tensor:
        """All vectors of signs, the first axis the highest bit; of length 1 on the sphere."""
        shifts_D = torch.arange(self.width - 1, -1, -1)
        bits_KD = torch.arange(2**self.width)[:, None] >> shifts_D & 1
        length = 1 / math.sqrt(self.width) if self.spherical else 1.0
        return ((2 * bits_KD - 1) * length)[None].float()

    def deviations(self) -> Tensor:
        """The codes' own."""
        return self.codebooks()[0, -1]


def package() -> ModuleType:
    """vector-quantize-pytorch, which only a fit needs; ConfigError where it is missing."""
    try:
        import vector_quantize_pytorch
    except ImportError:
        raise ConfigError(
            "this quantizer is fitted with the package vector-quantize-pytorch: "
            "pip install plait[quantizers]"
        ) from None
    return vector_quantize_pytorch
