"""A product-key memory's look-up: the best slots by the products of queries and half keys.

Special here: on CPUs the scores of all half keys exist for a few positions at a time alone, and the
backward is a C loop over the picks, k of n half keys, for nearly all of the scores' gradients are
zero: at n = 1024 it takes a tenth of the time of products. Elsewhere it is these, and
product_keys.py.
Letters: product_keys.py; `d` is the width of half a key.
"""

import torch
from torch import Tensor

from plait.kernels import product_keys
from plait.kernels.choose import choose, constant
from plait.kernels.compile_c import call, library

SCORES = 1 << 20
"""Scores that are made at once: 4 MiB."""


def product_key_lookup(query_NH2d: Tensor, keys_H2nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest sums of a head's two products, falling, and their slots; both [N, H, k].

    Slot i * n + j has the first half key i and the second half key j. Gradients reach queries and
    keys. ValueError where shapes disagree or there are fewer than k half keys.

    >>> query_NH2d = torch.tensor([[[[1.0], [2.0]]]])
    >>> product_key_lookup(query_NH2d, torch.tensor([[[[0.0], [9.0]], [[3.0], [0.0]]]]), 2)
    (tensor([[[15.,  9.]]]), tensor([[[2, 3]]]))
    """
    H, _, n, d = keys_H2nd.shape
    if query_NH2d.shape[1:] != (H, 2, d) or keys_H2nd.shape[1] != 2 or not 1 <= k <= n:
        shapes = f"{tuple(query_NH2d.shape)} and half keys {tuple(keys_H2nd.shape)}"
        raise ValueError(f"the {k} best slots of queries {shapes}")
    dtype = query_NH2d.dtype if query_NH2d.dtype == keys_H2nd.dtype else None
    path = choose("product_key_lookup", _fastest(query_NH2d.device.type, dtype))
    if path == "reference":
        return reference(query_NH2d, keys_H2nd, k)
    if path == "c":
        return lookup_op(query_NH2d.contiguous(), keys_H2nd.contiguous(), k)
    return products(query_NH2d, keys_H2nd, k)


def products(query_NH2d: Tensor, keys_H2nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by all products, and the best of their sums."""
    first_NHn, second_NHn = _scores(query_NH2d, keys_H2nd)
    return product_keys.product_key_topk(first_NHn, second_NHn, k)


def reference(query_NH2d: Tensor, keys_H2nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition: all products, and all n^2 sums of them."""
    first_NHn, second_NHn = _scores(query_NH2d, keys_H2nd)
    return product_keys.reference(first_NHn, second_NHn, k)


def _scores(query_NH2d: Tensor, keys_H2nd: Tensor) -> tuple[Tensor, ...]:
    """Of the first and of the second half keys, [N, H, n]."""
    return torch.einsum("nhsd,hskd->snhk", query_NH2d, keys_H2nd).unbind()


@constant
def _fastest(device: str, dtype: torch.dtype | None) -> str:
    """The dtype is None where those of queries and keys differ."""
    names = ("product_keys", "product_key_lookup")
    ready = device == "cpu" and dtype is torch.float32 and all(map(library, names))
    return "c" if ready else "products"


@torch.library.custom_op("plait::product_key_lookup", mutates_args=())
def lookup_op(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best sums and their slots, int64, both [N, H, k]; contiguous float32 on a CPU."""
    N, H, _, d = query.shape
    n = keys.shape[2]
    keys_Bdn = keys.transpose(0, 1).flatten(0, 1).transpose(1, 2)
    score_NHk, slot_NHk = query.new_empty(N, H, k), torch.empty(N, H, k, dtype=torch.int64)
    rows = max(1, SCORES // (2 * H * n))
    for begin in range(0, N, rows):
        here = slice(begin, begin + rows)
        query_Brd = query[here].permute(2, 1, 0, 3).reshape(2 * H, -1, d)
        first_Hrn, second_Hrn = torch.bmm(query_Brd, keys_Bdn).unflatten(0, (2, H))
        best_Hrk, picked_Hrk = product_keys.best_op(first_Hrn, second_Hrn, k, "c")
        score_NHk[here], slot_NHk[here] = best_Hrk.transpose(0, 1), picked_Hrk.transpose(0, 1)
    return score_NHk, slot_NHk


@torch.library.custom_op("plait::product_key_lookup_backward", mutates_args=())
def lookup_backward_op(dscore: Tensor, slot: Tensor, query: Tensor, keys: Tensor) -> list[Tensor]:
    """Gradients of queries and keys."""
    dquery, dkeys = torch.empty_like(query), torch.empty_like(keys)
    sizes = (*query.shape[:2], query.shape[3], keys.shape[2], slot.shape[2])
    tensors = (dscore.contiguous(), slot, query, keys, dquery, dkeys)
    call("product_key_lookup", "lookup_backward", sizes, tensors)
    return [dquery, dkeys]


@lookup_op.register_fake
def _(query, keys, k):
    shape = (*query.shape[:2], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


@lookup_backward_op.register_fake
def _(dscore, slot, query, keys):
    return [torch.empty_like(query), torch.empty_like(keys)]


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1], *inputs[:2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dscore, dslot):
    if dscore is None:
        return None, None, None
    return (*lookup_backward_op(dscore, *ctx.saved_tensors), None)


lookup_op.register_autograd(_differentiate, setup_context=_save)
