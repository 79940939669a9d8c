"""Weights of a mixture from what is wanted of it: by temperature, by modality, along a line."""

from collections.abc import Mapping, Sequence

import numpy as np

from plait.pipeline.schedule import Weights
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError


def by_temperature(rows: Sequence[int], temperature: float) -> list[float]:
    """Shares in proportion to rows ** (1 / temperature): 1 keeps the sizes, more evens them out.

    >>> by_temperature([100, 1], 2.0)
    [0.909091, 0.090909]
    """
    if not temperature > 0:
        raise ConfigError(f"temperature {temperature}: should be above 0")
    logs = np.log(np.asarray(rows, np.float64)) / temperature
    weights = np.exp(logs - logs.max())
    return [round(float(w), 6) for w in weights / weights.sum()]


def ramp(
    first: int, last: int, old: Sequence[float], new: Sequence[float], parts: int = 32
) -> list[tuple[int, Weights]]:
    """From `old` before row `first` to `new` from row `last` on, along a line of `parts` steps.

    >>> ramp(0, 8, [1, 0], [0, 1], parts=2)
    [(0, [0.75, 0.25]), (4, [0.25, 0.75]), (8, [0.0, 1.0])]
    """
    if not 0 <= first < last or last - first < parts:
        raise ConfigError(f"a ramp from row {first} to {last}: should have {parts} rows or more")
    stretches: list[tuple[int, Weights]] = [(0, list(old))] if first else []
    for part in range(parts):
        share = (part + 0.5) / parts
        at = first + (last - first) * part // parts
        stretches.append((at, [a + (b - a) * share for a, b in zip(old, new, strict=True)]))
    return [*stretches, (last, [float(w) for w in new])]


def by_modality(
    streams: Sequence[Stream], rows: Sequence[int], wanted: Mapping[str, float]
) -> list[float]:
    """Weights of rows that give each modality its share of the tokens.

    Of all weights that do, those nearest to the streams' sizes (least relative entropy). Markers
    count as text, padding not at all. Raises ConfigError where no weights do it within 0.5 %.
    """
    names = list(wanted)
    target = np.array([wanted[n] for n in names], np.float64)
    if (target < 0).any() or not target.sum() > 0:
        raise ConfigError(f"modality shares {dict(wanted)}: should be numbers from 0 on")
    target /= target.sum()
    tokens = np.array([_tokens(stream, names) for stream in streams], np.float64)
    total = tokens.sum(1)
    shares = tokens / total[:, None]
    found = _nearest(shares, total / total.sum(), target)
    reached = found @ shares
    if np.abs(reached - target).max() > 0.005:
        best = {n: round(float(r), 3) for n, r in zip(names, reached, strict=True)}
        raise ConfigError(
            f"modality shares {dict(wanted)} cannot be mixed from these streams; the nearest is "
            f"about {best}: ask for that, or add a stream with more of what is missing"
        )
    weights = found * np.asarray(rows) / total
    return [round(float(w), 6) for w in weights / weights.sum()]


def _tokens(stream: Stream, names: Sequence[str]) -> list[int]:
    """Tokens of a stream by modality, markers as text."""
    found = dict.fromkeys(names, 0)
    for shard in stream.shards:
        for modality, count in shard.tokens.items():
            if count and modality not in found:
                raise ConfigError(f"{stream.path}: it holds {modality}: name its share, even if 0")
            found[modality] = found.get(modality, 0) + count
        marked = sum(n for modality, n in shard.spans.items() if modality != "text")
        if "text" in found:
            found["text"] += 2 * marked + 2 * shard.documents
    return list(found.values())


def _nearest(shares_SM: np.ndarray, size_S: np.ndarray, target_M: np.ndarray) -> np.ndarray:
    """Shares of tokens v with v @ shares = target, near `size`: Newton on the dual."""
    slope_M = np.zeros(len(target_M))

    def shares_at(slope_M: np.ndarray) -> tuple[np.ndarray, float]:
        logs = np.log(size_S) + (shares_SM - target_M) @ slope_M
        top = logs.max()
        v = np.exp(logs - top)
        return v / v.sum(), top + float(np.log(v.sum()))

    v, value = shares_at(slope_M)
    for _ in range(200):
        centred = shares_SM - v @ shares_SM
        gradient = v @ shares_SM - target_M
        if np.abs(gradient).max() < 1e-9:
            break
        curve = centred.T @ (v[:, None] * centred) + 1e-9 * np.eye(len(target_M))
        step = np.linalg.solve(curve, gradient)
        size = min(1.0, 8.0 / max(1e-30, float(np.abs(step).max())))
        while size > 1e-9:
            tried, found = shares_at(slope_M - size * step)
            if found <= value:
                break
            size /= 2
        slope_M, v, value = slope_M - size * step, tried, found
    return v
