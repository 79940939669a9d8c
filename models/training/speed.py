"""How a model's training step is run: compiled parts, and activations kept or made again.

`torch.compile` takes each block's parts around attention, and a Mamba block whole: no batch's
documents are in their graphs, so a few graphs serve all batches (sizes are symbols from the second
batch on). Attention's buckets on a CPU, the choice of tokens that pass a block of depth, and the
head's cross-entropy stay as they are. In eval nothing is compiled: experts there ask the data for
counts, which only a graph of the whole pass can hold.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from plait.models.attention import Attention
from plait.models.block import Block
from plait.models.decoder import Decoder
from plait.models.recompute import in_own_context


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How a step is run; none of it changes what is learned."""

    compile: Literal["auto", "on", "off"] = "off"
    """torch.compile of the blocks; auto is on for a GPU and off for a CPU, where norms,
    gates and the loss are in C as it is: a step of dense gained 1 % there."""
    checkpoint_activations: bool = False
    """Keep the input of each block alone and run it again backward: less memory, a third more
    products in the blocks, the same bits."""


def apply(model: Decoder, config: SpeedConfig, device: torch.device) -> None:
    """Have the model run its training steps so."""
    model.checkpoint_activations = config.checkpoint_activations
    if device.type == "cpu":
        keep_freed_memory()
    if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
        compile_blocks(model)


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next step; False where there is no glibc.

    Else it gives large tensors back, and the next ones are paged in anew: a sixth of a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    never_trim, largest_on_heap = (-1, -1), (-3, 1 << 30)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return all([mallopt(*never_trim), mallopt(*largest_on_heap)])


def compile_blocks(model: Decoder, backend: str = "inductor", *, whole: bool = False) -> None:
    """Compile what is the same for all batches in each block, in training.

    With `whole`, what cannot be traced is an error; else it runs as it is.
    """
    options = {"backend": backend, "fullgraph": whole}
    for block in model.blocks:
        assert isinstance(block, Block)
        if isinstance(block.mixer, Attention):
            _compile(block, "_channel", block, options)
            _compile(block.mixer, "_project", block, options)
        else:
            _compile(block, "_run", block, options)


def _compile(owner: nn.Module, name: str, block: Block, options: dict) -> None:
    """Put a compiled method in the place of a method `(x, context)`."""
    plain: Callable = getattr(owner, name)
    fast = in_own_context(torch.compile(plain, **options))

    def run(x, context, *more):
        if block.training and not more:
            _ = context.order.alone  # a cached property is no graph's to compute
            return fast(x, context)
        return plain(x, context, *more)

    setattr(owner, name, run)
