"""Norms of weights and gradients by part of a decoder, and by modality where a part is untied.

Parts are embedding, head, norm, attention, mamba, ffn, experts, memory and router. The table of
memory values is left out: it may be larger than all the rest, and its optimizer knows the norm of
the rows that were read. Everything stays on the device; what is cut over ranks is gathered, one
tensor at a time.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.models.decoder import VALUES, Decoder
from plait.models.experts import Experts
from plait.models.layers import ModalityLayerNorm, ModalityLinear, ModalityNorm
from plait.models.mamba import Mamba
from plait.models.routing import Router


@torch.no_grad()
def norms(model: Decoder) -> dict[str, Tensor]:
    """Scalars `weight_norm/<part>`, `grad_norm/<part>`, and `.../<part>/<modality>`."""
    found: dict[str, list[Tensor]] = {}
    for part, owners, parameter in _parts(model):
        tensors = {"weight_norm": parameter.detach(), "grad_norm": parameter.grad}
        for kind, tensor in tensors.items():
            if tensor is None:
                continue
            squares = _squares(tensor, len(owners))
            found.setdefault(f"{kind}/{part}", []).append(squares.sum())
            for m in set(owners) if len(owners) > 1 else ():
                own = [i for i, owner in enumerate(owners) if owner == m]
                name = f"{kind}/{part}/{model.vocabulary.modalities[m]}"
                found.setdefault(name, []).append(squares[own[0] : own[-1] + 1].sum())
    return {name: torch.stack(squares).sum().sqrt() for name, squares in sorted(found.items())}


def _parts(model: Decoder) -> Iterator[tuple[str, list[int], nn.Parameter]]:
    """Each parameter with its part, and the modality that each slice along its first axis serves.

    The latter has one entry where modalities share the parameter.
    """
    modalities = len(model.vocabulary.modalities)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            path = f"{prefix}.{name}".strip(".")
            if path == VALUES:
                continue
            owners = _owners(module, name, modalities)
            whole = len(owners) == len(parameter) > 1 and modalities > 1
            yield part_of(model, path), owners if whole else [0], parameter


def part_of(model: Decoder, path: str) -> str:
    """The part that a parameter belongs to, by its name."""
    words = path.split(".")
    if "router" in words:
        return "router"
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", path)
    for at, word in enumerate(("mixer", "channel")):
        if block is not None and word in words:
            return model.config.blocks[int(block[1])][at]
    named = {"embedding": "embedding", "modality_embedding": "embedding"}
    named |= {"head": "head", "modality_head": "head"}
    return named.get(words[-1], "norm")


def _owners(module: nn.Module, name: str, modalities: int) -> list[int]:
    """The modality of each slice of a parameter that is stacked by modality."""
    if isinstance(module, Experts):
        return _of_groups(module.router.sizes)
    if isinstance(module, Router) and name != "auxiliary_in" and len(module.sizes) == modalities:
        return _of_groups(module.sizes)
    stacked = isinstance(module, ModalityLinear | ModalityNorm | ModalityLayerNorm)
    if stacked or (isinstance(module, Mamba) and name == "dt_bias") or name == "auxiliary_in":
        return list(range(modalities))
    return []


def _of_groups(sizes: tuple[int, ...]) -> list[int]:
    return [m for m, size in enumerate(sizes) for _ in range(size)]


def _squares(tensor: Tensor, slices: int) -> Tensor:
    """Sums of squares of each slice along the first axis, or of everything, float32 [slices]."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    flat = tensor.flatten(1) if slices > 1 else tensor.reshape(1, -1)
    return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32).square()
