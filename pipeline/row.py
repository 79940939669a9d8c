"""One row, and how torch's DataLoader makes a batch of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from plait.pipeline.batch import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One packed sequence as numpy arrays [T]; the names are those of Batch.

    torch's DataLoader makes a Batch of rows without being told how, and Hugging Face's Trainer a
    dict of stacked tensors under these names.
    """

    tokens: np.ndarray
    modality: np.ndarray
    document: np.ndarray
    position: np.ndarray
    loss_mask: np.ndarray
    patch_starts: np.ndarray | None
    modality_names: str
    """By id, one a line: as text, so that Hugging Face's collator leaves it out."""


def collate(rows: Sequence[Row]) -> Batch:
    """Rows to a batch: what torch's `default_collate` does with them."""

    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))

    patches = None
    if any(row.patch_starts is not None for row in rows):
        none = np.zeros(len(rows[0].tokens), bool)
        found = [none if row.patch_starts is None else row.patch_starts for row in rows]
        patches = torch.from_numpy(np.stack(found))
    return Batch(
        tokens_BT=stacked("tokens"),
        modality_BT=stacked("modality"),
        document_BT=stacked("document"),
        position_BT=stacked("position"),
        loss_mask_BT=stacked("loss_mask"),
        patch_start_BT=patches,
        modalities=tuple(rows[0].modality_names.split("\n")),
    )


default_collate_fn_map[Row] = lambda rows, *, collate_fn_map=None: collate(rows)
