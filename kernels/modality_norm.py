"""RMSNorm with a gain for each modality, over rows sorted by modality.

Special here: on GPUs one kernel serves all modalities, and its gain's gradient is the same at every
run; elsewhere it is the definition, torch's norm a segment, which is the faster on CPUs. The counts
are Python integers. Letters: models/README.md; `R` rows of all axes but the last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose, constant, triton_runs

WIDEST = 8192
"""Widest row of the Triton kernel: it is held in registers."""


def modality_norm(x_ND: Tensor, weight_MD: Tensor, counts: Sequence[int], eps: float) -> Tensor:
    """Rows `counts[0]` normed with gain weight[0], the next with weight[1], ...; the shape of x.

    x is [N, ..., D], normed over its last axis in float32 at least. ValueError where the counts
    do not fit the rows or the gains.

    >>> gains_MD = torch.tensor([[1.0, 1.0], [10.0, 10.0]])
    >>> modality_norm(torch.ones(2, 2), gains_MD, (1, 1), 0.0).tolist()
    [[1.0, 1.0], [10.0, 10.0]]
    """
    counts = tuple(counts)
    if len(counts) != len(weight_MD) or sum(counts) != len(x_ND) or min(counts, default=0) < 0:
        raise ValueError(f"counts {counts} for {len(x_ND)} rows and {len(weight_MD)} modalities")
    if choose("modality_norm", _fastest(x_ND.device.type, x_ND.dtype, x_ND.shape[-1])) != "triton":
        return reference(x_ND, weight_MD, counts, eps)
    D = x_ND.shape[-1]
    inner = x_ND[0].numel() // D if len(x_ND) else 1
    rows = [count * inner for count in counts]
    y_RD, _ = norm_op(x_ND.reshape(-1, D).contiguous(), weight_MD.contiguous(), rows, eps)
    return y_RD.view(x_ND.shape)


def reference(x_ND: Tensor, weight_MD: Tensor, counts: Sequence[int], eps: float) -> Tensor:
    """The definition: torch's norm a segment."""
    size = weight_MD.shape[1:]
    segments = zip(x_ND.split(list(counts)), weight_MD, strict=True)
    return torch.cat([F.rms_norm(x_nD, size, w_D, eps) for x_nD, w_D in segments])


@constant
def _fastest(device: str, dtype: torch.dtype, dim: int) -> str:
    return "triton" if triton_runs(device, dtype) and 0 < dim <= WIDEST else "reference"


@torch.library.custom_op("plait::modality_norm", mutates_args=())
def norm_op(x: Tensor, weight: Tensor, counts: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """y [R, D] and each row's scale, float32 [R]; contiguous inputs."""
    from plait.kernels import modality_norm_triton

    return modality_norm_triton.forward(x, weight, counts, eps)


@torch.library.custom_op("plait::modality_norm_backward", mutates_args=())
def norm_backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, counts: list[int]
) -> list[Tensor]:
    """Gradients of x and of the gains."""
    from plait.kernels import modality_norm_triton

    return modality_norm_triton.backward(dy.contiguous(), x, weight, scale, counts)


@norm_op.register_fake
def _(x, weight, counts, eps):
    return torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)


@norm_backward_op.register_fake
def _(dy, x, weight, scale, counts):
    return [torch.empty_like(x), torch.empty_like(weight)]


def _save(ctx, inputs, output) -> None:
    x, weight, ctx.counts, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dscale):
    if dy is None:
        return None, None, None, None
    return (*norm_backward_op(dy, *ctx.saved_tensors, ctx.counts), None, None)


norm_op.register_autograd(_differentiate, setup_context=_save)
