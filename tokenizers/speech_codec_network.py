"""The two networks of `ConvCodec`, causal convolutions over the frames of a lapped transform.

With the transform, a convolution of stride H over 2H samples and its transpose, they are a causal
convolutional codec as SoundStream's (arXiv:2107.03312), but one whose first and last layer are
known: each network only adds to what it is given, and adds nothing at first, so the untrained codec
is the closed-form one (speech.py). What is added is in proportion to the frame's own loudness, so a
quiet sound is treated as a loud one, and silence stays silent.

`Piecewise` runs a network over frames as they come. It works in blocks of one size, a frame always
in the same place of its block, so that a frame has the same bits whatever came with it.

B sounds, T frames, D width of a frame, F width of the network, J frames before.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from plait.tokenizers.image_fit import threads

TAPS = 5
"""Frames that a convolution sees: its own and those before it."""
QUIET = 1e-3
"""Loudness (of companded coefficients) that is about as good as none."""
BLOCK = 32
"""Frames of one run of a network."""

Past = list[Tensor]
"""For each convolution the frames before [B, J, F] that it still sees."""


class Codec(nn.Module):
    """Frames to the vectors that are quantized, and sums of codes to frames."""

    codebooks_LKD: Tensor

    def __init__(self, width: int, dim: int, n_blocks: int, codebooks: int, codes: int) -> None:
        super().__init__()
        self.dim, self.n_blocks = dim, n_blocks
        self.encoder = Corrected(width, dim, n_blocks)
        self.decoder = Corrected(width, dim, n_blocks)
        self.register_buffer("codebooks_LKD", torch.zeros(codebooks, codes, width))


class Corrected(nn.Module):
    """Frames, and what a causal network adds to them."""

    def __init__(self, width: int, dim: int, n_blocks: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(width + 1, dim)
        self.blocks = nn.ModuleList([Block(dim) for _ in range(n_blocks)])
        self.norm = nn.LayerNorm(dim)
        self.correct = nn.Linear(dim, width)
        for parameter in self.correct.parameters():
            nn.init.zeros_(parameter)

    def start(self, batch: int = 1) -> Past:
        """What lies before the first frame."""
        weight = self.project.weight
        return [weight.new_zeros(batch, TAPS - 1, weight.shape[0]) for _ in self.blocks]

    def forward(self, x_BTD: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Corrected frames [B, T, D], and what the next frames need of these."""
        loudness_BT1 = (x_BTD.square().mean(-1, keepdim=True) + QUIET**2 / 100).sqrt()
        alike_BTD = x_BTD / (loudness_BT1 + QUIET)
        y_BTF = self.project(torch.cat([alike_BTD, (loudness_BT1 + QUIET).log()], -1))
        after = []
        for block, past_BJF in zip(self.blocks, past, strict=True):
            y_BTF, past_BJF = block(y_BTF, past_BJF)
            after.append(past_BJF)
        return x_BTD + loudness_BT1 * self.correct(self.norm(y_BTF)), after


class Block(nn.Module):
    """Causal depthwise convolution, norm, two layers, added to the input (arXiv:2201.03545)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.taps_JF = nn.Parameter(torch.randn(TAPS, dim) / TAPS**0.5)
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 2 * dim)
        self.narrow = nn.Linear(2 * dim, dim)
        for parameter in self.narrow.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BTF: Tensor, past_BJF: Tensor) -> tuple[Tensor, Tensor]:
        """The same shape, and the last frames."""
        frames = x_BTF.shape[1]
        seen_BTF = torch.cat([past_BJF, x_BTF], 1)
        y_BTF = seen_BTF[:, :frames] * self.taps_JF[0]
        for place in range(1, TAPS):
            y_BTF = y_BTF + seen_BTF[:, place : place + frames] * self.taps_JF[place]
        y_BTF = self.narrow(gelu(self.widen(self.norm(y_BTF))))
        return x_BTF + y_BTF, seen_BTF[:, frames:]


class Piecewise:
    """Frames of one sound through a network, as they come; the bits are those of the whole sound.

    A block that is not full is run with silence after it, and again when more has come. On one
    thread, as sums are cut up by it.
    """

    def __init__(self, network: Corrected) -> None:
        self.network = network
        self._past = network.start()
        self._begun_TD = network.project.weight.new_zeros(0, network.width)

    @torch.no_grad()
    def push(self, frames_TD: Tensor) -> Tensor:
        """Corrected frames [T, D], in the network's precision."""
        frames_TD = frames_TD.to(self.network.project.weight.dtype)
        known, waiting_TD, done = len(self._begun_TD), torch.cat([self._begun_TD, frames_TD]), []
        with threads(1):
            while len(waiting_TD) > known:
                part_TD = waiting_TD[:BLOCK]
                whole_1TD = pad(part_TD, (0, 0, 0, BLOCK - len(part_TD)))[None]
                corrected_1TD, after = self.network(whole_1TD, self._past)
                done.append(corrected_1TD[0, known : len(part_TD)])
                if len(part_TD) < BLOCK:
                    break
                self._past, waiting_TD, known = after, waiting_TD[BLOCK:], 0
        self._begun_TD = waiting_TD
        return torch.cat(done) if done else frames_TD
