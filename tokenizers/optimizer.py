"""The optimizer and the learning rate of every fit that trains by gradient."""

import math
from collections.abc import Iterable

import torch
from torch import nn

LR, WARM_UP = 1e-3, 50
"""The default learning rate, and the steps after which it is reached."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], weight_decay: float, lr: float = LR
) -> torch.optim.Optimizer:
    """AdamW, where only matrices decay."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1]},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)


def set_rate(
    optimizer: torch.optim.Optimizer, step: int, steps: int, lr: float = LR, least: float = 0.0
) -> None:
    """A warm-up and a cosine from `lr` down to the share `least` of it."""
    warm = min(1.0, (step + 1) / WARM_UP)
    cosine = (1 + least) / 2 + (1 - least) / 2 * math.cos(math.pi * step / steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * warm * cosine
