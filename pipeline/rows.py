"""Rows: packed sequences of a stream, or of several, where row i depends on i alone.

Order, packing and mixture follow from (index, seed, seq_len, packing, weights, split), so nothing
is replayed to resume and the number of ranks or workers changes nothing. Rows go on for ever: i may
pass the end of an epoch, and every epoch has its own order.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from plait.pipeline.batch import Batch
from plait.pipeline.gather import GlobalIds, RowArrays, empty_rows, finish, gather
from plait.pipeline.mixture import LONGEST_PERIOD, Mixture, shares
from plait.pipeline.plan import Packing, StreamPlan
from plait.pipeline.split import Split
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One packed sequence as numpy arrays [T]; the names are those of Batch."""

    tokens: np.ndarray
    modality: np.ndarray
    document: np.ndarray
    position: np.ndarray
    loss_mask: np.ndarray
    patch_starts: np.ndarray | None


class Rows:
    """Packed rows of `seq_len` tokens.

    `packing` is `best_fit` (documents whole where they fit, pictures always) or `concat` (cut at
    row ends, nothing wasted). `weights` are shares of rows, one a stream; without them each stream
    comes as often as it has rows. `split` chooses documents, see split.py;
    `validation` is the share held out. Raises ConfigError.
    """

    def __init__(
        self,
        streams: Stream | Sequence[Stream],
        *,
        seq_len: int,
        packing: Packing = "best_fit",
        seed: int = 0,
        weights: Sequence[float] | None = None,
        split: Split = "all",
        validation: float = 0.0,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.streams = (streams,) if isinstance(streams, Stream) else tuple(streams)
        self.seq_len = seq_len
        _check(self.streams, seq_len, packing, weights)
        self.vocabulary = vocabulary or Vocabulary.merge([s.tokenizers for s in self.streams])
        _check_vocabulary(self.vocabulary, self.streams)
        self._ids = [GlobalIds.of(s.tokenizers, self.vocabulary) for s in self.streams]
        self._plans = [
            StreamPlan(
                stream,
                seq_len=seq_len,
                packing=packing,
                seed=seed,
                number=number,
                split=split,
                validation=validation,
            )
            for number, stream in enumerate(self.streams)
        ]
        for plan in self._plans:
            if not plan.rows:
                raise ConfigError(f"{plan.stream.path}: no document in split {split!r}")
        self._mixture = Mixture(_counts(self._plans, weights)) if len(self._plans) > 1 else None
        self.fingerprint = json.dumps(
            {
                "streams": [s.fingerprint for s in self.streams],
                "seq_len": seq_len,
                "packing": packing,
                "seed": seed,
                "weights": None if weights is None else list(weights),
                "split": split,
                "validation": validation,
                "vocabulary": xxhash.xxh3_64_hexdigest(self.vocabulary.to_json().encode()),
            }
        )

    def __len__(self) -> int:
        """Rows in which each stream passes about once; for one stream, exactly its epoch."""
        if self._mixture is None:
            return self._plans[0].rows
        return sum(plan.rows for plan in self._plans)

    def __getitem__(self, i: int) -> Row:
        arrays = self.arrays([i])
        starts = arrays.patch_starts
        return Row(
            tokens=arrays.tokens[0],
            modality=arrays.modality[0],
            document=arrays.document[0],
            position=arrays.position[0],
            loss_mask=arrays.loss_mask[0],
            patch_starts=None if starts is None else starts[0],
        )

    def arrays(self, numbers: Sequence[int]) -> RowArrays:
        """Several rows at once as numpy arrays [B, T]."""
        out = empty_rows(len(numbers), self.seq_len)
        groups: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for to, number in enumerate(numbers):
            stream, row = self._locate(number)
            epoch, window, local = self._plans[stream].locate(row)
            groups.setdefault((stream, window, epoch), []).append((local, to))
        for (stream, window, epoch), pairs in groups.items():
            plans = self._plans[stream]
            rows, to = np.array(pairs).T
            plan = plans.plan(window, epoch)
            gather(plans.window(window), plan, rows, self._ids[stream], out, to)
        finish(out, self.vocabulary)
        return out

    def batch(self, numbers: Sequence[int], step: int = -1) -> Batch:
        """Several rows as torch tensors."""
        arrays = self.arrays(numbers)
        starts = arrays.patch_starts
        return Batch(
            tokens_BT=torch.from_numpy(arrays.tokens),
            modality_BT=torch.from_numpy(arrays.modality),
            document_BT=torch.from_numpy(arrays.document),
            position_BT=torch.from_numpy(arrays.position),
            loss_mask_BT=torch.from_numpy(arrays.loss_mask),
            patch_start_BT=None if starts is None else torch.from_numpy(starts),
            modalities=self.vocabulary.modalities,
            step=step,
        )

    def documents_of(self, i: int) -> list[tuple[int, int]]:
        """(stream, document number) of each document of row i, in order."""
        stream, row = self._locate(i)
        plans = self._plans[stream]
        epoch, window, local = plans.locate(row)
        plan = plans.plan(window, epoch)
        found = plan.documents[plan.rows[local] : plan.rows[local + 1]]
        numbers = plans.window(window).documents[found[found >= 0]]
        return [(stream, number) for number in numbers.tolist()]

    def _locate(self, i: int) -> tuple[int, int]:
        if i < 0:
            raise IndexError(f"row {i}: rows are numbered from 0")
        return (0, i) if self._mixture is None else self._mixture.locate(i)


def _counts(plans: Sequence[StreamPlan], weights: Sequence[float] | None) -> list[int]:
    """Rows of each stream in a period."""
    if weights is not None:
        return shares(weights)
    rows = [plan.rows for plan in plans]
    return rows if sum(rows) <= 4 * LONGEST_PERIOD else shares(rows)


def _check(
    streams: Sequence[Stream], seq_len: int, packing: str, weights: Sequence[float] | None
) -> None:
    if not streams:
        raise ConfigError("no stream")
    for stream in streams:
        if not stream.documents:
            raise ConfigError(f"{stream.path}: the stream holds no documents")
    if packing not in ("best_fit", "concat"):
        raise ConfigError(f"packing {packing!r}: should be best_fit or concat")
    if seq_len < 4:
        raise ConfigError(f"seq_len {seq_len}: should be at least 4")
    if weights is not None and len(weights) != len(streams):
        raise ConfigError(f"{len(weights)} weights for {len(streams)} streams")


def _check_vocabulary(vocabulary: Vocabulary, streams: Sequence[Stream]) -> None:
    known = {info.fingerprint for info in vocabulary.tokenizers}
    for stream in streams:
        for info in stream.tokenizers:
            if info.fingerprint not in known:
                raise ConfigError(
                    f"{stream.path}: its {info.name} tokenizer {info.fingerprint} is not in the "
                    f"vocabulary, which has {sorted(known)}: the stream was made by another one"
                )
