"""The packed rows of a run, to train and to validate on, as its configuration says."""

from collections.abc import Sequence
from typing import Literal

from plait.models.training.run_config import RunConfig
from plait.pipeline.learned import Learned
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.pipeline.vocabulary import Vocabulary


def rows_of(
    config: RunConfig,
    split: Literal["train", "validation"],
    streams: Sequence[Stream],
    held_out: Sequence[Stream],
    vocabulary: Vocabulary,
) -> Rows:
    """Rows of `streams` (those of `data`), or of `held_out` (those of `validation.data`).

    Where nothing is held out, those of validation are all rows.
    """
    c, m = config, config.mixture
    apart = split == "validation" and bool(held_out)
    share = 0.0 if held_out else c.validation.share
    trains = split == "train"
    return Rows(
        held_out if apart else streams,
        seq_len=c.rows.seq_len,
        packing=c.rows.packing,
        cut=c.rows.cut,
        seed=c.seed,
        weights=m.stretches(c.rows.batch_size * c.rows.accumulate) if trains else None,
        temperature=m.temperature if trains else 1.0,
        modality_shares=m.shares or None if trains else None,
        exhausted=m.exhausted if trains else "repeat",
        split=split if share else "all",
        validation=share,
        vocabulary=vocabulary,
        learned=Learned(mask=c.objective.mask, learn=c.objective.learn),
    )
