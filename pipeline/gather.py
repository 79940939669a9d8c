"""Rows of a window into arrays: the glue between a plan and kernels/fill_rows.py."""

from collections.abc import Sequence

import numpy as np
import torch

from plait.kernels.fill_rows import Filled, Kinds, Pieces, fill_rows
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.pipeline.window import Window


def kinds_of(tokenizers: tuple[TokenizerInfo, ...], vocabulary: Vocabulary) -> Kinds:
    """A stream's tokenizers in the run's vocabulary, matched by fingerprint."""
    names = [vocabulary.name_of(t.fingerprint) for t in tokenizers]
    markers = [(vocabulary.begin(n), vocabulary.end(n)) for n in names]
    modalities = [vocabulary.modalities.index(vocabulary.info(n).modality) for n in names]
    return Kinds(
        np.array([vocabulary.start(n) for n in names], np.int64),
        np.array([-1 if b is None else b for b, _ in markers], np.int64),
        np.array([-1 if e is None else e for _, e in markers], np.int64),
        np.array(modalities, np.uint8),
    )


def empty_rows(rows: int, seq_len: int, *, masks: bool, patches: bool) -> Filled:
    """Memory for `gather`: every element of its rows is written."""
    tokens = torch.empty(rows, seq_len, dtype=torch.int64)
    if not masks:
        return Filled(tokens=tokens)
    return Filled(
        tokens=tokens,
        modality=torch.empty(rows, seq_len, dtype=torch.uint8),
        document=torch.empty(rows, seq_len, dtype=torch.int32),
        position=torch.empty(rows, seq_len, dtype=torch.int32),
        loss_mask=torch.empty(rows, seq_len, dtype=torch.bool),
        patch_starts=torch.empty(rows, seq_len, dtype=torch.bool) if patches else None,
    )


def gather(
    window: Window,
    pieces: Pieces,
    kinds: Kinds,
    out: Filled,
    rows: Sequence[int],
    to: Sequence[int],
) -> bool:
    """Fill rows `to` of `out` with rows `rows`; whether any has patch starts.

    Raises ShardError if a block that is read for the first time is damaged.
    """
    while True:
        closed, patched = fill_rows(window.table, pieces, kinds, out, rows, to)
        if not closed:
            return patched
        for block in closed:
            window.open(block)
