"""Nats of every token of packed rows that a run holds out: what `plait inspect RUN` colours.

On the CPU and in float32, causal for every model, from the newest checkpoint. A few rows, so the
cost is mostly that of reading the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from plait.models.checkpoint import load, newest_checkpoint
from plait.models.decoder import Decoder
from plait.models.training.run_config import RunConfig
from plait.models.training.run_rows import rows_of
from plait.models.training.run_store import trained_on_streams
from plait.pipeline import config as toml
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.tokenizers.base import Tokenizer, load_tokenizer
from plait.tokenizers.errors import ConfigError

LONGEST = 1 << 15
"""Tokens of a row from which on a CPU would take too long."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """A run's model and the rows that it validates on."""

    folder: Path
    step: int
    """Of the checkpoint."""
    apart: bool
    """Whether the rows were held out; else they are of what it was trained on."""
    rows: Rows
    model: Decoder

    @classmethod
    def open(cls, run: str | Path) -> "HeldOut":
        """Read a run; ConfigError where its data is not at hand, or no checkpoint is there yet."""
        folder = Path(run)
        path, checkpoint = folder / "config.toml", newest_checkpoint(folder)
        config = toml.build(RunConfig, toml.read_toml(path), str(path))
        if checkpoint is None:
            raise ConfigError(f"{folder}: no checkpoint yet")
        if config.rows.seq_len > LONGEST:
            raise ConfigError(f"{path}: rows of {config.rows.seq_len:,} tokens are too long here")
        streams = _streams(config, folder)
        model = load(checkpoint, "cpu").eval()
        held_out = [Stream(place) for place in config.validation.data]
        return cls(
            folder=folder,
            step=int(checkpoint.name.removeprefix("step-")),
            apart=bool(held_out) or config.validation.share > 0,
            rows=rows_of(config, "validation", streams, held_out, model.vocabulary),
            model=model,
        )

    def tokenizer(self, name: str) -> Tokenizer:
        """One of the run's tokenizers."""
        return load_tokenizer(self.folder / "tokenizers" / name)

    def nats(self, numbers: Sequence[int]) -> np.ndarray:
        """Of some rows' tokens, each given those before it, float32 [B, T]; NaN for no target.

        A batch counts a loss where it is made, one position before; here it stands at its token.
        """
        batch = self.rows.batch(numbers)
        nats_BT = torch.full(batch.tokens_BT.shape, torch.nan)
        scored_BT = batch.loss_mask_BT[:, :-1]
        nats_BT[:, 1:][scored_BT] = self.model.nats(batch)[:, :-1][scored_BT].float()
        return nats_BT.numpy()


def _streams(config: RunConfig, folder: Path) -> list[Stream]:
    """The streams that a run was trained on; ConfigError if one is another by now."""
    known = trained_on_streams(folder)
    streams = [Stream(place) for place in config.data]
    for stream in streams:
        if stream.fingerprint not in known:
            raise ConfigError(f"{stream.url}: not the stream that {folder} was trained on")
    return streams
