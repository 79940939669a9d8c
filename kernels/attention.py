"""Causal attention in which no document of a row sees another.

Special here: no mask exists on the fast paths, whose cost follows the sum of the squared document
lengths, not the row's square. On CUDA Triton kernels walk over each document's tiles and read rows
where they stand; they are ours and not torch's FlexAttention because they gather in any order, have
no atomics, and can be interpreted and compiled without a GPU. Elsewhere documents of like length
are gathered from all rows into right-padded buckets, each bucket is one causal
`scaled_dot_product_attention`, and the results are gathered back. The gathers are permutations, so
their backward is a gather too: the same result at every run. Letters: models/README.md, and `P` for
places in the buckets, `R` for documents, `G` for tiles.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs

TILE = 128
"""Positions of a tile; a program of the Triton kernels takes them all, or a half, or a quarter."""
WIDEST = 128
"""Largest head size of the Triton kernels."""


@dataclass(frozen=True, eq=False)
class AttentionLayout:
    """Which positions form documents, and their buckets; built once a batch, on the CPU."""

    document_BT: Tensor
    """Document of each position; negative is padding."""
    buckets: tuple[tuple[int, int], ...]
    """(documents, padded length) of each bucket."""
    index_P: Tensor
    """Int64: the flat position in each place of the buckets; any position in an empty place."""
    empty_P: Tensor
    """Int64: the empty places, which are to the right of a document."""
    inverse_N: Tensor
    """Int64: the place of each flat position; any place for padding."""
    padding_N: Tensor
    """Int64: the flat positions that are padding."""
    tile_G3: Tensor
    """Int32: in flat order, where a tile's document starts and ends, and the tile starts."""
    sorted_N: Tensor | None = None
    """Int64: where each flat position stands in what is attended over; None where it stands."""

    @classmethod
    def of(cls, document_BT: Tensor) -> Self:
        """The layout of rows of document numbers; a document's positions must be contiguous."""
        start_R, length_R = _runs(document_BT)
        order_R = length_R.argsort(descending=True, stable=True)
        start_R, length_R = start_R[order_R], length_R[order_R]
        N, device = document_BT.numel(), document_BT.device
        buckets, index, empty, inverse_N, used, first = [], [], [], torch.zeros(N).long(), 0, 0
        for documents, longest in _buckets(length_R.tolist()):
            here = slice(first, first + documents)
            offset_1L = torch.arange(longest)[None]
            inside = (offset_1L < length_R[here, None]).flatten()
            flat = torch.where(inside, (start_R[here, None] + offset_1L).flatten(), start_R[first])
            place = torch.arange(used, used + documents * longest)
            inverse_N[flat[inside]] = place[inside]
            index.append(flat)
            empty.append(place[~inside])
            buckets.append((documents, longest))
            first, used = first + documents, used + documents * longest
        nothing = torch.zeros(0).long()
        return cls(
            document_BT=document_BT,
            buckets=tuple(buckets),
            index_P=torch.cat([nothing, *index]).to(device),
            empty_P=torch.cat([nothing, *empty]).to(device),
            inverse_N=inverse_N.to(device),
            padding_N=(document_BT.flatten() < 0).nonzero().flatten(),
            tile_G3=_tiles(start_R, length_R).to(device),
        )

    @property
    def even(self) -> tuple[int, int] | None:
        """(documents, length) where all are as long and nothing is padding: then nothing moves."""
        moves = len(self.empty_P) or len(self.padding_N) or self.sorted_N is not None
        return self.buckets[0] if len(self.buckets) == 1 and not moves else None

    def sorted(self, permutation_N: Tensor, inverse_N: Tensor) -> Self:
        """The layout of the same positions in another order, in which [B, T] is but a shape.

        Sorted position `n` is the flat position `permutation_N[n]`. The gathers of `attention` then
        start and end in that order: nothing is moved twice.
        """
        return replace(
            self,
            index_P=inverse_N[self.index_P],
            inverse_N=self.inverse_N[permutation_N],
            padding_N=inverse_N[self.padding_N],
            sorted_N=inverse_N,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same layout on another device."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same layout in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        )


def attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, layout: AttentionLayout) -> Tensor:
    """Softmax attention within documents, scaled by K^-1/2; [B, T, H, K], zero at padding."""
    if q_BTHK.shape[:2] != layout.document_BT.shape:
        rows = tuple(layout.document_BT.shape)
        raise ValueError(f"q is {tuple(q_BTHK.shape)}, the layout is of rows {rows}")
    if torch.is_autocast_enabled(q_BTHK.device.type):
        dtype = torch.get_autocast_dtype(q_BTHK.device.type)
        q_BTHK, k_BTHK, v_BTHK = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHK))
    kinds = {(x.dtype, x.shape) for x in (q_BTHK, k_BTHK, v_BTHK)}
    dtype = q_BTHK.dtype if len(kinds) == 1 else None
    path = choose("attention", _fastest(q_BTHK.device.type, dtype, q_BTHK.shape[-1]))
    if path == "reference":
        return _reference_in_order(q_BTHK, k_BTHK, v_BTHK, layout)
    if path == "triton":
        qkv = (x_BTHK.flatten(0, 1) for x_BTHK in (q_BTHK, k_BTHK, v_BTHK))
        o_NHK, _ = attention_op(*qkv, layout.tile_G3, layout.sorted_N, layout.padding_N)
        return o_NHK.view(q_BTHK.shape)
    return _in_buckets(q_BTHK, k_BTHK, v_BTHK, layout)


@constant
def _fastest(device: str, dtype: torch.dtype | None, size: int) -> str:
    """Triton's where it serves; the dtype is None where queries, keys and values differ."""
    served = dtype is not None and size <= WIDEST and triton_runs(device, dtype)
    return "triton" if served else "buckets"


def _in_buckets(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, layout: AttentionLayout) -> Tensor:
    if layout.even is not None:
        qkv = (x.flatten(0, 1).unflatten(0, layout.even) for x in (q_BTHK, k_BTHK, v_BTHK))
        return _causal(*qkv).flatten(0, 1).unflatten(0, q_BTHK.shape[:2])
    move = (layout.index_P, layout.empty_P, layout.inverse_N, layout.padding_N)
    packed = [_Exchange.apply(x_BTHK.flatten(0, 1), *move) for x_BTHK in (q_BTHK, k_BTHK, v_BTHK)]
    sizes = [documents * longest for documents, longest in layout.buckets]
    outputs = [
        _causal(*(x_PHK.unflatten(0, bucket) for x_PHK in qkv)).flatten(0, 1)
        for bucket, *qkv in zip(layout.buckets, *(x.split(sizes) for x in packed), strict=True)
    ]
    o_PHK = torch.cat(outputs) if outputs else packed[0] + packed[1] + packed[2]
    o_NHK = _Exchange.apply(o_PHK, *move[2:], *move[:2])
    return o_NHK.unflatten(0, q_BTHK.shape[:2])


def reference(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, document_BT: Tensor) -> Tensor:
    """The definition: a dense mask of the pairs in one document, the key not after the query."""
    T, K = q_BTHK.shape[1], q_BTHK.shape[-1]
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    mask_B1TT = (same_BTT & torch.ones_like(same_BTT[0]).tril()).view(-1, 1, T, T)
    score_BHTT = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) * K**-0.5
    share_BHTT = score_BHTT.masked_fill(~mask_B1TT, -torch.inf).softmax(-1)
    o_BTHK = torch.einsum("bhts,bshk->bthk", share_BHTT, v_BTHK)
    return o_BTHK.masked_fill((document_BT < 0)[:, :, None, None], 0)


@torch.library.custom_op("plait::attention", mutates_args=())
def attention_op(
    q: Tensor, k: Tensor, v: Tensor, tile: Tensor, row: Tensor | None, padding: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [N, H, K], and the log2 of the sums of 2^score, float32 [H, N] in flat order.

    `tile`, `row` and `padding` are of a layout: its `tile_G3`, `sorted_N` and `padding_N`.
    """
    from plait.kernels import attention_triton

    return attention_triton.forward(q, k, v, tile, row, padding)


@torch.library.custom_op("plait::attention_backward", mutates_args=())
def attention_backward_op(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    tile: Tensor,
    row: Tensor | None,
    padding: Tensor,
) -> list[Tensor]:
    """Gradients of q, k and v."""
    from plait.kernels import attention_triton

    return attention_triton.backward(do.contiguous(), q, k, v, o, lse, tile, row, padding)


@attention_op.register_fake
def _(q, k, v, tile, row, padding):
    lse_HN = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return q.new_empty(q.shape), lse_HN


@attention_backward_op.register_fake
def _(do, q, k, v, o, lse, tile, row, padding):
    return [x.new_empty(x.shape) for x in (q, k, v)]


def _save(ctx, inputs, output) -> None:
    q, k, v, *layout = inputs
    ctx.save_for_backward(q, k, v, *output, *layout)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, do, dlse):
    if do is None:
        return (None,) * 6
    return (*attention_backward_op(do, *ctx.saved_tensors), None, None, None)


attention_op.register_autograd(_differentiate, setup_context=_save)


def _reference_in_order(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout) -> Tensor:
    if layout.sorted_N is None:
        return reference(q, k, v, layout.document_BT)
    q, k, v = (x.flatten(0, 1)[layout.sorted_N].view(x.shape) for x in (q, k, v))
    o_BTHK = reference(q, k, v, layout.document_BT)
    return o_BTHK.flatten(0, 1)[layout.sorted_N.argsort()].view(q.shape)


def _causal(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    o_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    return o_BHTK.transpose(1, 2)


class _Exchange(torch.autograd.Function):
    """Rows of x by an index, zero where said; its gradient is the same with the inverse index.

    A place of one side either has one place of the other or is in the list that is zeroed.
    """

    @staticmethod
    def forward(ctx, x_ND, index_P, empty_P, inverse_N, padding_N):
        ctx.save_for_backward(inverse_N, padding_N, index_P, empty_P)
        if not len(x_ND):
            return x_ND.new_zeros(len(index_P), *x_ND.shape[1:])
        y_PD = x_ND.index_select(0, index_P)
        return y_PD.index_fill_(0, empty_P, 0)

    @staticmethod
    def backward(ctx, *dy):
        return _Exchange.apply(dy[0], *ctx.saved_tensors), None, None, None, None


def _runs(document_BT: Tensor) -> tuple[Tensor, Tensor]:
    """First flat position and length of each document, int64 [documents]."""
    document_BT = document_BT.cpu()
    B, T = document_BT.shape
    change_BT = torch.ones(B, T, dtype=torch.bool)
    change_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    start_R = change_BT.flatten().nonzero().flatten()
    length_R = torch.diff(start_R, append=torch.tensor([B * T]))
    real_R = document_BT.flatten()[start_R] >= 0
    start_R, length_R = start_R[real_R], length_R[real_R]
    row_R, number_R = start_R // max(T, 1), document_BT.flatten()[start_R].long()
    if len(torch.unique(torch.stack([row_R, number_R]), dim=1).T) != len(start_R):
        raise ValueError("a document's positions are not contiguous in its row")
    return start_R, length_R


def _tiles(start_R: Tensor, length_R: Tensor) -> Tensor:
    """(start and end of the document, start of the tile), those far into a document first."""
    tiles_R = (length_R + TILE - 1) // TILE
    document_G = torch.arange(len(start_R)).repeat_interleave(tiles_R)
    within_G = torch.arange(len(document_G)) - (tiles_R.cumsum(0) - tiles_R)[document_G]
    start_G, length_G = start_R[document_G], length_R[document_G]
    tile_G3 = torch.stack([start_G, start_G + length_G, start_G + TILE * within_G], 1)
    return tile_G3[within_G.argsort(descending=True, stable=True)].to(torch.int32)


def _buckets(lengths: list[int]) -> list[tuple[int, int]]:
    """(documents, longest) of groups of falling lengths: a new group below 3/4, or 32 less."""
    groups: list[tuple[int, int]] = []
    for length in lengths:
        if groups and length >= min(groups[-1][1] * 3 // 4, groups[-1][1] - 32):
            groups[-1] = (groups[-1][0] + 1, groups[-1][1])
        else:
            groups.append((1, length))
    return groups
