"""Learning-rate schedules: the share of the peak at a step, a pure function of the step's number.

A run that is given more `steps` when it is resumed stretches "cosine" and "linear", whose past then
differs a little from that of a run which had as many from the start. Where "constant" has not
begun its cooldown there is no difference: train for ever, and cool down from any checkpoint
(arXiv:2405.18392; "1 - sqrt" is the shape that did best there).
"""

import math

from plait.models.training.optimizer import OptimizerConfig


def lr_share(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at step 0 .. steps - 1: warm-up, then the schedule.

    >>> wsd = OptimizerConfig(warmup=2, schedule="constant", cooldown=0.25, min_lr=0.0)
    >>> [round(lr_share(step, 16, wsd), 2) for step in (0, 1, 2, 12, 13, 15)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.13]
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    first = config.warmup
    if config.schedule == "constant":
        first = max(first, steps - round(config.cooldown * steps))
    if step < first or (config.schedule == "constant" and not config.cooldown):
        return 1.0
    done = min(1.0, (step - first) / max(1, steps - first))
    shape = "cosine" if config.schedule == "cosine" else "linear"
    if config.schedule == "constant":
        shape = config.cooldown_shape
    return config.min_lr + (1 - config.min_lr) * _LEFT[shape](done)


_LEFT = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "sqrt": lambda done: 1 - math.sqrt(done),
}
"""What is left of the peak after some share of the way down."""
