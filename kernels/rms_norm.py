"""RMSNorm (arXiv:1910.07467) with one gain a modality, over rows sorted by modality.

Special here: torch has no kernel of it on CPUs, but a dozen passes over memory, and one a modality
and their concatenation where gains differ. One C loop reads a row once, forward and backward; only
the inverse of its root mean square is kept. A view of queries among queries, keys and values is
read in place. On GPUs one Triton kernel serves all modalities, and its gain's gradient is the same
at every run. Letters: models/README.md; here `R` is the number of vectors of a token (heads).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs
from plait.kernels.compile_c import call, library

TOKENS = 64
"""Tokens of a task; the same number stands in modalities.h."""
WIDEST = 8192
"""Widest vector of the Triton kernel: it is held in registers."""


def rms_norm(x_ND: Tensor, w_MD: Tensor, counts: Sequence[int], eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * w[m] over the last axis of [N, ..., D]; the same shape.

    The first `counts[0]` of N are modality 0, and so on; gains [M, D] have x's precision.
    ValueError where counts, rows and gains disagree.

    >>> rms_norm(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[5.0, 5.0]]) / 50**0.5,
    ...          (2,), 0.0).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.6000000238418579, 0.800000011920929]]
    """
    counts = tuple(counts)
    if sum(counts) != len(x_ND) or w_MD.shape != (len(counts), x_ND.shape[-1]):
        shapes = tuple(x_ND.shape), tuple(w_MD.shape)
        raise ValueError(f"counts {counts}, rows and gains {shapes} disagree")
    dtype = x_ND.dtype if x_ND.dtype is w_MD.dtype else None
    path = choose("rms_norm", _fastest(x_ND.device.type, dtype, x_ND.shape[-1]))
    if path == "reference":
        return reference(x_ND, w_MD, counts, eps)
    x_NRD = x_ND.unsqueeze(1) if x_ND.ndim == 2 else x_ND.flatten(1, -2)
    return norm_op(x_NRD, w_MD.contiguous(), counts, eps, path)[0].view(x_ND.shape)


def reference(x_ND: Tensor, w_MD: Tensor, counts: Sequence[int], eps: float) -> Tensor:
    """The definition: a norm a segment."""
    size = w_MD.shape[1:]
    if len(w_MD) == 1:
        return F.rms_norm(x_ND, size, w_MD[0], eps)
    segments = zip(x_ND.split(list(counts)), w_MD, strict=True)
    return torch.cat([F.rms_norm(x_nD, size, w_D, eps) for x_nD, w_D in segments])


@constant
def _fastest(device: str, dtype: torch.dtype | None, dim: int) -> str:
    """Of one precision, or None where x and the gains differ."""
    if dtype is not None and triton_runs(device, dtype) and 0 < dim <= WIDEST:
        return "triton"
    ready = device == "cpu" and dtype is torch.float32 and library("rms_norm") is not None
    return "c" if ready else "reference"


@torch.library.custom_op("plait::rms_norm", mutates_args=())
def norm_op(
    x: Tensor, w: Tensor, counts: Sequence[int], eps: float, path: str
) -> tuple[Tensor, Tensor]:
    """y [N, R, D] and the inverse root mean squares, float32 [N, R]; w contiguous."""
    N, R, D = x.shape
    if path == "triton":
        from plait.kernels import rms_norm_triton

        rows, vectors = [count * R for count in counts], x.reshape(-1, D).contiguous()
        y, inverse = rms_norm_triton.forward(vectors, w, rows, eps)
        return y.view(N, R, D), inverse.view(N, R)
    y_NRD, inverse_NR = x.new_empty(N, R, D), x.new_empty(N, R)
    if x.numel():
        x, stride = _rows(x)
        tensors = (x, w, torch.tensor(counts), torch.tensor([eps]), y_NRD, inverse_NR)
        call("rms_norm", "norm_forward", (N, R, D, stride), tensors)
    return y_NRD, inverse_NR


@torch.library.custom_op("plait::rms_norm_backward", mutates_args=())
def norm_backward_op(
    dy: Tensor, x: Tensor, w: Tensor, inverse: Tensor, counts: Sequence[int], path: str
) -> list[Tensor]:
    """Gradients of x and w."""
    (N, R, D), M = x.shape, len(w)
    if path == "triton":
        from plait.kernels import rms_norm_triton

        rows = [count * R for count in counts]
        dy, vectors = (y.reshape(-1, D).contiguous() for y in (dy, x))
        dx, dw = rms_norm_triton.backward(dy, vectors, w, inverse.flatten(), rows)
        return [dx.view(N, R, D), dw]
    if not x.numel():
        return [x.new_empty(N, R, D), torch.zeros_like(w)]
    dx_NRD, dw_MD = x.new_empty(N, R, D), torch.empty_like(w)
    parts_GMD = w.new_empty(-(-N // TOKENS), M, D)
    x, stride = _rows(x)
    tensors = (dy.contiguous(), x, w, torch.tensor(counts), inverse, dx_NRD, parts_GMD, dw_MD)
    call("rms_norm", "norm_backward", (N, R, D, stride, M), tensors)
    return [dx_NRD, dw_MD]


@norm_op.register_fake
def _(x, w, counts, eps, path):
    return x.new_empty(x.shape), x.new_empty(x.shape[:2], dtype=torch.float32)


@norm_backward_op.register_fake
def _(dy, x, w, inverse, counts, path):
    return [x.new_empty(x.shape), torch.empty_like(w)]


def _rows(x_NRD: Tensor) -> tuple[Tensor, int]:
    """The first vector, which has the address of all, and the stride from token to token."""
    if x_NRD.stride()[1:] != (x_NRD.shape[2], 1):
        x_NRD = x_NRD.contiguous()
    return x_NRD[0, 0], x_NRD.stride(0)


def _save(ctx, inputs, output) -> None:
    x, w, ctx.counts, _, ctx.path = inputs
    ctx.save_for_backward(x, w, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dinverse):
    if dy is None:
        return (None,) * 5
    gradients = norm_backward_op(dy, *ctx.saved_tensors, ctx.counts, ctx.path)
    return (*gradients, None, None, None)


norm_op.register_autograd(_differentiate, setup_context=_save)
