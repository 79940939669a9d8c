"""Cross-entropy of a linear head, in pieces: the logits of all rows are never held at once.

Special here: in float32 on a CPU a piece of logits becomes its own gradient as soon as its softmax
is known, in the cache, and is multiplied into the gradients of rows and weights at once. The rows'
gradients are then scaled by what the backward pass brings, and so are the weights' where that is
the same for all rows, as in a mean; else they are made again. Elsewhere (GPUs, bfloat16) the
forward pass keeps one number a row, and the backward pass makes each piece again: one product more.
The z-loss, `z_loss * partition ** 2`, is in the gradient alone.

N rows, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant
from plait.kernels.compile_c import call, library

PIECE = 1 << 21
"""Logits in a piece: 8 MB of float32."""


def reference(
    x_ND: Tensor, w_VD: Tensor, bias_V: Tensor, target_N: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The definition: each row's loss in nats and its log-partition, float32 [N]."""
    logits_NV = F.linear(x_ND, w_VD, bias_V.to(x_ND.dtype)).float()
    partition_N = logits_NV.logsumexp(-1)
    square_N = z_loss * partition_N.square()
    loss_N = partition_N - logits_NV.gather(1, target_N[:, None])[:, 0]
    return loss_N + (square_N - square_N.detach()), partition_N.detach()


def linear_cross_entropy(
    x_ND: Tensor, w_VD: Tensor, bias_V: Tensor, target_N: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss of `x @ w.T + bias` at int64 targets, and the log-partition, both float32 [N].

    Under autocast the products are taken in its type. Gradients flow from the losses alone, and
    carry the z-loss, which the losses' values do not.
    """
    if torch.is_autocast_enabled(x_ND.device.type):
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND, w_VD = x_ND.to(dtype), w_VD.to(dtype)
    path = choose("linear_cross_entropy", _fastest(x_ND.device.type, x_ND.dtype, w_VD.dtype))
    if path == "reference":
        return reference(x_ND, w_VD, bias_V, target_N, z_loss)
    if path == "pieces" or bias_V.requires_grad:
        return _Pieces.apply(x_ND, w_VD, bias_V, target_N, z_loss)  # pyright: ignore
    learns = torch.is_grad_enabled() and (x_ND.requires_grad or w_VD.requires_grad)
    tensors = (x_ND.contiguous(), w_VD.contiguous(), bias_V.float(), target_N)
    loss_N, partition_N, _, _ = loss_op(*tensors, z_loss, learns)
    return loss_N, partition_N.detach()


@constant
def _fastest(device: str, *dtypes: torch.dtype) -> str:
    plain = device == "cpu" and set(dtypes) == {torch.float32}
    return "one pass" if plain and library("cross_entropy") is not None else "pieces"


@torch.library.custom_op("plait::linear_cross_entropy", mutates_args=())
def loss_op(
    x: Tensor, w: Tensor, bias: Tensor, target: Tensor, z_loss: float, learns: bool
) -> list[Tensor]:
    """Losses, partitions, and where asked for the gradients of x and w if all losses had 1."""
    loss_N, dloss_N = x.new_empty(len(x)), x.new_ones(len(x))
    partition_N = torch.empty_like(loss_N)
    dx_ND, dw_VD = (
        torch.empty_like(x if learns else x[:0]),
        torch.zeros_like(w if learns else w[:0]),
    )
    for rows, logits_nV in _logits(x, w):
        inputs = (bias, target[rows], dloss_N[rows], torch.tensor([z_loss]))
        _softmax(logits_nV, inputs, (loss_N[rows], partition_N[rows]), learns)
        if learns:
            torch.mm(logits_nV, w, out=dx_ND[rows])
            dw_VD.addmm_(logits_nV.T, x[rows])
    return [loss_N, partition_N, dx_ND, dw_VD]


@torch.library.custom_op("plait::linear_cross_entropy_weight", mutates_args=())
def weight_op(
    dloss: Tensor, dw: Tensor, x: Tensor, w: Tensor, bias: Tensor, target: Tensor, z_loss: float
) -> Tensor:
    """The gradient of w from those of the losses, and what it is where those are 1."""
    if not len(x) or bool((dloss == dloss[0]).all()):
        return dw * dloss[0] if len(x) else dw.clone()
    dw_VD = torch.zeros_like(w)
    unused = (torch.empty_like(dloss), torch.empty_like(dloss))
    for rows, logits_nV in _logits(x, w):
        inputs = (bias, target[rows], dloss[rows], torch.tensor([z_loss]))
        _softmax(logits_nV, inputs, tuple(part_N[rows] for part_N in unused), True)
        dw_VD.addmm_(logits_nV.T, x[rows])
    return dw_VD


@loss_op.register_fake
def _(x, w, bias, target, z_loss, learns):
    one = x.new_empty(x.shape[0])
    found = (x, w) if learns else (x[:0], w[:0])
    return [one, torch.empty_like(one), *map(torch.empty_like, found)]


@weight_op.register_fake
def _(dloss, dw, x, w, bias, target, z_loss):
    return torch.empty_like(w)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.z_loss, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])


def _differentiate(ctx, gradients):
    x_ND, w_VD, bias_V, target_N, dx_ND, dw_VD = ctx.saved_tensors
    dloss_N = gradients[0].contiguous()
    inputs = (x_ND, w_VD, bias_V, target_N, ctx.z_loss)
    dw_VD = weight_op(dloss_N, dw_VD, *inputs) if ctx.needs_input_grad[1] else None
    return dx_ND * dloss_N[:, None], dw_VD, None, None, None, None


loss_op.register_autograd(_differentiate, setup_context=_save)


def _logits(x_ND: Tensor, w_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their logits without bias, piece by piece in the same memory."""
    pieces = _pieces(len(x_ND), len(w_VD))
    piece_nV = x_ND.new_empty(len(x_ND[pieces[0]]) if pieces else 0, len(w_VD))
    for rows in pieces:
        x_nD = x_ND[rows]
        yield rows, torch.mm(x_nD, w_VD.T, out=piece_nV[: len(x_nD)])


def _softmax(
    logits_nV: Tensor, inputs: Sequence[Tensor], out: Sequence[Tensor], learns: bool
) -> None:
    """Losses and partitions into `out`; the logits become their gradient, or are used up."""
    call("cross_entropy", "cross_entropy", (*logits_nV.shape, learns), (logits_nV, *inputs, *out))


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, w_VD: Tensor, bias_V: Tensor, target_N: Tensor, z_loss: float):
        partition_N = x_ND.new_empty(len(x_ND), dtype=torch.float32)
        picked_N = torch.empty_like(partition_N)
        for rows in _pieces(len(x_ND), len(w_VD)):
            logits_nV = F.linear(x_ND[rows], w_VD, bias_V.to(x_ND.dtype)).float()
            partition_N[rows] = logits_nV.logsumexp(-1)
            picked_N[rows] = logits_nV.gather(1, target_N[rows, None])[:, 0]
        ctx.save_for_backward(x_ND, w_VD, bias_V, target_N, partition_N)
        ctx.z_loss = z_loss
        whole_N = partition_N.clone()
        ctx.mark_non_differentiable(whole_N)
        return partition_N - picked_N, whole_N

    @staticmethod
    def backward(ctx, dloss_N: Tensor, _):  # pyright: ignore
        x_ND, w_VD, bias_V, target_N, partition_N = ctx.saved_tensors
        dx_ND, dw_VD = torch.empty_like(x_ND), torch.zeros_like(w_VD, dtype=torch.float32)
        dbias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        weight_N = dloss_N * (1 + 2 * ctx.z_loss * partition_N)
        for rows in _pieces(len(x_ND), len(w_VD)):
            d_nV = F.linear(x_ND[rows], w_VD, bias_V.to(x_ND.dtype)).float()
            d_nV.sub_(partition_N[rows, None]).exp_().mul_(weight_N[rows, None])
            d_nV.scatter_add_(1, target_N[rows, None], -dloss_N[rows, None])
            dbias_V += d_nV.sum(0) if ctx.needs_input_grad[2] else 0
            d_nV = d_nV.to(x_ND.dtype)
            dx_ND[rows] = d_nV @ w_VD
            dw_VD += d_nV.T @ x_ND[rows]
        return dx_ND, dw_VD.to(w_VD.dtype), dbias_V.to(bias_V.dtype), None, None


def _pieces(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, PIECE // vocabulary)
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
