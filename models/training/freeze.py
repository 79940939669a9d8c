"""Parameters that stand still, whole or by rows: `optimizer.only` and `optimizer.freeze`.

A whole one loses its gradient and is no part of the optimizer. Of a stacked weight, of which a
modality's slice is frozen, the slice's gradient is set to exact zeros before it is clipped, so that
Adam's moments stay zero and its step is zero; weight decay, which would move it all the same, is
taken off the optimizer and done here on the other rows. Frozen weights keep every bit, at the cost
of no memory. Thresholds of frozen experts stand still too. Under FSDP2 all of it works on the rows
that a rank holds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from plait.models.decoder import VALUES, Decoder
from plait.models.routing import Router
from plait.models.training.names import picked
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Partial:
    """A parameter of which some rows (first axis) are frozen."""

    parameter: nn.Parameter
    live: Tensor
    """Bool, over all rows of the parameter, on the CPU."""

    @cached_property
    def ranges(self) -> tuple[list[slice], list[slice]]:
        """Frozen and live rows among those that this rank holds."""
        first, count = _held(self.parameter)
        live = self.live[first : first + count]
        cuts = (live[1:] != live[:-1]).nonzero().flatten() + 1
        edges = [0, *cuts.tolist(), len(live)]
        found: tuple[list[slice], list[slice]] = ([], [])
        for start, stop in pairwise(edges):
            if stop > start:
                found[int(live[start])].append(slice(start, stop))
        return found

    def zero_gradient(self) -> None:
        """Exact zeros where rows are frozen, whatever the gradient is there."""
        if self.parameter.grad is not None:
            gradient = _local(self.parameter.grad)
            for rows in self.ranges[0]:
                gradient[rows].zero_()

    def decay(self, share: float) -> None:
        """Weight decay of the other rows: they lose this share of themselves."""
        weight = _local(self.parameter)
        for rows in self.ranges[1] if share else []:
            weight[rows].mul_(1 - share)


def freeze(
    model: Decoder, only: tuple[str, ...], frozen: tuple[str, ...]
) -> tuple[dict[str, nn.Parameter], dict[str, Partial]]:
    """The parameters to train by name, and those among them of which rows are frozen.

    All others lose their gradient. ConfigError where a pattern picks nothing, or nothing is left.
    """
    named = dict(model.named_parameters())
    live = {name: torch.full((len(p),), not only) for name, p in named.items()}
    for pattern in only:
        for name, rows in picked(pattern, model, "optimizer.only").items():
            live[name] |= rows
    for pattern in frozen:
        for name, rows in picked(pattern, model, "optimizer.freeze").items():
            live[name] &= ~rows
    for name, rows in live.items():
        named[name].requires_grad_(bool(rows.any()))
    _fix_thresholds(model, live)
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if not trained:
        raise ConfigError("optimizer.freeze, only: every parameter is frozen; nothing would learn")
    if VALUES in trained and not _read_with_gradient(model, trained):
        raise ConfigError(
            "optimizer.freeze, only: values.weight learns by the gradient of what looks it up; "
            "train the first memory's keys beside it, or freeze it too"
        )
    partial = {n: Partial(p, live[n]) for n, p in trained.items() if not live[n].all()}
    assert VALUES not in partial, "the memory's table belongs to no modality"
    return trained, partial


def _read_with_gradient(model: Decoder, trained: Iterable[str]) -> bool:
    """Whether anything learns that the first memory's look-up depends on."""
    first = next(i for i, part in enumerate(model.config.blocks) if "memory" in part[1])
    before = ("embedding", "modality_embedding", *(f"blocks.{i}." for i in range(first)))
    own = (".mixer", ".channel_norm", ".query", ".keys", ".key_gain")
    return any(
        name.startswith(before)
        or (name.startswith(f"blocks.{first}.") and any(part in name for part in own))
        for name in trained
    )


def _fix_thresholds(model: Decoder, live: dict[str, Tensor]) -> None:
    for prefix, module in model.named_modules():
        if isinstance(module, Router):
            module.fixed = (~live[f"{prefix}.weight"]).tolist()


def _held(parameter: Tensor) -> tuple[int, int]:
    """First row that this rank holds, and how many."""
    if not isinstance(parameter, DTensor):
        return 0, len(parameter)
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return (offset[0], shape[0]) if shape[0] else (0, 0)


def _local(tensor: Tensor) -> Tensor:
    held = tensor.detach()
    return held.to_local() if isinstance(held, DTensor) else held
