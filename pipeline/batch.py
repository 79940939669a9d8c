"""A batch of packed rows as torch tensors, with the modality and document of every position."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from plait.pipeline.vocabulary import PAD


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows of tokens; tensors are [B, T] unless said, on one device.

    Position t predicts token t + 1 of the same row, where `loss_mask_BT[b, t]` is True: both
    belong to one document. The model's input modality is `modality_BT`; a loss is counted under
    the modality of its target.
    """

    tokens_BT: Tensor
    """Int64 ids in the run's vocabulary; padding is 0."""
    modality_BT: Tensor
    """Uint8 modality id of each position (markers and padding are text, 0)."""
    document_BT: Tensor
    """Int32 number of the document within its row, from 0, never falling; -1 is padding."""
    position_BT: Tensor
    """Int32 position inside the document."""
    loss_mask_BT: Tensor
    """Bool: whether this position's next token is a target."""
    patch_start_BT: Tensor | None = None
    """Bool: where a patch of bytes begins."""
    modalities: tuple[str, ...] = ("text",)
    """Modality names by id."""
    step: int = -1
    """The number of the batch in its run; -1 if it has none."""

    @property
    def targets_BT(self) -> Tensor:
        """Int64: the token that follows each position; padding where there is none."""
        targets_BT = torch.full_like(self.tokens_BT, PAD)
        targets_BT[:, :-1] = self.tokens_BT[:, 1:]
        return targets_BT

    @property
    def target_modality_BT(self) -> Tensor:
        """Uint8: the modality of each position's target."""
        modality_BT = torch.zeros_like(self.modality_BT)
        modality_BT[:, :-1] = self.modality_BT[:, 1:]
        return modality_BT

    @property
    def padding_BT(self) -> Tensor:
        """Bool: True where a row holds no document."""
        return self.document_BT < 0

    @property
    def modality_masks(self) -> Tensor:
        """Bool [M, B, T]: for each modality, its positions; padding is in none."""
        ids_M11 = torch.arange(len(self.modalities), device=self.modality_BT.device)[:, None, None]
        return (self.modality_BT[None] == ids_M11) & ~self.padding_BT[None]

    @property
    def fill(self) -> float:
        """Share of positions that are not padding."""
        return 1.0 - self.padding_BT.float().mean().item()

    def spans(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Runs of one document and modality: (row, start, stop, modality, document)."""
        for row, (modality_T, document_T) in enumerate(
            zip(self.modality_BT.tolist(), self.document_BT.tolist(), strict=True)
        ):
            start = 0
            for t in range(1, len(modality_T) + 1):
                end = t == len(modality_T)
                if end or (modality_T[t], document_T[t]) != (modality_T[start], document_T[start]):
                    yield row, start, t, modality_T[start], document_T[start]
                    start = t

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, for fast copies to a GPU."""
        return self._map(Tensor.pin_memory)

    def _repr_html_(self) -> str:
        """What a notebook shows: counts, and the first rows coloured by modality."""
        from plait.pipeline.inspect.notebook import batch_html

        return batch_html(self)  # pyright: ignore[reportArgumentType]

    def _map(self, function) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        )
