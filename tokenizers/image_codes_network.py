"""Encoder and decoder that are trained together, around any quantizer.

Both are one linear layer over patches and a residual convolutional network over the grid beside it.
`start_linear` sets the linear layers to the principal axes of patches and the networks begin at
zero, so the untrained autoencoder is a projection of patches on D axes, and around a codebook of
k-means it is patch k-means.

B pictures, H W pixels, h w rows and columns of codes, D width of a code's vector, P values of a
patch (3 stride^2), N patches.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from plait.tokenizers.image_network import Block
from plait.tokenizers.quantize import Quantizer


class Codec(nn.Module):
    """Pictures -1..1 to vectors that a quantizer takes, and codes' vectors to pictures."""

    codebooks_CKD: Tensor

    def __init__(
        self, stride: int, width: int, dim: int, n_blocks: int, codebooks: int, codes: int
    ) -> None:
        super().__init__()
        self.stride, self.dim, self.n_blocks = stride, dim, n_blocks
        values = 3 * stride**2
        self.encoder = Corrected(values, width, dim, n_blocks)
        self.decoder = Corrected(width, values, dim, n_blocks)
        self.register_buffer("codebooks_CKD", torch.zeros(codebooks, codes, width))

    def encode(self, x_B3HW: Tensor) -> Tensor:
        """Vectors [B, D, h, w]."""
        return self.encoder(pixel_unshuffle(x_B3HW, self.stride))

    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Pictures [B, 3, H, W]; values may pass -1..1 a little."""
        return pixel_shuffle(self.decoder(z_BDhw), self.stride)

    @torch.no_grad()
    def start_linear(self, patches_NP: Tensor, deviations_D: Tensor | None) -> None:
        """Principal axes, scaled to `deviations_D`, or so that errors are as large as pixels'."""
        mean_P = patches_NP.mean(0)
        centred_NP = (patches_NP - mean_P).double()
        variance_P, axes_PP = torch.linalg.eigh(centred_NP.T @ centred_NP / len(centred_NP))
        width = self.codebooks_CKD.shape[2]
        used = min(width, len(mean_P))
        axes_DP = axes_PP.flip(1).T[:used]
        if deviations_D is None:
            scale_D = torch.full((used,), (width / len(mean_P)) ** 0.5, dtype=torch.float64)
        else:
            own_D = variance_P.flip(0)[:used].clamp(min=1e-6).sqrt()
            scale_D = deviations_D[:used].double() / own_D
        analyse_DP = axes_DP * scale_D[:, None]
        encode, decode = self.encoder.linear, self.decoder.linear
        assert encode.bias is not None and decode.bias is not None
        encode.weight[:used] = analyse_DP[..., None, None].float()
        encode.bias.zero_()
        encode.bias[:used] = -(analyse_DP @ mean_P.double()).float()
        decode.weight.zero_()
        decode.weight[:, :used] = (axes_DP / scale_D[:, None]).T[..., None, None].float()
        decode.bias.copy_(mean_P)


class Corrected(nn.Module):
    """A linear layer at each place of the grid, and what the places around it add."""

    def __init__(self, values_in: int, values_out: int, dim: int, n_blocks: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(values_in, values_out, 1)
        self.project = nn.Conv2d(values_in, dim, 1)
        self.blocks = nn.Sequential(*[Block(dim) for _ in range(n_blocks)])
        self.norm = nn.GroupNorm(1, dim)
        self.correct = nn.Conv2d(dim, values_out, 1)
        for parameter in self.correct.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """[B, values_in, h, w] to [B, values_out, h, w]."""
        return self.linear(x_BChw) + self.correct(self.norm(self.blocks(self.project(x_BChw))))


def through(quantizer: Quantizer, z_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A grid of vectors through a quantizer: vectors [B, D, h, w], ids [N, C], loss."""
    batch, width, rows, columns = z_BDhw.shape
    done = quantizer(z_BDhw.permute(0, 2, 3, 1).reshape(-1, width))
    vectors_BhwD = done.vectors_ND.view(batch, rows, columns, width)
    return vectors_BhwD.permute(0, 3, 1, 2), done.ids_NC, done.loss
