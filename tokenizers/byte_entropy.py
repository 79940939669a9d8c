"""How uncertain a byte is after the three before it: counts with back-off, kept as entropies.

A context's distribution is its counts mixed with the distribution of the context one byte shorter,
by the number of different bytes that were seen after it (Witten and Bell, 1991, method C); order 0
is mixed with 1/256. What was never seen falls back by itself. Marking patches needs each context's
entropy alone, so a tokenizer keeps only those: in steps of 1/8192 bit, for at most 2^20 contexts of
three bytes, 6 MiB. Looking them up is exact on every machine; memory grows by a table of 32 MiB.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch

from plait.kernels.mark_patches import Orders, State, context_entropies
from plait.tokenizers.checks import WEIGHTS_FILE, weights_from_files, weights_to_bytes
from plait.tokenizers.errors import ConfigError

UNIT = 1 / 8192
"""Bits; every entropy and threshold is a multiple of it, so float32 differences are exact."""
MOST_CONTEXTS = 1 << 20
MOST_GRAMS = 1 << 22
"""Different runs of four bytes that are counted at a time; beyond it the rarest are forgotten."""
CHUNK = 1 << 22
"""Bytes counted at a time."""
ARRAYS = ("order0", "order1", "order2", "contexts", "order3")


@dataclass(frozen=True, eq=False)
class ContextEntropies:
    """A source of entropies: a look-up by the three bytes before."""

    order0: np.ndarray
    """Uint16 [1], in UNITs."""
    order1: np.ndarray
    """[256]."""
    order2: np.ndarray
    """[65536], by (byte two before) * 256 + (byte before)."""
    contexts: np.ndarray
    """Int32 [K], rising: the contexts of three bytes that have their own entropy."""
    order3: np.ndarray
    """[K]."""
    counts: "CountModel | None" = None
    """What they come from; not kept in the folder."""

    def stream(self) -> "ContextStream":
        """Entropies of documents that come in pieces."""
        return ContextStream(self.orders)

    def bits(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray | None:
        """-log2 of the probability of each byte; None for one that was loaded."""
        return None if self.counts is None else self.counts.bits(data, firsts)

    @cached_property
    def orders(self) -> Orders:
        """The table that is looked up; contexts without an entropy have that of order 2."""
        order3 = np.tile(self.order2, 256)
        order3[self.contexts] = self.order3
        return Orders(self.order0, self.order1, self.order2, order3, unit=UNIT)

    def files(self) -> dict[str, bytes]:
        """`weights.safetensors`."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ARRAYS}
        return {WEIGHTS_FILE: weights_to_bytes(arrays)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Rebuild it; ConfigError if the file is damaged or too large."""
        ndims: dict[str, int] = dict.fromkeys(ARRAYS, 1)
        weights = {name: t.numpy() for name, t in weights_from_files(files, ndims).items()}
        contexts = weights["contexts"]
        sizes = {"order0": 1, "order1": 256, "order2": 65536, "order3": len(contexts)}
        for name, size in sizes.items():
            if weights[name].dtype != np.uint16 or len(weights[name]) != size:
                raise ConfigError(f"{WEIGHTS_FILE}: {name} should be uint16 [{size}]")
        rising = contexts.dtype == np.int32 and (np.diff(contexts) > 0).all()
        inside = len(contexts) <= MOST_CONTEXTS and contexts[0] >= 0 and contexts[-1] < 1 << 24
        if not (rising and inside):
            raise ConfigError(
                f"{WEIGHTS_FILE}: contexts should rise within 0..{(1 << 24) - 1}, "
                f"int32, {MOST_CONTEXTS:,} at most"
            )
        order0, order1, order2 = (weights[f"order{order}"] for order in range(3))
        return cls(order0, order1, order2, contexts, weights["order3"])


class ContextStream:
    """Entropies of documents that come in pieces."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.state = State()

    def push(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """Float32 [n] in bits, for the next bytes, uint8 [n]; documents begin at `firsts`."""
        return context_entropies(data, firsts, self.orders, self.state)


class CountModel:
    """Counts of four bytes in a row, and the probabilities that follow from them."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray, lower: list[np.ndarray]) -> None:
        """Grams as rising numbers, how often each was seen, and order 0, 1 and 2 in full.

        `lower[k]` is [256^k, 256]: how often a byte came after k bytes.
        """
        self.grams, self.counts = _most_frequent(grams, counts)
        below = np.full((1, 256), 1 / 256)
        self.orders: list[np.ndarray] = []
        """Distributions after 0, 1 and 2 bytes, float64 [256^k, 256]."""
        for seen in lower:
            blocks = [seen[a : a + len(below)] for a in range(0, len(seen), len(below))]
            below = np.concatenate([_mixed(block, below) for block in blocks])
            self.orders.append(below)

    @cached_property
    def _contexts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Each context of three bytes: itself, its first gram, its count, its different bytes."""
        contexts, first = np.unique(self.grams >> 8, return_index=True)
        total = np.add.reduceat(self.counts, first)
        return contexts, first, total, np.diff(first, append=len(self.grams))

    def bits(self, data: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """-log2 of the probability of each byte, float64 [n]; documents begin at `firsts`."""
        n = len(data)
        place = np.arange(n) - np.repeat(firsts, np.diff(firsts, append=n))
        gram = _grams(data)
        p = np.empty(n)
        for order in (0, 1, 2):
            at = place == order if order < 2 else place >= 2
            p[at] = self.orders[order].ravel()[gram[at] & ((256 << 8 * order) - 1)]
        whole = np.flatnonzero(place >= 3)
        p[whole] = self._order3(gram[whole], p[whole])
        return -np.log2(p)

    def _order3(self, gram: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Probabilities after three bytes, from those after two."""
        contexts, _, total, different = self._contexts
        at = np.minimum(np.searchsorted(contexts, gram >> 8), len(contexts) - 1)
        known = contexts[at] == gram >> 8
        total, different = total[at], different[at]
        at = np.minimum(np.searchsorted(self.grams, gram), len(self.grams) - 1)
        seen = np.where(self.grams[at] == gram, self.counts[at], 0)
        return np.where(known, (seen + different * below) / (total + different), below)

    def entropies(self) -> ContextEntropies:
        """The entropy after every context."""
        lower = [_row_entropies(p) for p in self.orders]
        contexts, first, total, different = self._contexts
        # All bytes as if unseen: p = w q with q of order 2; then the seen ones are set right.
        w = different / (total + different)
        q = self.orders[2]
        entropy = w * (lower[2][contexts & 0xFFFF] - np.log2(w))
        of_gram = np.repeat(np.arange(len(contexts)), different)
        unseen = w[of_gram] * q.ravel()[self.grams & 0xFFFFFF]
        p = unseen + self.counts / (total + different)[of_gram]
        entropy += np.add.reduceat(unseen * np.log2(unseen) - p * np.log2(p), first)
        order0, order1, order2, order3 = map(_in_units, (*lower, entropy))
        contexts = contexts.astype(np.int32)
        return ContextEntropies(order0, order1, order2, contexts, order3, counts=self)


def count(samples: Iterable[bytes]) -> CountModel:
    """Count runs of up to four bytes inside each document; the order of documents is kept."""
    lower = [np.zeros((256**order, 256), np.int64) for order in range(3)]
    grams, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for data, firsts in chunks(samples):
        gram = _grams(data)
        place = np.arange(len(data)) - np.repeat(firsts, np.diff(firsts, append=len(data)))
        new, times = np.unique(gram[place >= 3], return_counts=True)
        for order, table in enumerate(lower):
            mask = (256 << 8 * order) - 1
            np.add.at(table.ravel(), new & mask, times)
            np.add.at(table.ravel(), gram[(place >= order) & (place < 3)] & mask, 1)
        grams, counts = _forget_rare(*_added(grams, counts, new, times))
    return CountModel(grams, counts, lower)


def chunks(samples: Iterable[bytes]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Documents back to back, about CHUNK bytes at a time, and where each begins.

    A longer document is cut into documents of CHUNK bytes.
    """
    waiting: list[bytes] = []
    size = 0
    for sample in samples:
        for a in range(0, len(sample), CHUNK):
            waiting.append(sample[a : a + CHUNK])
            size += len(waiting[-1])
            if size >= CHUNK:
                yield _joined(waiting)
                waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(documents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    firsts = np.cumsum([0, *map(len, documents[:-1])], dtype=np.int64)
    return np.frombuffer(b"".join(documents), np.uint8), firsts


def _grams(data: np.ndarray) -> np.ndarray:
    """Each byte with the three before it as one number, int64 [n]; before the data are zeros."""
    padded = np.concatenate([np.zeros(3, np.int64), data])
    return padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]


def _added(
    grams: np.ndarray, counts: np.ndarray, new: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    grams, where = np.unique(np.concatenate([grams, new]), return_inverse=True)
    total = np.bincount(where, np.concatenate([counts, times]), len(grams))
    return grams, total.astype(np.int64)


def _forget_rare(grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    floor = 1
    while len(grams) > MOST_GRAMS:
        kept = counts > floor
        grams, counts, floor = grams[kept], counts[kept], floor + 1
    return grams, counts


def _most_frequent(grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grams of the MOST_CONTEXTS contexts that were seen most; one of three zeros if none."""
    if not len(grams):
        return np.zeros(1, np.int64), np.ones(1, np.int64)
    contexts, which = np.unique(grams >> 8, return_inverse=True)
    if len(contexts) <= MOST_CONTEXTS:
        return grams, counts
    total = np.bincount(which, counts)
    kept = np.zeros(len(contexts), bool)
    kept[np.argsort(-total, kind="stable")[:MOST_CONTEXTS]] = True
    return grams[kept[which]], counts[kept[which]]


def _mixed(seen: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Counts [n, 256] mixed with the distributions below; those where nothing was seen."""
    total, different = seen.sum(1, keepdims=True), (seen > 0).sum(1, keepdims=True)
    return np.where(total > 0, (seen + different * below) / np.maximum(total + different, 1), below)


def _row_entropies(p: np.ndarray) -> np.ndarray:
    """Bits of each row of probabilities, some rows at a time."""
    parts = np.array_split(p, max(len(p) // 1024, 1))
    return np.concatenate([-(part * np.log2(part)).sum(1) for part in parts])


def _in_units(entropy: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(entropy / UNIT), 0, 65535).astype(np.uint16)
