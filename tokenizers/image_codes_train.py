"""The training loop of `ConvCodes` and `KLAutoencoder`: encoder, bottleneck and decoder together.

Training ends after a number of steps, or early where pictures that are set aside get no better,
and runs on a fixed number of threads, so the same samples and seed give the same weights to the
last bit on one machine; also if it was killed and goes on.

B pictures, S pixels a side, N patches, P values of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait.tokenizers.base import Progress
from plait.tokenizers.early_stop import EarlyStop
from plait.tokenizers.fit_state import FitState, Loop
from plait.tokenizers.image_bottleneck import Bottleneck
from plait.tokenizers.image_codes_network import Codec
from plait.tokenizers.image_losses import Adversary, PictureLoss
from plait.tokenizers.image_options import FitOptions
from plait.tokenizers.optimizer import make_optimizer, set_rate
from plait.tokenizers.pictures import random_crops, scale, whole_crops

WEIGHT_DECAY, BATCH = 0.01, 16
SETTLE_FROM = 0.7
"""Share of the steps after which dead codes stay where they are."""
ADVERSARY_FROM = 0.5
"""Share of the steps after which the discriminator begins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureFit:
    """What a fit is given."""

    options: FitOptions
    thumbnails: Sequence[Tensor]
    """To learn from, uint8 [3, H, W]."""
    aside: Sequence[Tensor]
    """To look at, for an early stop."""
    patches_NP: Tensor
    """Values -1..1, to start from."""
    generator: torch.Generator
    seed: int
    progress: Progress
    state: FitState


def train_codec(codec: Codec, bottleneck: Bottleneck, fit: PictureFit) -> None:
    """Train both in place; torch's own generator should be seeded, as bottlenecks draw on it."""
    options, progress = fit.options, fit.progress
    measure = PictureLoss(options)
    adversary = Adversary(options.adversarial)
    both = nn.ModuleDict({"codec": codec, "bottleneck": bottleneck})
    parameters = list(both.parameters())
    optimizer = make_optimizer(parameters, WEIGHT_DECAY)
    stop = EarlyStop(
        both,
        options.steps,
        options.patience,
        lambda: loss_of(codec, bottleneck, measure, fit.aside, options.size),
        progress,
    )
    loop = Loop(
        fit.state,
        {"both": both, "stop": stop, "discriminator": adversary.network},
        {"optimizer": optimizer, "adversary": adversary.optimizer},
        {"generator": fit.generator, "own generator": torch.default_generator},
    )
    first = loop.start()
    if first == 0:
        progress("starting", 0.0)
        with torch.no_grad():
            z_ND11 = codec.encoder.linear(fit.patches_NP[..., None, None])
        bottleneck.start(z_ND11.flatten(1), fit.seed)
    both.train()
    for step in range(first, options.steps):
        set_rate(optimizer, step, options.steps)
        if step >= round(SETTLE_FROM * options.steps):
            bottleneck.settle()
        x_B3SS = scale(random_crops(fit.thumbnails, BATCH, options.size, fit.generator))
        z_BDhw, own_loss = bottleneck(codec.encode(x_B3SS))
        y_B3SS = codec.decode(z_BDhw)
        error = measure(y_B3SS, x_B3SS)
        loss = error + own_loss
        adversarial = options.adversarial > 0 and step >= ADVERSARY_FROM * options.steps
        if adversarial:
            loss = loss + adversary.loss(error, y_B3SS, codec.decoder.correct.weight)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if adversarial:
            adversary.learn(x_B3SS, y_B3SS.detach())
        if step % 10 == 0:
            figures = {"error": error.item(), **bottleneck.figures()}
            progress("training", step / options.steps, **figures)
        if stop.ends(step):
            break
        loop.end_step(step)
    stop.restore()
    both.eval()
    progress("training", 1.0)


@torch.no_grad()
def loss_of(
    codec: Codec,
    bottleneck: Bottleneck,
    measure: PictureLoss,
    thumbnails: Sequence[Tensor],
    size: int,
) -> float:
    """The loss of the middle squares of thumbnails, as a fitted tokenizer decodes them."""
    parts = [scale(part) for part in whole_crops(thumbnails, size).split(BATCH)]
    losses = [measure(codec.decode(bottleneck.plain(codec.encode(x))), x) * len(x) for x in parts]
    return float(torch.stack(losses).sum()) / len(thumbnails)
