"""Begin a run with weights of another: `[init] source = RUN`, whole or by name.

Rows of ids are matched by their tokenizer's fingerprint and their number in it, so the vocabulary
may be another one; stacked weights by the modality's name, so modalities may be more or fewer; and
a part that is shared there and untied here is copied for each modality. What has another shape is
an error that says how to leave it out. The report says of every tensor, here and there, what became
of it; moments, step and the loader's position begin anew (`plait upcycle` keeps the latter).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from plait.models import checkpoint
from plait.models.decoder import VALUES, Decoder
from plait.models.training.names import matching, modality_rows, short
from plait.models.values import ValueTable
from plait.pipeline.vocabulary import BOS, EOS, PAD, Vocabulary
from plait.tokenizers.errors import ConfigError

BY_ID = ("embedding", "head", "prior_V")
"""Tensors with a row for each id of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights of another run to begin with; a run that is resumed has its own."""

    source: str = ""
    """A run's folder (its newest checkpoint), or a checkpoint's; none when empty."""
    match: tuple[str, ...] = ()
    """Load these alone: parts of names, or globs as `blocks.0.*`; all when empty."""
    skip: tuple[str, ...] = ()
    """Draw these anew, whatever is there."""


@dataclass(kw_only=True)
class Report:
    """What became of each tensor, by name."""

    source: str
    loaded: dict[str, str] = field(default_factory=dict)
    """Here: `whole`, or what of it."""
    drawn: dict[str, str] = field(default_factory=dict)
    """Here, and not loaded: why."""
    left: dict[str, str] = field(default_factory=dict)
    """There, and used nowhere here: why."""
    tokenizers: dict[str, str] = field(default_factory=dict)
    """Here: whether rows of their ids were there."""

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"begins with {self.source}"]
        for what, names in (("loaded", self.loaded), ("drawn", self.drawn), ("left", self.left)):
            for reason in dict.fromkeys(names.values()):
                own = [name for name, r in names.items() if r == reason]
                found.append(f"  {what} ({reason}): {len(own)} tensors, {short(own)}")
        found += [f"  tokenizer {name}: {what}" for name, what in self.tokenizers.items()]
        return found


@torch.no_grad()
def begin_with(model: Decoder, config: InitConfig) -> Report:
    """Put weights of the source into a new model; ConfigError where they misfit."""
    folder = Path(config.source)
    folder = checkpoint.newest_checkpoint(folder) or folder
    source = checkpoint.load(folder)
    here, there = model.state_dict(), source.state_dict()
    if model.values is not None and VALUES in there:
        there[VALUES] = _own_columns(there[VALUES], model.values)
    report, faults = Report(source=str(folder)), []
    report.tokenizers = _tokenizers(source.vocabulary, model.vocabulary)
    left_out = _left_out(config, here)
    rows = _Rows(source, model)
    for name, target in here.items():
        if name in left_out or name not in there:
            report.drawn[name] = left_out.get(name, "not in the source")
            continue
        own, how = rows.of(name, there[name], target)
        if own is None:
            faults.append(f"{name} is {list(there[name].shape)} there, {list(target.shape)} here")
            continue
        if len(own[0]):
            _put(target, own, there[name])
        (report.loaded if len(own[0]) else report.drawn)[name] = how
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ConfigError(
            f"init.source: {folder}: {'; '.join(faults[:5])}{more}; give the model that shape, or "
            "leave out what is to be drawn anew by --init.skip"
        )
    if not report.loaded:
        raise ConfigError(f"init.source: {folder}: nothing of it would be loaded")
    report.left = {name: left_out.get(name, "no such name here") for name in there}
    report.left = {n: why for n, why in report.left.items() if n not in report.loaded}
    return report


def _left_out(config: InitConfig, names: Mapping[str, Tensor]) -> dict[str, str]:
    """Names that the patterns leave out, and why."""
    wanted = {n for p in config.match for n in matching(p, names, "init.match")} or set(names)
    found = dict.fromkeys((n for n in names if n not in wanted), "not in init.match")
    for pattern in config.skip:
        found |= dict.fromkeys(matching(pattern, names, "init.skip"), "in init.skip")
    return found


class _Rows:
    """Which rows of the source's tensors go where."""

    def __init__(self, source: Decoder, model: Decoder) -> None:
        self.there, self.here = source.vocabulary, model.vocabulary
        self.owners_there, self.owners_here = modality_rows(source), modality_rows(model)
        self.ids = _same_ids(self.there, self.here)

    def of(
        self, name: str, there: Tensor, here: Tensor
    ) -> tuple[tuple[Tensor, Tensor] | None, str]:
        """(rows here, rows there), or None where the shapes misfit; and how that is to be said."""
        if there.shape[1:] != here.shape[1:]:
            return None, ""
        if name in BY_ID:
            return self.ids, self._said(len(self.ids[0]), len(here), "of the same tokenizers")
        old, new = self.owners_there.get(name), self.owners_here.get(name)
        if new is None and old is not None and len(self.here.modalities) == 1:
            new = torch.zeros(len(here), dtype=torch.int64)
        if old is not None and new is not None:
            found = self._by_modality(old, new)
            return found, "" if found is None else self._said(
                len(found[0]), len(here), "of the same modalities"
            )
        every = torch.arange(len(here))
        if len(there) == len(here) and old is new:
            return (every, every), "whole"
        if new is not None and len(there) == 1:
            return (every, torch.zeros_like(every)), "copied for each modality"
        return None, ""

    def _by_modality(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor] | None:
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, modality in enumerate(self.here.modalities):
            if modality in self.there.modalities:
                rows = (new == number).nonzero().flatten()
                source = (old == self.there.modalities.index(modality)).nonzero().flatten()
                if len(rows) != len(source):
                    return None
                found[0].append(rows)
                found[1].append(source)
        return torch.cat(found[0]), torch.cat(found[1])

    @staticmethod
    def _said(count: int, of: int, which: str) -> str:
        if not count:
            return f"the source has no rows {which}"
        return "whole" if count == of else f"{count} of {of} rows, those {which}"


def _tokenizers(there: Vocabulary, here: Vocabulary) -> dict[str, str]:
    names = {info.name for info in there.tokenizers}
    prints = {info.fingerprint for info in there.tokenizers}
    said = {True: "there, with another fingerprint", False: "not there"}
    return {
        info.name: "as there"
        if info.fingerprint in prints
        else f"{said[info.name in names]}: its rows are drawn anew"
        for info in here.tokenizers
    }


def _same_ids(there: Vocabulary, here: Vocabulary) -> tuple[Tensor, Tensor]:
    """Ids here, and what they are there: special tokens, and tokenizers of one fingerprint."""
    pairs = [(special, special) for special in (PAD, BOS, EOS)]
    names = {info.fingerprint: info.name for info in there.tokenizers}
    for info in here.tokenizers:
        name = names.get(info.fingerprint)
        if name is None:
            continue
        for a, b in (
            (here.begin(info.name), there.begin(name)),
            (here.end(info.name), there.end(name)),
        ):
            pairs += [(a, b)] if a is not None and b is not None else []
        first, other = here.start(info.name), there.start(name)
        pairs += [(first + i, other + i) for i in range(info.vocab_size)]
    rows = torch.tensor(pairs)
    return rows[:, 0], rows[:, 1]


def _own_columns(whole_RD: Tensor, table: ValueTable) -> Tensor:
    """The columns of a whole table that a rank holds."""
    rank = 0 if table.group is None else table.group.rank()
    width = whole_RD.shape[1] // table.ranks
    return whole_RD[:, rank * width : (rank + 1) * width]


def _put(target: Tensor, rows: tuple[Tensor, Tensor], source: Tensor) -> None:
    """Copy rows; every rank of a sharded target takes its own."""
    whole = target.full_tensor() if isinstance(target, DTensor) else target
    own, other = (r.to(whole.device) for r in rows)
    whole[own] = source.to(whole.device)[other]
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
