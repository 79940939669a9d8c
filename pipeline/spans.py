"""The span table of a block: whole in memory, and in a shard without the columns that say nothing.

In `spans.npy` a column whose values are all the same is left out and stands in `constants` of
`meta.json`; `document` is left out where row i is document i. What is kept is named in `columns`.
So a caption costs a byte or two instead of twenty.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from plait.pipeline.tar import smallest
from plait.tokenizers.errors import ShardError

COLUMNS = ("document", "modality", "tokenizer", "length", "width")
DOCUMENT, MODALITY, TOKENIZER, LENGTH, WIDTH = range(5)
"""Columns of a whole table, int32 [s, 5]; documents are counted from 0 in each block."""
TOP = (1 << 31) - 1


def pack_spans(spans: np.ndarray) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """The columns that are kept, in the smallest unsigned integers; their names; the constants."""
    kept = [DOCUMENT] if (spans[:, DOCUMENT] != np.arange(len(spans))).any() else []
    constants = {}
    for column in (MODALITY, TOKENIZER, LENGTH, WIDTH):
        values = spans[:, column]
        if column == LENGTH or (values != values[0]).any():
            kept.append(column)
        else:
            constants[COLUMNS[column]] = int(values[0])
    return smallest(spans[:, kept]), [COLUMNS[c] for c in kept], constants


def unpack_spans(table: np.ndarray, fields: Mapping[str, Any], where: str) -> np.ndarray:
    """The whole table; `fields` is what `meta.json` holds. ShardError if they do not agree."""
    columns, constants = fields.get("columns"), fields.get("constants")
    if not isinstance(columns, list) or not isinstance(constants, dict) or "length" not in columns:
        raise ShardError(f"{where}: its columns are not named in meta.json")
    if table.ndim != 2 or table.shape[1] != len(columns) or table.dtype.kind != "u":
        raise ShardError(
            f"{where}: {table.shape} of {table.dtype}, should be unsigned [s, {len(columns)}]"
        )
    values = {"document": np.arange(len(table)), **constants}
    values |= {str(name): table[:, i] for i, name in enumerate(columns)}
    spans = np.empty((len(table), len(COLUMNS)), np.int32)
    for column, name in enumerate(COLUMNS):
        spans[:, column] = _counts(values.get(name), f"{where}: column {name}")
    return spans


def _counts(value: object, where: str) -> np.ndarray | int:
    if isinstance(value, np.ndarray) and (value <= TOP).all():
        return value
    if type(value) is int and 0 <= value <= TOP:
        return value
    raise ShardError(f"{where} is missing or holds no counts")


def check_spans(spans: np.ndarray, tokens: int, where: str) -> int:
    """Each document has spans, in order, and lengths add up; returns how many documents."""
    lengths = spans[:, LENGTH].astype(np.int64)
    if int(lengths.sum()) != tokens or (lengths < 1).any() or (spans[:, WIDTH] < 1).any():
        raise ShardError(f"{where}: lengths do not add up to its {tokens} tokens")
    steps = np.diff(spans[:, DOCUMENT], prepend=-1)
    if ((steps < 0) | (steps > 1)).any() or (len(spans) and steps[0] != 1):
        raise ShardError(f"{where}: its documents are not numbered from 0 in order")
    return int(spans[-1, DOCUMENT]) + 1 if len(spans) else 0


def check_tokenizers(spans: np.ndarray, tokenizers: int, where: str) -> None:
    """Each span names one of so many tokenizers."""
    kinds = spans[:, [MODALITY, TOKENIZER]]
    if kinds.size and kinds.max() >= tokenizers:
        raise ShardError(f"{where}: a span names none of its {tokenizers} tokenizers")
