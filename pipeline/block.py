"""One block: many documents as a few arrays, the unit in which a shard is written and checked.

In the tar a block is one WebDataset sample, `TASK-BLOCK.{tokens,spans,...}.npy` and `.meta.json`:
a tar member costs at least 1 KiB, so one member a document would double a corpus of ordinary text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.pipeline.keys import compact, expand
from plait.pipeline.source import Json
from plait.pipeline.spans import (
    LENGTH,
    TOKENIZER,
    check_spans,
    check_tokenizers,
    pack_spans,
    unpack_spans,
)
from plait.pipeline.tar import npy_bytes, npy_view
from plait.tokenizers.base import Encoded
from plait.tokenizers.errors import ShardError

BLOCK_TOKENS = 1 << 19
BLOCK_DOCUMENTS = 4096


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
    """Int32 [s, 5]: document (from 0 in each block), modality, tokenizer, length, width.

    Whole here; in `spans.npy`, columns that say nothing are left out, see spans.py.
    """
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
    latents: np.ndarray | None = None
    """Float16 [m, D], over the tokens of spans of the tokenizers named in `continuous`."""
    continuous: tuple[str, ...] = ()

    def subset(self, names: Sequence[str]) -> np.ndarray:
        """Int64 [s + 1]: where each span's values begin in an array over these tokenizers only."""
        chosen = np.array([name in names for name in self.tokenizers])[self.spans[:, TOKENIZER]]
        return np.concatenate([[0], np.cumsum(np.where(chosen, self.spans[:, LENGTH], 0))])


def encode_block(block: Block) -> dict[str, bytes]:
    """The members of a block by suffix."""
    table, columns, constants = pack_spans(block.spans)
    members = {"tokens.npy": npy_bytes(block.ids), "spans.npy": npy_bytes(table)}
    if block.patch_starts is not None:
        members["patches.npy"] = npy_bytes(np.packbits(block.patch_starts))
    if block.durations is not None:
        members["durations.npy"] = npy_bytes(block.durations)
    if block.latents is not None:
        members["latents.npy"] = npy_bytes(block.latents)
    metadata = None
    if any(block.metadata):
        metadata = [m if isinstance(m, dict) else dict(m) for m in block.metadata]
    meta = {
        "source": block.source,
        "tokenizers": block.tokenizers,
        "modalities": block.modalities,
        "patches": block.patched,
        "durations": block.timed,
        **({"latents": block.continuous} if block.continuous else {}),
        "columns": columns,
        "constants": constants,
        "keys": compact(block.keys),
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
    if ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
        raise ShardError(
            f"{where}.tokens.npy: {ids.ndim} axes of {ids.dtype}, should be uint16 [n]"
        )
    fields = _read_fields(members["meta.json"], f"{where}.meta.json")
    table = npy_view(members["spans.npy"], f"{where}.spans.npy")
    spans = unpack_spans(table, fields, f"{where}.spans.npy")
    documents = check_spans(spans, len(ids), f"{where}.spans.npy")
    meta = _meta_of(fields, f"{where}.meta.json", documents)
    check_tokenizers(spans, len(meta.tokenizers), f"{where}.spans.npy")
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
        continuous=meta.continuous,
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
    continuous: tuple[str, ...]
    keys: tuple[str, ...]
    metadata: tuple[Mapping[str, Json], ...]


def read_meta(buffer: memoryview, where: str, documents: int) -> BlockMeta:
    """Parse the `meta.json` of a block of so many documents; ShardError if it is no such."""
    return _meta_of(_read_fields(buffer, where), where, documents)


def _read_fields(buffer: memoryview, where: str) -> dict[str, Json]:
    try:
        fields = json.loads(bytes(buffer))
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: damaged: {type(error).__name__} {error}") from None
    if not isinstance(fields, dict):
        raise ShardError(f"{where}: damaged: not an object")
    return fields


def _meta_of(fields: Mapping[str, Any], where: str, documents: int) -> BlockMeta:
    try:
        names = {
            k: tuple(str(n) for n in fields[k])
            for k in ("tokenizers", "modalities", "patches", "durations")
        }
        continuous = tuple(str(n) for n in fields.get("latents", ()))
        keys = expand(fields["keys"], documents)
        metadata = tuple(fields["metadata"] or ({},) * documents)
        source = str(fields["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{where}: damaged: {type(error).__name__} {error}") from None
    if len(metadata) != documents or not all(isinstance(m, dict) for m in metadata):
        raise ShardError(f"{where}: {documents} documents but {len(metadata)} entries of metadata")
    if len(names["tokenizers"]) != len(names["modalities"]):
        raise ShardError(f"{where}: each tokenizer should have a modality")
    return BlockMeta(
        source=source,
        tokenizers=names["tokenizers"],
        modalities=names["modalities"],
        patched=names["patches"],
        timed=names["durations"],
        continuous=continuous,
        keys=keys,
        metadata=metadata,
    )


def json_bytes(value: object) -> bytes:
    """Compact JSON, UTF-8; with escapes only where a string is not valid Unicode."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _with_optional(block: Block, members: Mapping[str, memoryview], where: str) -> Block:
    patch_starts = durations = latents = None
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
    if block.continuous:
        latents = _required(members, "latents.npy", where, ndim=2)
        if latents.dtype != np.float16 or len(latents) != block.subset(block.continuous)[-1]:
            raise ShardError(f"{where}.latents.npy: should be float16, a row a token")
    optional = {"patch_starts": patch_starts, "durations": durations, "latents": latents}
    return Block(**{**vars(block), **optional})


def _required(
    members: Mapping[str, memoryview], suffix: str, where: str, ndim: int = 1
) -> np.ndarray:
    if suffix not in members:
        raise ShardError(f"{where}: member {suffix} is missing")
    array = npy_view(members[suffix], f"{where}.{suffix}")
    if array.ndim != ndim:
        raise ShardError(f"{where}.{suffix}: {array.ndim} axes, should be {ndim}")
    return array
