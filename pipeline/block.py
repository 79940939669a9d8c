"""One block: many documents as a few arrays, the unit in which a shard is written and checked.

In the tar a block is one WebDataset sample, `TASK-BLOCK.{tokens,spans,...}.npy` and `.meta.json`:
a tar member costs at least 1 KiB, so one member a document would double a corpus of ordinary text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plait.pipeline.source import Json
from plait.pipeline.tar import npy_bytes, npy_view
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ConfigError, ShardError

BLOCK_TOKENS = 1 << 19
BLOCK_DOCUMENTS = 4096
DOCUMENT, MODALITY, TOKENIZER, LENGTH, WIDTH = range(5)
"""Columns of `spans`."""


@dataclass(frozen=True, kw_only=True)
class EncodedDocument:
    """A document as its tokenizers left it: (number of the tokenizer, tokens) of each span."""

    key: str
    metadata: Mapping[str, Json]
    spans: Sequence[tuple[int, Encoded]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Many documents back to back."""

    ids: np.ndarray
    """Local ids [n], uint16 or uint32."""
    spans: np.ndarray
    """Int32 [s, 5]: document (from 0 in each block), modality, tokenizer, length, width."""
    keys: tuple[str, ...]
    metadata: tuple[Mapping[str, Json], ...]
    source: str
    tokenizers: tuple[str, ...]
    """Names; column `tokenizer` counts in them."""
    modalities: tuple[str, ...]
    """Names; column `modality` counts in them."""
    patch_starts: np.ndarray | None = None
    """Bool, over the tokens of spans of the tokenizers named in `patched`, back to back."""
    durations: np.ndarray | None = None
    """Uint8, over the tokens of spans of the tokenizers named in `timed`, back to back."""
    patched: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()

    def subset(self, names: Sequence[str]) -> np.ndarray:
        """Int64 [s + 1]: where each span's values begin in an array over these tokenizers only."""
        chosen = np.array([name in names for name in self.tokenizers])[self.spans[:, TOKENIZER]]
        return np.concatenate([[0], np.cumsum(np.where(chosen, self.spans[:, LENGTH], 0))])


def make_block(
    documents: Sequence[EncodedDocument],
    *,
    source: str,
    tokenizers: Sequence[str],
    modalities: Sequence[str],
) -> Block:
    """Documents to arrays; tokenizer i has modality `modalities[i]`."""
    flat = [(d, t, e) for d, document in enumerate(documents) for t, e in document.spans]
    spans = np.array([(d, t, t, len(e.ids), e.width) for d, t, e in flat], np.int32).reshape(-1, 5)
    patched, patch_starts = _optional(flat, "patch_starts", tokenizers)
    timed, durations = _optional(flat, "durations", tokenizers)
    return Block(
        ids=_joined_ids([e.ids for _, _, e in flat]),
        spans=spans,
        keys=tuple(d.key for d in documents),
        metadata=tuple(d.metadata for d in documents),
        source=source,
        tokenizers=tuple(tokenizers),
        modalities=tuple(modalities),
        patch_starts=None if patch_starts is None else patch_starts.astype(bool),
        durations=None if durations is None else durations.astype(np.uint8),
        patched=patched,
        timed=timed,
    )


def encode_block(block: Block) -> dict[str, bytes]:
    """The members of a block by suffix."""
    members = {"tokens.npy": npy_bytes(block.ids), "spans.npy": npy_bytes(block.spans)}
    if block.patch_starts is not None:
        members["patches.npy"] = npy_bytes(np.packbits(block.patch_starts))
    if block.durations is not None:
        members["durations.npy"] = npy_bytes(block.durations)
    metadata = [dict(m) for m in block.metadata] if any(block.metadata) else None
    meta = {
        "source": block.source,
        "tokenizers": block.tokenizers,
        "modalities": block.modalities,
        "patches": block.patched,
        "durations": block.timed,
        "keys": block.keys,
        "metadata": metadata,
    }
    members["meta.json"] = json_bytes(meta)
    return members


def decode_block(members: Mapping[str, memoryview], where: str) -> Block:
    """A block from its members; ShardError names the member that is wrong."""
    for suffix in ("tokens.npy", "spans.npy", "meta.json"):
        if suffix not in members:
            raise ShardError(f"{where}: member {suffix} is missing")
    ids = npy_view(members["tokens.npy"], f"{where}.tokens.npy")
    spans = npy_view(members["spans.npy"], f"{where}.spans.npy")
    meta = read_meta(members["meta.json"], f"{where}.meta.json")
    n = len(meta.keys)
    if ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
        raise ShardError(
            f"{where}.tokens.npy: {ids.ndim} axes of {ids.dtype}, should be uint16 [n]"
        )
    if spans.ndim != 2 or spans.shape[1] != 5 or spans.dtype != np.int32:
        raise ShardError(
            f"{where}.spans.npy: {spans.shape} of {spans.dtype}, should be int32 [n, 5]"
        )
    _check_spans(ids, spans, n, len(meta.tokenizers), where)
    block = Block(
        ids=ids,
        spans=spans,
        keys=meta.keys,
        metadata=meta.metadata,
        source=meta.source,
        tokenizers=meta.tokenizers,
        modalities=meta.modalities,
        patched=meta.patched,
        timed=meta.timed,
    )
    return _with_optional(block, members, where)


@dataclass(frozen=True, kw_only=True)
class BlockMeta:
    """What `meta.json` says."""

    source: str
    tokenizers: tuple[str, ...]
    modalities: tuple[str, ...]
    patched: tuple[str, ...]
    timed: tuple[str, ...]
    keys: tuple[str, ...]
    metadata: tuple[Mapping[str, Json], ...]


def read_meta(buffer: memoryview, where: str) -> BlockMeta:
    """Parse `meta.json`; ShardError if a field is missing or the counts differ."""
    try:
        meta = json.loads(bytes(buffer))
        keys = tuple(str(k) for k in meta["keys"])
        names = {
            k: tuple(str(n) for n in meta[k])
            for k in ("tokenizers", "modalities", "patches", "durations")
        }
        metadata = tuple(meta["metadata"] or ({},) * len(keys))
        source = str(meta["source"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{where}: damaged: {type(error).__name__} {error}") from None
    if len(metadata) != len(keys) or not all(isinstance(m, dict) for m in metadata):
        raise ShardError(f"{where}: {len(keys)} keys but {len(metadata)} entries of metadata")
    if len(names["tokenizers"]) != len(names["modalities"]):
        raise ShardError(f"{where}: each tokenizer should have a modality")
    return BlockMeta(
        source=source,
        tokenizers=names["tokenizers"],
        modalities=names["modalities"],
        patched=names["patches"],
        timed=names["durations"],
        keys=keys,
        metadata=metadata,
    )


def json_bytes(value: object) -> bytes:
    """Compact JSON, UTF-8; with escapes only where a string is not valid Unicode."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _joined_ids(arrays: Sequence[np.ndarray]) -> np.ndarray:
    ids = np.concatenate(arrays) if arrays else np.zeros(0, np.uint16)
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < 1 << 32):
        raise ConfigError("a tokenizer gave an id that is negative or does not fit in 32 bits")
    narrow = not ids.size or int(ids.max()) < 1 << 16
    return ids.astype(np.uint16 if narrow else np.uint32)


def _optional(
    flat: Sequence[tuple[int, int, Encoded]], name: str, tokenizers: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """An optional array of the tokenizers that give it; each gives it always or never."""
    having = {t for _, t, e in flat if getattr(e, name) is not None}
    if not having:
        return (), None
    arrays = [getattr(e, name) for _, t, e in flat if t in having]
    lengths = [len(e.ids) for _, t, e in flat if t in having]
    if any(a is None or len(a) != n for a, n in zip(arrays, lengths, strict=True)):
        raise ConfigError(f"a tokenizer gave {name} that are missing or not one a token")
    return tuple(tokenizers[t] for t in sorted(having)), np.concatenate(arrays)


def _with_optional(block: Block, members: Mapping[str, memoryview], where: str) -> Block:
    patch_starts, durations = None, None
    if block.patched:
        n = int(block.subset(block.patched)[-1])
        packed = _required(members, "patches.npy", where)
        if packed.dtype != np.uint8 or len(packed) != -(-n // 8):
            raise ShardError(f"{where}.patches.npy: should be the bits of {n} tokens")
        patch_starts = np.unpackbits(packed, count=n).astype(bool)
    if block.timed:
        durations = _required(members, "durations.npy", where)
        if durations.dtype != np.uint8 or len(durations) != block.subset(block.timed)[-1]:
            raise ShardError(f"{where}.durations.npy: should be uint8, one a token")
    return Block(**{**vars(block), "patch_starts": patch_starts, "durations": durations})


def _required(members: Mapping[str, memoryview], suffix: str, where: str) -> np.ndarray:
    if suffix not in members:
        raise ShardError(f"{where}: member {suffix} is missing")
    return npy_view(members[suffix], f"{where}.{suffix}")


def _check_spans(
    ids: np.ndarray, spans: np.ndarray, documents: int, tokenizers: int, where: str
) -> None:
    """Each document has spans, in order; lengths add up to the tokens."""
    lengths = spans[:, LENGTH].astype(np.int64)
    if int(lengths.sum()) != len(ids) or (lengths < 1).any() or (spans[:, WIDTH] < 1).any():
        raise ShardError(f"{where}.spans.npy: lengths do not add up to its {len(ids)} tokens")
    number = spans[:, DOCUMENT]
    steps = np.diff(number, prepend=-1, append=documents)
    if ((steps < 0) | (steps > 1)).any() or (len(spans) and steps[0] != 1):
        raise ShardError(f"{where}.spans.npy: its documents are not 0 .. {documents - 1} in order")
    kinds = spans[:, [MODALITY, TOKENIZER]]
    if kinds.size and (kinds.min() < 0 or kinds.max() >= tokenizers):
        raise ShardError(f"{where}.spans.npy: a span names none of its {tokenizers} tokenizers")
