"""The training loop of `ConvCodes`: encoder, quantizer and decoder together.

The progress line tells the error, and how many codes the last batches used: the first sign of a
codebook that collapses. Training ends after a number of steps and runs on a fixed number of
threads, so the same samples and seed give the same weights to the last bit on one machine.

B pictures, S pixels a side, N patches, P values of a patch.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plait.tokenizers.base import Progress
from plait.tokenizers.image_codes_network import Codec, through
from plait.tokenizers.image_fit import make_optimizer, set_rate
from plait.tokenizers.image_losses import Adversary, PictureLoss
from plait.tokenizers.image_options import FitOptions
from plait.tokenizers.pictures import random_crops, scale
from plait.tokenizers.quantize import CodeUse, Quantizer

WEIGHT_DECAY, BATCH = 0.01, 16
WINDOW = 32
"""Batches whose codes the progress line counts."""
SETTLE_FROM = 0.7
"""Share of the steps after which dead codes stay where they are."""
ADVERSARY_FROM = 0.5
"""Share of the steps after which the discriminator begins."""


def train_codec(
    codec: Codec,
    quantizer: Quantizer,
    thumbnails: Sequence[Tensor],
    patches_NP: Tensor,
    options: FitOptions,
    generator: torch.Generator,
    seed: int,
    progress: Progress,
) -> None:
    """Train both in place; torch's own generator should be seeded, as the quantizer draws on it."""
    progress("starting the codes", 0.0)
    with torch.no_grad():
        z_NP11 = codec.encoder.linear(patches_NP[..., None, None])
    quantizer.start(z_NP11.flatten(1), seed)
    measure = PictureLoss(options)
    adversary = Adversary(options.adversarial)
    parameters = [*codec.parameters(), *quantizer.parameters()]
    optimizer = make_optimizer(parameters, WEIGHT_DECAY)
    recent: deque[Tensor] = deque(maxlen=WINDOW)
    codec.train()
    quantizer.train()
    for step in range(options.steps):
        set_rate(optimizer, step, options.steps)
        if step == round(SETTLE_FROM * options.steps):
            quantizer.settle()
        x_B3SS = scale(random_crops(thumbnails, BATCH, options.size, generator))
        z_BDhw, ids_NC, quantizer_loss = through(quantizer, codec.encode(x_B3SS))
        y_B3SS = codec.decode(z_BDhw)
        error = measure(y_B3SS, x_B3SS)
        loss = error + quantizer_loss
        adversarial = options.adversarial > 0 and step >= ADVERSARY_FROM * options.steps
        if adversarial:
            loss = loss + adversary.loss(error, y_B3SS, codec.decoder.correct.weight)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if adversarial:
            adversary.learn(x_B3SS, y_B3SS.detach())
        recent.append(ids_NC)
        if step % 10 == 0:
            progress(_line(error.item(), recent, quantizer), step / options.steps)
    quantizer.eval()
    progress("training", 1.0)


def _line(error: float, recent: deque[Tensor], quantizer: Quantizer) -> str:
    codebooks, codes, _ = quantizer.codebooks().shape
    ids_NC = torch.cat(list(recent))
    uses = [CodeUse.of(ids[ids >= 0], codes) for ids in ids_NC.unbind(1)]
    used = sum(use.codes_used for use in uses)
    perplexity = sum(use.perplexity for use in uses) / codebooks
    return (
        f"training: error {error:.4f}, {used:,} of {codebooks * codes:,} codes used, "
        f"perplexity {perplexity:,.0f}"
    )
