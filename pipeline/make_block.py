"""Documents to a block: each by itself as encoders leave it, or many of one tokenizer in a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.pipeline.block import Block, EncodedDocument
from plait.pipeline.index import cumulative
from plait.pipeline.spans import DOCUMENT, LENGTH, MODALITY, TOKENIZER, WIDTH
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Documents of one span each, all of one tokenizer, without metadata."""

    ids: np.ndarray
    """Local ids of all documents, back to back."""
    lengths: np.ndarray
    """Tokens of each document [d]."""
    keys: Sequence[str]
    tokenizer: int = 0

    def documents(self) -> list[EncodedDocument]:
        """The same documents, each by itself."""
        pieces = np.split(self.ids, cumulative(self.lengths)[1:-1])
        return [
            EncodedDocument(key=key, metadata={}, spans=[(self.tokenizer, Encoded(ids=ids))])
            for key, ids in zip(self.keys, pieces, strict=True)
        ]


def make_block(
    documents: Sequence[EncodedDocument],
    *,
    source: str,
    tokenizers: Sequence[str],
    modalities: Sequence[str],
) -> Block:
    """Documents to arrays; tokenizer i has modality `modalities[i]`."""
    pairs = [pair for document in documents for pair in document.spans]
    encoded = [e for _, e in pairs]
    spans = np.empty((len(pairs), 5), np.int32)
    counts = [len(document.spans) for document in documents]
    spans[:, DOCUMENT] = np.repeat(np.arange(len(documents)), counts)
    spans[:, TOKENIZER] = [t for t, _ in pairs]
    spans[:, MODALITY] = spans[:, TOKENIZER]
    spans[:, LENGTH] = [len(e.ids) for e in encoded]
    spans[:, WIDTH] = [e.width for e in encoded]
    patched, patch_starts = _optional(pairs, [e.patch_starts for e in encoded], tokenizers)
    timed, durations = _optional(pairs, [e.durations for e in encoded], tokenizers)
    continuous, latents = _optional(pairs, [e.latents for e in encoded], tokenizers)
    return Block(
        ids=narrow(np.concatenate([e.ids for e in encoded])),
        spans=spans,
        keys=tuple([d.key for d in documents]),
        metadata=tuple([d.metadata for d in documents]),
        source=source,
        tokenizers=tuple(tokenizers),
        modalities=tuple(modalities),
        patch_starts=None if patch_starts is None else patch_starts.astype(bool),
        durations=None if durations is None else durations.astype(np.uint8),
        patched=patched,
        timed=timed,
        latents=None if latents is None else _half(latents),
        continuous=continuous,
    )


def block_of_runs(
    runs: Sequence[Run], *, source: str, tokenizers: Sequence[str], modalities: Sequence[str]
) -> Block:
    """Runs to arrays; the same block as `make_block` of their documents."""
    keys = tuple([key for run in runs for key in run.keys])
    spans = np.empty((len(keys), 5), np.int32)
    spans[:, DOCUMENT] = np.arange(len(keys))
    spans[:, TOKENIZER] = np.repeat([r.tokenizer for r in runs], [len(r.lengths) for r in runs])
    spans[:, MODALITY] = spans[:, TOKENIZER]
    spans[:, LENGTH] = np.concatenate([r.lengths for r in runs])
    spans[:, WIDTH] = 1
    return Block(
        ids=narrow(np.concatenate([r.ids for r in runs])),
        spans=spans,
        keys=keys,
        metadata=({},) * len(keys),
        source=source,
        tokenizers=tuple(tokenizers),
        modalities=tuple(modalities),
    )


def narrow(ids: np.ndarray) -> np.ndarray:
    """Ids in the smaller of uint16 and uint32 that holds them."""
    top = int(ids.max()) if ids.size else 0
    low = int(ids.min()) if ids.size and ids.dtype.kind != "u" else 0
    if low < 0 or top >= 1 << 32:
        raise ConfigError("a tokenizer gave an id that is negative or does not fit in 32 bits")
    return ids.astype(np.uint16 if top < 1 << 16 else np.uint32, copy=False)


def _optional(
    pairs: Sequence[tuple[int, Encoded]],
    given: Sequence[np.ndarray | None],
    tokenizers: Sequence[str],
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """An optional array of the tokenizers that give it; each gives it always or never."""
    if not [array for array in given if array is not None]:
        return (), None
    having = {t for (t, _), array in zip(pairs, given, strict=True) if array is not None}
    rows = [(array, e) for (t, e), array in zip(pairs, given, strict=True) if t in having]
    arrays = [array for array, e in rows if array is not None and len(array) == len(e.ids)]
    if len(arrays) != len(rows):
        raise ConfigError("a tokenizer gave values that are missing or not one a token")
    if len({array.shape[1:] for array in arrays}) > 1:
        raise ConfigError("tokenizers of one stream gave latents of different widths")
    return tuple(tokenizers[t] for t in sorted(having)), np.concatenate(arrays)


def _half(latents: np.ndarray) -> np.ndarray:
    """Float16; ConfigError for what it cannot hold."""
    with np.errstate(over="ignore"):
        halves = latents.astype(np.float16)
    if halves.ndim != 2 or not np.isfinite(halves).all():
        raise ConfigError(
            f"a tokenizer gave latents {latents.shape} with values that float16 cannot hold; "
            "they should be [n, D] of some unit's size"
        )
    return halves
