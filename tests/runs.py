"""What tests compare of a run's folder: its lines without the times, and its newest tensors."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from plait.models.checkpoint import newest_checkpoint
from plait.pipeline.meters import TIMED


def read_lines(path: Path) -> list[dict]:
    """The records of a file with one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(run: Path) -> list[dict]:
    """What a run logged, but for what a clock says."""
    found = read_lines(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMED} for line in found]


def weights(run: Path, *kinds: str) -> dict[str, Tensor]:
    """Tensors of the newest checkpoint, of the model and the optimizer or of the kinds named."""
    newest = newest_checkpoint(run)
    assert newest is not None
    found: dict[str, Tensor] = {}
    for kind in kinds or ("model", "optimizer"):
        found |= load_file(newest / f"{kind}.safetensors")
    return found
