"""Rows: packed sequences of a stream, or of several, where row i depends on i alone.

Order, packing and mixture follow from (index, seed, seq_len, packing, weights, split), so nothing
is replayed to resume and the number of ranks or workers changes nothing. Rows go on for ever: i may
pass the end of an epoch, and every epoch has its own order.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import torch
import xxhash

from plait.kernels.fill_rows import Filled
from plait.pipeline.batch import Batch
from plait.pipeline.gather import empty_rows, gather, kinds_of
from plait.pipeline.learned import ALL, Learned
from plait.pipeline.plan import Packing, StreamPlan
from plait.pipeline.row import Row
from plait.pipeline.schedule import Schedule, Stretches, Weights, check_stretches
from plait.pipeline.split import Split
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary
from plait.pipeline.weights import by_modality, by_temperature
from plait.tokenizers.errors import ConfigError

Exhausted = Literal["repeat", "stop", "error"]
Group = tuple[tuple[int, int, int], Sequence[int], Sequence[int]]
"""(stream, window, epoch), rows of the window, and where they go."""


class Rows:
    """Packed rows of `seq_len` tokens, map-style.

    `packing` is `best_fit` (documents whole where they fit, pictures always) or `concat` (cut at
    row ends, nothing wasted). In `best_fit`, documents of the modalities in `cut` are cut where
    that fills rows, the others only if they are longer than a row.

    `weights` are shares of rows, one a stream, or a list of (first row, shares) over the run, where
    step s begins at row s * batch_size (weights.py has `ramp`); without them each stream comes as
    often as it has rows to the power 1 / `temperature`, or so that each modality has its share of
    all tokens (`modality_shares`). `exhausted` says what happens before a stream's first row comes
    again: it repeats, rows end, or a ConfigError.

    `split` chooses documents, see split.py; `validation` is the share held out. `learned` says
    which spans are targets, and changes nothing of the order. Raises ConfigError.
    """

    def __init__(
        self,
        streams: Stream | Sequence[Stream],
        *,
        seq_len: int,
        packing: Packing = "best_fit",
        cut: Collection[str] = ("text",),
        seed: int = 0,
        weights: Sequence[float] | Stretches | None = None,
        temperature: float = 1.0,
        modality_shares: Mapping[str, float] | None = None,
        exhausted: Exhausted = "repeat",
        split: Split = "all",
        validation: float = 0.0,
        vocabulary: Vocabulary | None = None,
        learned: Learned = ALL,
    ) -> None:
        self._options = {k: v for k, v in locals().items() if k != "self"}
        self.streams = (streams,) if isinstance(streams, Stream) else tuple(streams)
        self.seq_len = seq_len
        self.exhausted: Exhausted = exhausted
        _check(self.streams, seq_len, packing, cut, exhausted)
        self.vocabulary = vocabulary or Vocabulary.merge([s.tokenizers for s in self.streams])
        _check_vocabulary(self.vocabulary, self.streams)
        self._modalities = self.vocabulary.modalities
        self._learned = learned
        learned.check(self._modalities, self.streams)
        self._kinds = [kinds_of(s.tokenizers, self.vocabulary) for s in self.streams]
        self._plans = [
            StreamPlan(
                stream,
                seq_len=seq_len,
                packing=packing,
                cut=cut,
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
        self._patched = any(plan.patched for plan in self._plans)
        self._order_facts = {
            "streams": [s.fingerprint for s in self.streams],
            "seq_len": seq_len,
            "packing": packing,
            "cut": sorted(cut),
            "seed": seed,
            "split": split,
            "validation": validation,
            "vocabulary": xxhash.xxh3_64_hexdigest(self.vocabulary.to_json().encode()),
            "exhausted": exhausted,
        }
        self._schedule = self._resolved(weights, temperature, modality_shares)
        self._set_end()

    def __len__(self) -> int:
        """Rows in which each stream passes about once; for one stream, exactly its epoch."""
        return self.end or sum(plan.rows for plan in self._plans)

    def __getitem__(self, i: int) -> Row:
        return self.__getitems__([i])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Row]:
        """Several rows at once: what torch's DataLoader asks for."""
        made = self._fill(numbers)
        names = ("tokens", "modality", "document", "position", "loss_mask")
        columns = [getattr(made, name).numpy() for name in names]
        starts = made.patch_starts
        names_by_line = "\n".join(self._modalities)
        patches = [None] * len(numbers) if starts is None else starts.numpy()
        return [
            Row(
                **dict(zip(names, arrays, strict=True)),
                patch_starts=patch,
                modality_names=names_by_line,
            )
            for *arrays, patch in zip(*columns, patches, strict=True)
        ]

    def batch(self, numbers: Sequence[int], step: int = -1) -> Batch:
        """Several rows as torch tensors."""
        made = self._fill(numbers)
        assert made.modality is not None and made.document is not None
        assert made.position is not None and made.loss_mask is not None
        return Batch(
            tokens_BT=made.tokens,
            modality_BT=made.modality,
            document_BT=made.document,
            position_BT=made.position,
            loss_mask_BT=made.loss_mask,
            patch_start_BT=made.patch_starts,
            modalities=self._modalities,
            step=step,
        )

    def tokens(self, numbers: Sequence[int]) -> torch.Tensor:
        """The tokens of several rows alone, int64 [B, T]."""
        return self._fill(numbers, masks=False).tokens

    def documents_of(self, i: int) -> list[tuple[int, int]]:
        """(stream, document number) of each document of row i, in order."""
        stream, row = self._locate(i)
        plans = self._plans[stream]
        epoch, number, local = plans.locate(row)
        window, pieces = plans.plan(number, epoch)
        found = pieces.documents[pieces.rows[local] : pieces.rows[local + 1]]
        numbers = window.documents[found[found >= 0]]
        return [(stream, number) for number in numbers.tolist()]

    def rows_of(self, stream: int, document: int, epoch: int = 0) -> list[int]:
        """The rows that hold a document in an epoch of its stream; none if it is not in the split.

        Raises IndexError if there is no such document.
        """
        if not 0 <= document < self.streams[stream].documents:
            raise IndexError(f"document {document} of {self.streams[stream].path}")
        rows = self._plans[stream].rows_of(document, epoch)
        if self._schedule is None:
            return rows
        found = (self._schedule.row_of(stream, row) for row in rows)
        return [row for row in found if row is not None]

    def epochs(self, row: int) -> list[float]:
        """How often each stream has been through before row `row`."""
        taken = [row] if self._schedule is None else self._schedule.taken(row)
        return [n / plan.rows for n, plan in zip(taken, self._plans, strict=True)]

    @property
    def names(self) -> tuple[str, ...]:
        """A short name of each stream: its folder's, with its place where two would be one."""
        names = [stream.url.rstrip("/").rpartition("/")[2] for stream in self.streams]
        return tuple(
            f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)
        )

    @property
    def epoch_tokens(self) -> tuple[int, ...]:
        """Tokens that an epoch of each stream has in this split, markers among them."""
        return tuple(plan.tokens for plan in self._plans)

    @property
    def epoch_rows(self) -> tuple[int, ...]:
        """Rows that an epoch of each stream has in this split."""
        return tuple(plan.rows for plan in self._plans)

    @property
    def weights(self) -> Sequence[float]:
        """Shares of the first rows, one a stream; empty if they follow the streams' sizes."""
        return (() if self._schedule is None else self._schedule.stretches[0][1]) or ()

    def continue_from(self, fingerprint: str, row: int) -> None:
        """Keep the weights that a fingerprint names for the rows before `row`.

        From there on these rows' own weights hold. All else in the fingerprint is left to others.
        """
        if self._schedule is not None:
            past = json.loads(fingerprint)["weights"]
            stretches = past if past and isinstance(past[0], list) else [(0, past)]
            self._schedule = self._schedule.after(stretches, row)
            self._set_end()

    @property
    def fingerprint(self) -> str:
        """All that the order depends on, as JSON."""
        weights: object = None
        if self._schedule is not None:
            stretches = self._schedule.stretches
            weights = stretches[0][1] if len(stretches) == 1 else stretches
        return json.dumps({**self._order_facts, "weights": weights})

    def __getstate__(self) -> dict:
        stretches = None if self._schedule is None else self._schedule.stretches
        return {**self._options, "weights": stretches}

    def __setstate__(self, state: dict) -> None:
        free = {"temperature": 1.0, "modality_shares": None}
        self.__init__(state.pop("streams"), **{**state, **free})

    def _set_end(self) -> None:
        self.end: int | None = None
        """The first row that does not come; None without end."""
        if self.exhausted != "repeat":
            rows, schedule = [plan.rows for plan in self._plans], self._schedule
            ends = [n if schedule is None else schedule.row_of(s, n) for s, n in enumerate(rows)]
            self.end = min((end for end in ends if end is not None), default=None)

    def _resolved(
        self,
        weights: Sequence[float] | Stretches | None,
        temperature: float,
        modality_shares: Mapping[str, float] | None,
    ) -> Schedule | None:
        rows = [plan.rows for plan in self._plans]
        if (weights is not None) + (temperature != 1) + (modality_shares is not None) > 1:
            raise ConfigError("weights, temperature and modality_shares: only one can be given")
        stretches: Stretches
        if weights is not None and len(weights) and isinstance(weights[0], Sequence):
            stretches = weights  # type: ignore[assignment]
        else:
            constant: Weights = weights  # type: ignore[assignment]
            if temperature != 1:
                constant = by_temperature(rows, temperature)
            if modality_shares is not None:
                constant = by_modality(self.streams, rows, modality_shares)
            stretches = [(0, constant)]
        check_stretches(stretches, len(rows))
        return Schedule(stretches, rows) if len(rows) > 1 else None

    def _fill(self, numbers: Sequence[int], *, masks: bool = True) -> Filled:
        out = empty_rows(len(numbers), self.seq_len, masks=masks, patches=self._patched)
        patched = False
        for (stream, window, epoch), rows, to in self._groups(numbers):
            plan = self._plans[stream].plan(window, epoch)
            patched |= gather(*plan, self._kinds[stream], out, rows, to)
            if self._learned and out.loss_mask is not None:
                self._learned.unmask(self.streams[stream], *plan, rows, to, out.loss_mask)
        if not patched:
            out.patch_starts = None
        return out

    def _groups(self, numbers: Sequence[int]) -> Iterable[Group]:
        """Rows by the window and epoch that they come from: which there, and which of `numbers`."""
        run = isinstance(numbers, range) and numbers.step == 1 and numbers and numbers.start >= 0
        if run and self._schedule is None and (self.end is None or numbers[-1] < self.end):
            epoch, window, row = self._plans[0].locate(numbers[0])
            if row + len(numbers) <= self._plans[0].window_rows[window]:
                return [((0, window, epoch), range(row, row + len(numbers)), range(len(numbers)))]
        found: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
        for to, number in enumerate(numbers):
            stream, row = self._locate(number)
            epoch, window, local = self._plans[stream].locate(row)
            rows, places = found.setdefault((stream, window, epoch), ([], []))
            rows.append(local)
            places.append(to)
        return [(key, *lists) for key, lists in found.items()]

    def _locate(self, i: int) -> tuple[int, int]:
        if i < 0:
            raise IndexError(f"row {i}: rows are numbered from 0")
        if self.end is not None and i >= self.end:
            if self.exhausted == "stop":
                raise IndexError(f"row {i}: rows end at {self.end}, where a stream is exhausted")
            names = [
                str(s.path) for s, n in zip(self.streams, self.epochs(i), strict=True) if n >= 1
            ]
            raise ConfigError(
                f"row {i}: {', '.join(names)} is exhausted at row {self.end}; train for fewer "
                "steps, give it less weight, or let exhausted be 'repeat'"
            )
        return (0, i) if self._schedule is None else self._schedule.locate(i)


def _check(
    streams: Sequence[Stream], seq_len: int, packing: str, cut: Collection[str], exhausted: str
) -> None:
    if not streams:
        raise ConfigError("no stream")
    for stream in streams:
        if not stream.documents:
            raise ConfigError(f"{stream.path}: the stream holds no documents")
        for info in stream.tokenizers:
            if info.modality in cut and not info.splittable:
                raise ConfigError(f"cut {list(cut)}: a span of {info.modality} is always whole")
    if isinstance(cut, str):
        raise ConfigError(f"cut {cut!r}: should be a list of modalities")
    if packing not in ("best_fit", "concat"):
        raise ConfigError(f"packing {packing!r}: should be best_fit or concat")
    if exhausted not in ("repeat", "stop", "error"):
        raise ConfigError(f"exhausted {exhausted!r}: should be repeat, stop or error")
    if seq_len < 4:
        raise ConfigError(f"seq_len {seq_len}: should be at least 4")


def _check_vocabulary(vocabulary: Vocabulary, streams: Sequence[Stream]) -> None:
    known = {info.fingerprint for info in vocabulary.tokenizers}
    for stream in streams:
        for info in stream.tokenizers:
            if info.fingerprint not in known:
                raise ConfigError(
                    f"{stream.path}: its {info.name} tokenizer {info.fingerprint} is not in the "
                    f"vocabulary, which has {sorted(known)}: the stream was made by another one"
                )
