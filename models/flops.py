"""Parameters and operations by modality, from the shapes alone.

Active parameters are those that a token of the modality is multiplied with: shared parts, its own
part of untied ones, `capacity` experts, the memory rows that it reads, the head; of a block that
only some tokens pass, their share. The input embedding is a look-up and counts in the total only;
so do the modalities' embeddings at both ends, which are sums, and the rest of the value table. Each
module that owns parameters says so itself: `active(modality) -> (in matrix products, others)`.
"""

from typing import TypedDict

import torch

from plait.models.config import ModelConfig
from plait.models.decoder import Decoder


class Parameters(TypedDict):
    """Numbers of parameters."""

    total: int
    active: dict[str, int]
    """By modality."""


def count_parameters(decoder: Decoder) -> Parameters:
    """All parameters, and those that a token of each modality uses."""
    decoder, names = _whole(decoder), decoder.vocabulary.modalities
    return {
        "total": sum(p.numel() for p in decoder.parameters()),
        "active": {name: round(sum(_active(decoder, m))) for m, name in enumerate(names)},
    }


def flops_per_token(decoder: Decoder, seq_len: int) -> dict[str, float]:
    """Operations to train on one token, by modality: 6 a weight, and attention over `seq_len`.

    Matrix products only, forward and backward (arXiv:2204.02311, appendix B): attention counts
    its full square, and norms, convolution, scan and look-ups nothing.
    """
    decoder, config = _whole(decoder), decoder.config
    attention = sum(
        _share(config, i) ** 2 for i, (mixer, _) in enumerate(config.blocks) if mixer == "attention"
    )
    square = 12.0 * attention * decoder.config.dim * seq_len
    names = decoder.vocabulary.modalities
    return {name: 6 * _active(decoder, m)[0] + square for m, name in enumerate(names)}


def _whole(decoder: Decoder) -> Decoder:
    """The same one without weights, where processes hold parts of it."""
    if decoder.ranks.size == 1:
        return decoder
    with torch.device("meta"):
        return Decoder(decoder.config, decoder.vocabulary)


def _active(decoder: Decoder, modality: int) -> tuple[float, float]:
    """Active parameters in matrix products, the head's included, and others."""
    products, others = float(decoder.head.numel()), 0.0
    for name, module in decoder.named_modules():
        if module is decoder or not list(module.parameters(recurse=False)):
            continue
        active = getattr(module, "active", None)
        assert active is not None, f"{name} owns parameters and does not say which are active"
        own, share = active(modality), 1.0
        match name.split("."):
            case "blocks", block, part, *_ if part != "depth":
                share = _share(decoder.config, int(block))
        products, others = products + share * own[0], others + share * own[1]
    return products, others


def _share(config: ModelConfig, block: int) -> float:
    """Share of the tokens that pass a block."""
    return config.depth_capacity if config.depths[block] else 1.0
