"""The convolutional autoencoder of `ConvFSQ`: a picture to a grid of FSQ codes and back.

Encoder: one convolution as wide as its stride compares each patch with K prototypes, a softmax
makes that a membership, and a 1 x 1 convolution turns it into a place on the FSQ grid, where
prototype k lies at grid point k. Prototypes are laid out by `topographic.fit_map`, so the untrained
autoencoder is already as good as patch k-means with K codes. Decoder: each code has a patch, which
a residual convolutional network over the grid corrects by what the neighbours say.

The encoder runs in float64: rounding the place on the grid would otherwise turn differences in the
last bit, between batch sizes or threads, into other codes.

B pictures, H W pixels, h w rows and columns of codes, K codes, A axes of the FSQ grid, P values of
a patch (3 stride^2), D width of the decoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pixel_shuffle, pixel_unshuffle

from plait.tokenizers.quantize import FSQ

HALF_WAY = 1e-6
"""Places this little above the middle of two levels still go down: equal prototypes, as data of few
distinct patches give, lie exactly in the middle, where rounding errors would decide."""


SHARPNESS = 200.0
"""Logit of a point at the mean squared distance from its prototype, below one that is on it."""
SCORES = 1 << 21
"""Patches times prototypes that are compared at once: 16 MiB in float64."""


class Autoencoder(nn.Module):
    """Pictures of values -1..1 to codes and back; `prototypes_KP` begin as patches -1..1."""

    def __init__(
        self, levels: Sequence[int], stride: int, dim: int, n_blocks: int, prototypes_KP: Tensor
    ) -> None:
        super().__init__()
        self.fsq = FSQ(levels)
        self.encoder = Encoder(self.fsq, stride, prototypes_KP)
        self.decoder = Decoder(stride, dim, n_blocks, prototypes_KP)

    @torch.no_grad()
    def encode(self, x_B3HW: Tensor) -> Tensor:
        """Codes int64 [B, h, w]."""
        return self.fsq.to_index(self.fsq(self.encoder(x_B3HW.double())))

    def decode(self, index_Bhw: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of any grid of codes; values may pass -1..1 a little."""
        return self.decoder(index_Bhw)


class Encoder(nn.Module):
    """Pictures float64 [B, 3, H, W] to places on the FSQ grid, float64 [B, h, w, A]."""

    prototypes_KP: Tensor
    sharpness: Tensor
    grid_KA: Tensor

    def __init__(self, fsq: FSQ, stride: int, prototypes_KP: Tensor) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("prototypes_KP", prototypes_KP.double())
        self.register_buffer("sharpness", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("grid_KA", fsq.grid().double(), persistent=False)

    @torch.no_grad()
    def sharpen(self, patch_NP: Tensor) -> None:
        """Set the softmax so that patches like these belong to one prototype nearly always."""
        patch_NP = patch_NP[:4096].double()
        distance_N = torch.cdist(patch_NP, self.prototypes_KP).amin(1).square()
        self.sharpness.fill_(SHARPNESS / distance_N.mean().clamp(min=1e-3))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Softmax of the scaled negative squared distances, times the grid's points."""
        patch_BhwP = pixel_unshuffle(x_B3HW, self.stride).permute(0, 2, 3, 1)
        patch_NP = patch_BhwP.flatten(0, 2)
        rows = max(1, SCORES // len(self.prototypes_KP))
        place_NA = torch.cat([self._place(patches) for patches in patch_NP.split(rows)])
        return place_NA.view(*patch_BhwP.shape[:3], -1)

    def _place(self, patch_NP: Tensor) -> Tensor:
        half_K = self.prototypes_KP.square().sum(1) / 2
        nearness_NK = patch_NP @ self.prototypes_KP.T - half_K
        member_NK = torch.softmax(2 * self.sharpness * nearness_NK, -1)
        return member_NK @ self.grid_KA - HALF_WAY


class Decoder(nn.Module):
    """Codes to pictures: the code's own patch, and a correction from the codes around it."""

    def __init__(self, stride: int, dim: int, n_blocks: int, prototypes_KP: Tensor) -> None:
        super().__init__()
        codes, values = prototypes_KP.shape
        self.stride = stride
        self.patch = nn.Embedding.from_pretrained(prototypes_KP.float().clone(), freeze=False)
        self.embed = nn.Embedding(codes, dim)
        self.project = nn.Linear(values, dim)
        self.blocks = nn.Sequential(*[Block(dim) for _ in range(n_blocks)])
        self.norm = nn.GroupNorm(1, dim)
        self.correct = nn.Conv2d(dim, values, 1)
        for layer in (self.embed, self.correct):
            _zero(layer)

    def forward(self, index_Bhw: Tensor) -> Tensor:
        """Pictures float32 [B, 3, H, W]."""
        patch_BhwP = self.patch(index_Bhw)
        x_BDhw = (self.project(patch_BhwP) + self.embed(index_Bhw)).permute(0, 3, 1, 2)
        correction_BPhw = self.correct(self.norm(self.blocks(x_BDhw)))
        return pixel_shuffle(patch_BhwP.permute(0, 3, 1, 2) + correction_BPhw, self.stride)


class Block(nn.Module):
    """Depthwise 5 x 5, norm, two 1 x 1 layers, added to the input (arXiv:2201.03545, figure 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm = nn.GroupNorm(1, dim)
        self.widen = nn.Conv2d(dim, 2 * dim, 1)
        self.narrow = nn.Conv2d(2 * dim, dim, 1)
        _zero(self.narrow)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """The same shape."""
        return x_BDhw + self.narrow(gelu(self.widen(self.norm(self.depthwise(x_BDhw)))))


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
