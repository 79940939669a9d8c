"""Activation checkpointing: a block keeps its input alone, and runs again in the backward pass.

Gradients are bit-equal to those of a block that runs once: noise is drawn again from the same
state, and what a run leaves behind (routers' thresholds, figures, losses of the parts' own) is left
by the first one alone. A memory's readings are noted in the backward pass, which there is one of.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plait.models.context import Context


def run_again(block: nn.Module, x_ND: Tensor, context: Context) -> Tensor:
    """`block(x_ND, context)`, to be run again in the backward pass."""
    runs = 0

    def run(x_ND: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if runs == 1:
            return block(x_ND, context)
        with unchanged(block):
            return block(x_ND, _own(context))

    found = checkpoint(run, x_ND, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """The module's buffers are afterwards what they were."""
    kept = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(module.buffers(), kept, strict=True):
                buffer.copy_(before)


def in_own_context(function: Callable) -> Callable:
    """`function(x, context)` with a context of its own, whose notes are passed on.

    A compiled function must not depend on how much was noted before it.
    """

    def run(x: Tensor, context: Context):
        own = _own(context)
        y = function(x, own)
        context.losses += own.losses
        for name, values in own.statistics.items():
            context.statistics.setdefault(name, []).extend(values)
        for name, tallies in own.tallies.items():
            context.tallies.setdefault(name, []).extend(tallies)
        return y

    return run


def _own(context: Context) -> Context:
    """The same, with nothing noted."""
    return replace(context, losses=[], statistics={}, tallies={})
