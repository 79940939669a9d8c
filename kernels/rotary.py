"""Queries, keys and values as attention reads them: queries and keys normed, then turned.

Special here: on CPUs one C pass from the product's output to all three, and one back into its
gradient. In plain torch the norms (arXiv:2302.05442), rotary positions (arXiv:2104.09864) and the
gradients' concatenations take some forty passes. Elsewhere `rms_norm` and torch's operations, which
torch.compile fuses. Letters: models/README.md; `C` is half a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.kernels.choose import choose, constant
from plait.kernels.compile_c import call, library
from plait.kernels.rms_norm import TOKENS, rms_norm

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of the angles by which pairs (k, k + K / 2) of a head turn."""


def rotary_heads(
    qkv_N3HK: Tensor,
    turn_NC: Turn,
    gain_2MK: Tensor | None = None,
    counts: Sequence[int] = (),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [N, H, K]; without gains nothing is normed.

    Gains of queries and keys are those of `rms_norm`, one a modality, over rows sorted by modality.
    No gradient goes to the turn. ValueError where counts, rows and gains disagree.
    """
    if gain_2MK is not None and (sum(counts), len(counts)) != (len(qkv_N3HK), gain_2MK.shape[1]):
        raise ValueError(f"counts {counts} for rows of {tuple(qkv_N3HK.shape)} and their gains")
    dtypes = {qkv_N3HK.dtype, *(() if gain_2MK is None else (gain_2MK.dtype,))}
    dtype = qkv_N3HK.dtype if len(dtypes) == 1 else None
    if choose("rotary", _fastest(qkv_N3HK.device.type, dtype)) != "c":
        return reference(qkv_N3HK, turn_NC, gain_2MK, counts, eps)
    cosine_NC, sine_NC = (x.contiguous() for x in turn_NC)
    gain_2MK = qkv_N3HK.new_empty(2, 0, qkv_N3HK.shape[3]) if gain_2MK is None else gain_2MK
    q, k, v, _ = rotary_op(qkv_N3HK, cosine_NC, sine_NC, gain_2MK.contiguous(), list(counts), eps)
    return q, k, v


def reference(
    qkv_N3HK: Tensor, turn_NC: Turn, gain_2MK: Tensor | None, counts: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition."""
    q_NHK, k_NHK, v_NHK = qkv_N3HK.unbind(1)
    if gain_2MK is not None:
        q_NHK, k_NHK = (
            rms_norm(x, w, counts, eps) for x, w in zip((q_NHK, k_NHK), gain_2MK, strict=True)
        )
    return rotate(q_NHK, turn_NC), rotate(k_NHK, turn_NC), v_NHK


def rotate(x_NHK: Tensor, turn_NC: Turn) -> Tensor:
    """Pairs (k, k + K/2) of each head turned; [..., H, K] by angles [..., K/2]."""
    cosine_N1C, sine_N1C = (x.unsqueeze(-2) for x in turn_NC)
    a, b = x_NHK.chunk(2, dim=-1)
    y = torch.cat((a * cosine_N1C - b * sine_N1C, b * cosine_N1C + a * sine_N1C), dim=-1)
    return y.to(x_NHK.dtype)


@constant
def _fastest(device: str, dtype: torch.dtype | None) -> str:
    ready = device == "cpu" and dtype is torch.float32 and library("rotary") is not None
    return "c" if ready else "reference"


@torch.library.custom_op("plait::rotary", mutates_args=())
def rotary_op(
    qkv: Tensor, cosine: Tensor, sine: Tensor, gains: Tensor, counts: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [N, H, K] and the norms' scales [N, 2, H]; gains [2, 0, K] for none."""
    N, _, H, K = qkv.shape
    q, k, v = (qkv.new_empty(N, H, K) for _ in range(3))
    scale_N2H = qkv.new_empty(N, 2, H)
    if qkv.numel():
        first, stride = _rows(qkv)
        numbers = torch.tensor(counts, dtype=torch.int64), torch.tensor([eps])
        tensors = (first, cosine, sine, gains, *numbers, q, k, v, scale_N2H)
        call("rotary", "rotary_forward", (N, H, K, stride, gains.shape[1]), tensors)
    return q, k, v, scale_N2H


@torch.library.custom_op("plait::rotary_backward", mutates_args=())
def rotary_backward_op(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    gains: Tensor,
    scale: Tensor,
    counts: Sequence[int],
) -> list[Tensor]:
    """Gradients of qkv and of the gains."""
    N, _, H, K = qkv.shape
    dqkv_N3HK, dgain_2MK = qkv.new_empty(qkv.shape), torch.zeros_like(gains)
    if qkv.numel():
        first, stride = _rows(qkv)
        parts = gains.new_empty(-(-N // TOKENS), *gains.shape)
        numbers = torch.tensor(counts, dtype=torch.int64)
        out = (dqkv_N3HK, parts, dgain_2MK)
        given = (dq.contiguous(), dk.contiguous(), dv.contiguous(), first)
        tensors = (*given, cosine, sine, gains, numbers, scale, *out)
        call("rotary", "rotary_backward", (N, H, K, stride, gains.shape[1]), tensors)
    return [dqkv_N3HK, dgain_2MK]


@rotary_op.register_fake
def _(qkv, cosine, sine, gains, counts, eps):
    N, _, H, K = qkv.shape
    return *(qkv.new_empty(N, H, K) for _ in range(3)), qkv.new_empty(N, 2, H)


@rotary_backward_op.register_fake
def _(dq, dk, dv, qkv, cosine, sine, gains, scale, counts):
    return [qkv.new_empty(qkv.shape), torch.empty_like(gains)]


def _rows(qkv_N3HK: Tensor) -> tuple[Tensor, int]:
    """The first token, which has the address of all, and the stride from token to token."""
    if not qkv_N3HK[0].is_contiguous():
        qkv_N3HK = qkv_N3HK.contiguous()
    return qkv_N3HK[0], qkv_N3HK.stride(0)


def _save(ctx, inputs, output) -> None:
    qkv, cosine, sine, gains, ctx.counts, _ = inputs
    ctx.save_for_backward(qkv, cosine, sine, gains, output[3])


def _differentiate(ctx, dq, dk, dv, dscale):
    gradients = rotary_backward_op(dq, dk, dv, *ctx.saved_tensors, ctx.counts)
    return gradients[0], None, None, gradients[1], None, None


rotary_op.register_autograd(_differentiate, setup_context=_save)
