"""The modality order of a batch, computed once: where every token goes and how many there are.

Untied layers work on positions sorted by modality, so that a layer is a few plain products over
contiguous segments. All counts are Python integers and the plan is made on the CPU, in the
loader's thread: no layer ever waits for the device to learn a size. Measured on 2048 tokens of
width 512, staying sorted costs 0.8 ms a layer where boolean masks cost 8.7.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from plait.kernels.attention import AttentionLayout
from plait.kernels.permute import permute
from plait.pipeline.batch import Batch
from plait.pipeline.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """Flat positions N sorted by modality, each modality's own positions in sequence order."""

    counts: tuple[int, ...]
    """Positions of each modality; padding counts as modality 0 and stands last in its segment."""
    real: tuple[int, ...]
    """The same without padding."""
    by_row: tuple[tuple[int, ...], ...]
    """For each modality, its real positions in each row: they stand row by row."""
    permutation_N: Tensor | None = None
    """Int64: the flat position of each sorted one; None where nothing is moved."""
    inverse_N: Tensor | None = None
    """Int64: the sorted position of each flat one."""

    @classmethod
    def of(cls, modality_N: Tensor, padding_N: Tensor, modalities: int, rows: int = 1) -> Self:
        """Sort by modality, on the CPU; a modality that is absent counts 0."""
        key_N = 2 * modality_N.long() + padding_N
        key_N[padding_N] = 1
        permutation_N = torch.sort(key_N, stable=True).indices
        inverse_N = torch.empty_like(permutation_N)
        inverse_N[permutation_N] = torch.arange(len(permutation_N))
        sizes = torch.bincount(key_N, minlength=2 * modalities).tolist()
        row_N = torch.arange(rows).repeat_interleave(len(key_N) // max(1, rows))
        cells = torch.bincount(row_N + rows * key_N, minlength=2 * modalities * rows)
        return cls(
            counts=tuple(sizes[2 * m] + sizes[2 * m + 1] for m in range(modalities)),
            real=tuple(sizes[0::2]),
            by_row=tuple(map(tuple, cells.view(-1, rows)[0::2].tolist())),
            permutation_N=permutation_N,
            inverse_N=inverse_N,
        )

    @classmethod
    def of_step(cls, modality: Sequence[int], modalities: int) -> Self:
        """The order of one position of each of a few rows; nothing moves if they are sorted."""
        counts = tuple(modality.count(m) for m in range(modalities))
        by_row = tuple(tuple(int(m == own) for own in modality) for m in range(modalities))
        order = sorted(range(len(modality)), key=modality.__getitem__)
        if order == list(range(len(modality))):
            return cls(counts=counts, real=counts, by_row=by_row)
        permutation_N = torch.tensor(order)
        inverse_N = permutation_N.argsort()
        return cls(
            counts=counts,
            real=counts,
            by_row=by_row,
            permutation_N=permutation_N,
            inverse_N=inverse_N,
        )

    @cached_property
    def alone(self) -> int | None:
        """The one modality that there is, in a step often; None if there are several."""
        present = [m for m, count in enumerate(self.counts) if count]
        return present[0] if len(present) == 1 else None

    def unsorted(self) -> Self:
        """The order of a model whose parts are all shared: positions stay where they are."""
        return replace(
            self,
            counts=(sum(self.counts),),
            real=(sum(self.real),),
            by_row=(tuple(map(sum, zip(*self.by_row, strict=True))),),
            permutation_N=None,
            inverse_N=None,
        )

    @property
    def places(self) -> tuple[Tensor, Tensor] | None:
        """Where flat positions stand, and the inverse; None where nothing is moved."""
        if self.permutation_N is None or self.inverse_N is None:
            return None
        return self.inverse_N, self.permutation_N

    def sort(self, x_N: Tensor) -> Tensor:
        """Rows in flat order to sorted order, [N, ...]."""
        return x_N if self.places is None else permute(x_N, *self.places[::-1])

    def unsort(self, x_N: Tensor) -> Tensor:
        """Rows in sorted order to flat order, [N, ...]."""
        return x_N if self.places is None else permute(x_N, *self.places)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same order with its tensors on another device."""
        if self.permutation_N is None or self.inverse_N is None:
            return self
        return replace(
            self,
            permutation_N=self.permutation_N.to(device, non_blocking=non_blocking),
            inverse_N=self.inverse_N.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """The same order in page-locked memory."""
        if self.permutation_N is None or self.inverse_N is None:
            return self
        return replace(
            self,
            permutation_N=self.permutation_N.pin_memory(),
            inverse_N=self.inverse_N.pin_memory(),
        )

    def rows(self, flat_J: Tensor) -> Tensor:
        """Where flat positions stand in this order."""
        return flat_J if self.inverse_N is None else self.inverse_N[flat_J]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """All that a model needs to know of a batch's positions; made once, used by every layer."""

    order: Order
    layout: AttentionLayout
    """Which positions attend to which, in flat order."""
    document_BT: Tensor
    position_BT: Tensor
    reset_BT: Tensor
    """Bool: where a document, or the padding, starts."""
    target_rows_J: Tensor
    """Int64: flat positions that have a target, sorted by the modality of the target."""
    targets_J: Tensor
    """Int64: their targets."""
    target_counts: tuple[int, ...]
    """Targets of each modality."""

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Plan a batch; meant for the loader's thread, where the batch is still on the CPU."""
        cpu = batch.to("cpu")
        padding_N = cpu.padding_BT.flatten()
        modalities = len(cpu.modalities)
        reset_BT = torch.ones_like(cpu.padding_BT)
        reset_BT[:, 1:] = cpu.document_BT[:, 1:] != cpu.document_BT[:, :-1]
        targets = _targets(cpu)
        order = Order.of(cpu.modality_BT.flatten(), padding_N, modalities, len(cpu.tokens_BT))
        plan = cls(
            order=order,
            layout=AttentionLayout.of(cpu.document_BT),
            document_BT=cpu.document_BT,
            position_BT=cpu.position_BT,
            reset_BT=reset_BT,
            target_rows_J=targets[0],
            targets_J=targets[1],
            target_counts=targets[2],
        )
        return plan.to(batch.tokens_BT.device)

    @cached_property
    def sorted_layout(self) -> AttentionLayout:
        """`layout` in the order of `order`; made, on the plan's device, when first asked for."""
        places = self.order.places
        return self.layout if places is None else self.layout.sorted(*places[::-1])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same plan with its tensors on another device; sizes stay on the host."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same plan in page-locked memory, for fast copies to a GPU."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, function) -> Self:
        moved = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | AttentionLayout | Order)
        }
        return replace(self, **moved)


def counted(count_M: Tensor) -> list[int]:
    """Counts on the host; in a compiled graph they are symbols of sizes."""
    counts = count_M.tolist()
    for count in counts:
        torch._check(count >= 0)
    return counts


def _targets(batch: Batch) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    rows_J = batch.loss_mask_BT.flatten().nonzero().squeeze(1)
    modality_J = batch.target_modality_BT.flatten()[rows_J].long()
    rows_J = rows_J[torch.sort(modality_J, stable=True).indices]
    counts = torch.bincount(modality_J, minlength=len(batch.modalities))
    return rows_J, batch.targets_BT.flatten()[rows_J], tuple(counts.tolist())


def prompt_batch(prompts: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Batch:
    """A document a row, padded on the right; ValueError where one is empty or has no such id."""
    lengths = [len(prompt) for prompt in prompts]
    if not all(lengths):
        raise ValueError(f"prompt {lengths.index(0)} is empty; it should have one token or more")
    tokens_BT = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.int64)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, : lengths[b]] = torch.as_tensor(prompt)
        if min(prompt) < 0 or max(prompt) >= vocabulary.size:
            raise ValueError(f"prompt {b} has an id outside 0 .. {vocabulary.size - 1}")
    position_1T = torch.arange(tokens_BT.shape[1], dtype=torch.int32)[None]
    padding_BT = position_1T >= torch.tensor(lengths)[:, None]
    return Batch(
        tokens_BT=tokens_BT,
        modality_BT=torch.from_numpy(vocabulary.modality_table)[tokens_BT],
        document_BT=-padding_BT.int(),
        position_BT=position_1T.expand_as(tokens_BT).contiguous(),
        loss_mask_BT=torch.zeros_like(padding_BT),
        modalities=vocabulary.modalities,
    )
