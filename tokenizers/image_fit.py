"""Fitting the image tokenizers: patches to lay codes out on, and the decoder's training loop.

Training ends after a number of steps, not minutes,
and runs on a fixed number of threads, so the same samples and seed give the same weights to the
last bit on one machine.

B pictures, S pixels a side, N patches, P values of a patch.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from plait.tokenizers.base import Progress, ignore
from plait.tokenizers.early_stop import EarlyStop
from plait.tokenizers.fit_state import KEPT_NOWHERE, FitState, Loop
from plait.tokenizers.image_network import Autoencoder
from plait.tokenizers.pictures import random_crops, scale, whole_crops

LR, WEIGHT_DECAY, BATCH, WARM_UP = 1e-3, 0.05, 16, 50
AVERAGE = 0.995
"""Decay of the running mean of the weights, which is what is kept."""


def sample_patches(
    thumbnails: Sequence[Tensor], count: int, size: int, stride: int, generator: torch.Generator
) -> Tensor:
    """At most `count` patches float32 [N, P] of values -1..1, without order.

    From the middle squares of the pictures, and where these are too few, from random crops too.
    """
    per_crop = (size // stride) ** 2
    order = torch.randperm(len(thumbnails), generator=generator).tolist()
    chosen = [thumbnails[i] for i in order[: max(1, 4 * count // per_crop)]]
    crops = [whole_crops(chosen, size)]
    missing = count // per_crop - len(chosen)
    if missing > 0:
        crops.append(random_crops(thumbnails, missing, size, generator))
    patches = torch.cat([_patches(c, stride) for c in crops])
    return scale(patches[torch.randperm(len(patches), generator=generator)[:count]])


def train(
    model: Autoencoder,
    thumbnails: Sequence[Tensor],
    size: int,
    steps: int,
    generator: torch.Generator,
    progress: Progress = ignore,
    state: FitState = KEPT_NOWHERE,
    aside: Sequence[Tensor] = (),
    patience: int = 0,
) -> Autoencoder:
    """Train the decoder on random crops for the least squared error; returns its running mean.

    With `patience` it may end early, by the error of the thumbnails `aside`.
    """
    model.train()
    mean = copy.deepcopy(model)
    decoder = model.decoder
    optimizer = make_optimizer(list(decoder.parameters()), WEIGHT_DECAY)
    stop = EarlyStop(mean, steps, patience, lambda: squared_error(mean, aside, size), progress)
    parts = {"model": model, "mean": mean, "stop": stop}
    loop = Loop(state, parts, {"optimizer": optimizer}, {"generator": generator})
    for step in range(loop.start(), steps):
        set_rate(optimizer, step, steps)
        x_B3SS = scale(random_crops(thumbnails, BATCH, size, generator))
        loss = (decoder(model.encode(x_B3SS)) - x_B3SS).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        _average(mean, model, min(AVERAGE, (step + 1) / (step + 20)))
        if step % 10 == 0:
            progress("training", step / steps, squared_error=loss.item())
        if stop.ends(step):
            break
        loop.end_step(step)
    stop.restore()
    progress("training", 1.0)
    return mean.eval()


@torch.no_grad()
def squared_error(model: Autoencoder, thumbnails: Sequence[Tensor], size: int) -> float:
    """Mean squared error of the middle squares of thumbnails, values -1..1."""
    parts = [scale(part) for part in whole_crops(thumbnails, size).split(BATCH)]
    errors = [(model.decoder(model.encode(x)) - x).square().sum() for x in parts]
    return float(torch.stack(errors).sum()) / sum(part.numel() for part in parts)


def make_optimizer(
    parameters: Sequence[nn.Parameter], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, where only matrices decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), weight_decay=weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """A warm-up and a cosine."""
    warm = min(1.0, (step + 1) / WARM_UP)
    for group in optimizer.param_groups:
        group["lr"] = LR * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with a fixed number of threads: sums are cut up by it, so results depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _average(mean: nn.Module, model: nn.Module, decay: float) -> None:
    for average, latest in zip(mean.parameters(), model.parameters(), strict=True):
        average.lerp_(latest, 1 - decay)


def _patches(pixels_B3SS: Tensor, stride: int) -> Tensor:
    return pixel_unshuffle(pixels_B3SS, stride).permute(0, 2, 3, 1).flatten(0, 2)
