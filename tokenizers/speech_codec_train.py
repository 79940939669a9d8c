"""The training loop of `ConvCodec`: encoder, residual quantizer and decoder together, end to end.

The codes start as those of the closed-form codec. In a part of the steps a random number of the
last levels is left out (arXiv:2107.03312, section 3.3). Training runs on a fixed number of threads,
so the same sounds and seed give the same weights to the last bit on one machine.

B crops, N samples, T frames, H hop, D width of a frame, C codebooks.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from plait.tokenizers.base import Progress
from plait.tokenizers.companding import compress, expand
from plait.tokenizers.early_stop import EarlyStop
from plait.tokenizers.fit_state import FitState, Loop
from plait.tokenizers.image_fit import make_optimizer, set_rate
from plait.tokenizers.mdct import forward, inverse
from plait.tokenizers.quantize import CodeUse
from plait.tokenizers.quantize_vq import ResidualQuantizer
from plait.tokenizers.speech_codec_network import Codec, Corrected
from plait.tokenizers.speech_losses import SoundLoss
from plait.tokenizers.speech_options import FitOptions

WEIGHT_DECAY, BATCH = 0.01, 16
WINDOW = 32
"""Batches whose codes the figure of their use counts."""
SETTLE_FROM = 0.7
"""Share of the steps after which dead codes stay where they are."""
FEWER_LEVELS = 0.25
"""Share of the steps that leave out levels."""
DECAY = 0.99
"""Of the codes' running means, as EnCodec's."""


class Trained(nn.Module):
    """What is trained: both networks and the quantizer, from crops to crops."""

    def __init__(
        self, codec: Codec, quantizer: ResidualQuantizer, bins_D: Tensor, options: FitOptions
    ) -> None:
        super().__init__()
        self.codec, self.quantizer = codec, quantizer
        self.bins_D, self.hop = bins_D, options.hop
        self.powers = options.companding, options.loudness_companding

    def forward(self, x_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded crops, without a hop at both ends; ids [B * T, C]; the quantizer's loss."""
        z_BTD = self._through(self.codec.encoder, self.frames(x_BN))
        done = self.quantizer(z_BTD.flatten(0, 1))
        y_BTD = self._through(self.codec.decoder, done.vectors_ND.view(z_BTD.shape))
        return self._sound(y_BTD), done.ids_NC, done.loss

    def frames(self, x_BN: Tensor) -> Tensor:
        """Companded coefficients [B, T, D] of all whole windows."""
        windows_BTW = x_BN.unfold(1, 2 * self.hop, self.hop)
        frames_NH = forward(windows_BTW.flatten(0, 1), 0)
        return compress(frames_NH, *self.powers)[:, self.bins_D].unflatten(0, windows_BTW.shape[:2])

    def _sound(self, y_BTD: Tensor) -> Tensor:
        batch, count, _ = y_BTD.shape
        frames_BTH = y_BTD.new_zeros(batch, count, self.hop)
        frames_BTH = frames_BTH.index_copy(2, self.bins_D, y_BTD)
        windows_NW = inverse(expand(frames_BTH, *self.powers).flatten(0, 1), 0)
        windows_BTW = windows_NW.view(batch, count, 2 * self.hop)
        late, early = windows_BTW[:, :-1, self.hop :], windows_BTW[:, 1:, : self.hop]
        return (late + early).flatten(1)

    @staticmethod
    def _through(network: Corrected, x_BTD: Tensor) -> Tensor:
        return network(x_BTD, network.start(len(x_BTD)))[0]


class Crops:
    """Random crops of sounds, each place as likely as any other, and silence around each sound."""

    def __init__(self, sounds: Sequence[Tensor], options: FitOptions) -> None:
        hops = max(1, round(options.crop_s * options.sample_rate_hz / options.hop))
        self.hop, self.length = options.hop, (hops + 2) * options.hop
        self.sounds = [
            pad(sound, (options.hop, max(options.hop, self.length - options.hop - len(sound))))
            for sound in sounds
        ]
        lengths = torch.tensor([len(sound) - self.length + 1 for sound in self.sounds])
        self.ends = lengths.cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Crops float32 [count, N]."""
        places = torch.randint(int(self.ends[-1]), (count,), generator=generator)
        numbers = torch.searchsorted(self.ends, places, right=True)
        crops = []
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            start = int(self.ends[number]) - 1 - place
            crops.append(self.sounds[number][start : start + self.length])
        return torch.stack(crops)


def train_codec(
    trained: Trained,
    sounds: Sequence[Tensor],
    aside: Sequence[Tensor],
    options: FitOptions,
    generator: torch.Generator,
    progress: Progress,
    state: FitState,
) -> None:
    """Train in place; torch's own generator should be seeded, as the quantizer draws on it.

    With `patience` it may end early, by the loss of crops of the sounds `aside`.
    """
    measure, quantizer = SoundLoss(options), trained.quantizer
    parameters = list(trained.parameters())
    optimizer = make_optimizer(parameters, WEIGHT_DECAY)
    looked_at = []
    if aside:
        looked_at.append(Crops(aside, options).draw(BATCH, torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def loss_aside() -> float:
        trained.eval()
        losses = [measure(trained(x_BN)[0], trained_part(x_BN, options.hop)) for x_BN in looked_at]
        trained.train()
        return torch.stack(losses).mean().item()

    stop = EarlyStop(trained, options.steps, options.patience, loss_aside, progress)
    generators = {"generator": generator, "torch": torch.default_generator}
    parts = {"trained": trained, "stop": stop}
    loop = Loop(state, parts, {"optimizer": optimizer}, generators)
    crops = Crops(sounds, options)
    recent: deque[Tensor] = deque(maxlen=WINDOW)
    trained.train()
    for step in range(loop.start(), options.steps):
        set_rate(optimizer, step, options.steps)
        if step >= SETTLE_FROM * options.steps:
            quantizer.settle()
        quantizer.leave_out_levels(float(torch.rand((), generator=generator)) < FEWER_LEVELS)
        x_BN = crops.draw(BATCH, generator)
        y_BN, ids_NC, quantizer_loss = trained(x_BN)
        error = measure(y_BN, trained_part(x_BN, options.hop))
        optimizer.zero_grad()
        (error + quantizer_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append(ids_NC)
        if step % 10 == 0:
            used = _share_used(recent, options.codebook_size)
            progress("training", step / options.steps, loss=error.item(), codes_used=used)
        ended = stop.ends(step)
        loop.end_step(step)
        if ended:
            break
    stop.restore()
    trained.eval()
    progress("training", 1.0)


def trained_part(x_BN: Tensor, hop: int) -> Tensor:
    """The samples of crops that are decoded from all their frames."""
    decoded = (x_BN.shape[1] // hop - 2) * hop
    return x_BN[:, hop : hop + decoded]


def _share_used(recent: deque[Tensor], codes: int) -> float:
    ids_NC = torch.cat(list(recent))
    uses = [CodeUse.of(ids[ids >= 0], codes) for ids in ids_NC.unbind(1)]
    return sum(use.codes_used for use in uses) / (codes * len(uses))
