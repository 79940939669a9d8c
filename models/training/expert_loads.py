"""How tokens spread over experts, and which share passes blocks of depth, by modality.

`load` is experts a token by the rule of inference, and `share` each expert's part of it: what
expert choice itself does in training is even by construction. `balance` is the entropy of the
shares over that of even ones, 1 where all are equal. `dropped` tokens had no expert in training.
"""

import math
from collections.abc import Mapping

import numpy as np

from plait.models.decoder import Decoder


def loads(tallies: Mapping[str, np.ndarray], model: Decoder, experts: bool) -> dict[str, float]:
    """Figures of a window's tallies, means over blocks; `experts` adds those of single experts."""
    modalities = model.vocabulary.modalities
    found: dict[str, float] = {}
    blocks = [i for i, (_, channel) in enumerate(model.config.blocks) if channel == "experts"]
    for m, name in enumerate(modalities):
        counts_LE = tallies.get(f"experts_taken/{m}")
        if counts_LE is None or not counts_LE[:, -1].sum():
            continue
        taken_LE, tokens_L = counts_LE[:, :-1], counts_LE[:, -1]
        share_LE = taken_LE / np.maximum(1, taken_LE.sum(1, keepdims=True))
        found[f"experts/load/{name}"] = float(taken_LE.sum() / tokens_L.sum())
        if share_LE.shape[1] > 1:
            found[f"experts/balance/{name}"] = _evenness(share_LE)
        for (layer, e), share in np.ndenumerate(share_LE) if experts else ():
            found[f"experts/share/block_{blocks[layer]}/{name}/{e}"] = float(share)
    for name, share in _shares(tallies.get("experts_reached"), modalities).items():
        found[f"experts/dropped/{name}"] = 1 - share
    for name, share in _shares(tallies.get("depth_passed"), modalities).items():
        found[f"depth/passed/{name}"] = share
    return found


def _shares(counts_L2M: np.ndarray | None, modalities: tuple[str, ...]) -> dict[str, float]:
    """Share of the tokens of each modality that there were, or of `all` where none are told."""
    if counts_L2M is None:
        return {}
    some_M, real_M = counts_L2M.sum(0)
    names = modalities if len(real_M) == len(modalities) else ("all",)
    return {k: float(x / n) for k, x, n in zip(names, some_M, real_M, strict=True) if n}


def _evenness(share_LE: np.ndarray) -> float:
    entropy_L = -(share_LE * np.log(np.where(share_LE > 0, share_LE, 1))).sum(1)
    return float(entropy_L.mean() / math.log(share_LE.shape[1]))
