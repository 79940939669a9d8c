"""The selective scan of scan.c: float32 on CPUs, contiguous tensors."""

import torch
from torch import Tensor

from plait.kernels.compile_c import call, library

KEPT, LANES = 32, 64
"""Steps between kept states, and channels of a task; the same numbers stand in scan.c."""


def available() -> bool:
    """Whether scan.c is compiled, or could be now."""
    return library("scan") is not None


def forward(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, place_N) -> tuple[Tensor, Tensor]:
    """y and the kept states [B, groups + 1, S, I]; the last of them is the final one.

    Step t of row b stands at `place_N[b * T + t]` of u, dt, B, C and y, int64.
    """
    B, T, I = u_BTI.shape
    y_BTI = torch.empty_like(u_BTI)
    kept_BGSI = u_BTI.new_empty(B, -(-T // KEPT) + 1, A_IS.shape[1], I)
    _call(
        "scan_forward",
        (B, T, I, A_IS.shape[1]),
        (u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, place_N, y_BTI, kept_BGSI),
    )
    return y_BTI, kept_BGSI


def backward(
    dy_BTI, u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, place_N, kept_BGSI
) -> list[Tensor]:
    """Gradients of u, dt, A, B, C and D."""
    B, T, I = u_BTI.shape
    gradients = [torch.empty_like(x) for x in (u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I)]
    blocks = -(-I // LANES)
    parts = [
        x.new_empty(n, *x.shape) for x, n in ((A_IS, B), (B_BTS, blocks), (C_BTS, blocks), (D_I, B))
    ]
    inputs = (dy_BTI, u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, place_N, kept_BGSI)
    _call("scan_backward", (B, T, I, A_IS.shape[1]), (*inputs, *gradients, *parts))
    return gradients


def _call(name: str, sizes: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
    if call("scan", name, sizes, tensors):
        raise MemoryError(f"{name}: no memory for the states of {sizes}")
