"""The selective scan in Triton, for CUDA and ROCm; float32, contiguous tensors.

A program takes a block of channels of one row and loops over time with the states in registers (an
associative scan in chunks needs 255 registers and spills). The backward computes a group's states
again into memory of its own and walks back. There are no atomics: what several programs add to is
written in parts and summed by torch, so every run gives the same result. Letters: as scan.py; `J`
blocks of `BI` channels, `BS` states rounded up to a power of two.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

KEPT = 32
FORWARD, BACKWARD = 1024, 512
"""Elements of a program's states: 8 and 4 a thread, for sm_90's registers."""


@triton.jit
def forward_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, y_ptr, kept_ptr, T, I, S, G,
    BI: tl.constexpr, BS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Writes y and the kept states."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    s = tl.arange(0, BS)
    in_i, in_s = i < I, s < S
    in_is = in_i[:, None] & in_s[None, :]
    rate = tl.load(A_ptr + i[:, None] * S + s[None, :], mask=in_is, other=0.0) * 1.4426950408889634
    d = tl.load(D_ptr + i, mask=in_i, other=0.0)
    kept_is = kept_ptr + b * (G + 1) * S * I + s[None, :] * I + i[:, None]
    h = tl.zeros((BI, BS), tl.float32)
    for g in range(G):
        tl.store(kept_is, h, mask=in_is)
        kept_is += S * I
        for k in tl.range(0, KEPT, num_stages=3):
            t = g * KEPT + k
            at, now = b * T + t, t < T
            u = tl.load(u_ptr + at * I + i, mask=in_i & now, other=0.0)
            dt = tl.load(dt_ptr + at * I + i, mask=in_i & now, other=0.0)
            bs = tl.load(B_ptr + at * S + s, mask=in_s & now, other=0.0)
            cs = tl.load(C_ptr + at * S + s, mask=in_s & now, other=0.0)
            reset = tl.load(reset_ptr + at, mask=now, other=0)
            h = tl.where(reset != 0, 0.0, h)
            h = tl.exp2(dt[:, None] * rate) * h + (dt * u)[:, None] * bs[None, :]
            y = tl.sum(h * cs[None, :], 1) + d * u
            tl.store(y_ptr + at * I + i, y, mask=in_i & now)
    tl.store(kept_is, h, mask=in_is)


@triton.jit
def backward_kernel(
    dy_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, kept_ptr, before_ptr,
    du_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, T, I, S, G,
    BI: tl.constexpr, BS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Writes du, ddt, and in parts dA [B, I, S], dB and dC [J, B, T, S], dD [B, I]."""
    j = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    J, B = tl.num_programs(0), tl.num_programs(1)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    s = tl.arange(0, BS)
    in_i, in_s = i < I, s < S
    in_is = in_i[:, None] & in_s[None, :]
    rate = tl.load(A_ptr + i[:, None] * S + s[None, :], mask=in_is, other=0.0) * 1.4426950408889634
    d = tl.load(D_ptr + i, mask=in_i, other=0.0)
    tile = tl.arange(0, BI)[:, None] * BS + s[None, :]
    before_is = before_ptr + (b * J + j) * KEPT * BI * BS + tile
    carry = tl.zeros((BI, BS), tl.float32)
    dA = tl.zeros((BI, BS), tl.float32)
    dD = tl.zeros((BI,), tl.float32)
    for back in range(G):
        g = G - 1 - back
        kept_is = kept_ptr + (b * (G + 1) + g) * S * I + s[None, :] * I + i[:, None]
        h = tl.load(kept_is, mask=in_is, other=0.0)
        for k in range(KEPT):
            t = g * KEPT + k
            at, now = b * T + t, t < T
            u = tl.load(u_ptr + at * I + i, mask=in_i & now, other=0.0)
            dt = tl.load(dt_ptr + at * I + i, mask=in_i & now, other=0.0)
            bs = tl.load(B_ptr + at * S + s, mask=in_s & now, other=0.0)
            reset = tl.load(reset_ptr + at, mask=now, other=0)
            h = tl.where(reset != 0, 0.0, h)
            tl.store(before_is + k * BI * BS, h)
            h = tl.exp2(dt[:, None] * rate) * h + (dt * u)[:, None] * bs[None, :]
        tl.debug_barrier()
        for k_back in range(KEPT):
            k = KEPT - 1 - k_back
            t = g * KEPT + k
            at, now = b * T + t, t < T
            dy = tl.load(dy_ptr + at * I + i, mask=in_i & now, other=0.0)
            u = tl.load(u_ptr + at * I + i, mask=in_i & now, other=0.0)
            dt = tl.load(dt_ptr + at * I + i, mask=in_i & now, other=0.0)
            bs = tl.load(B_ptr + at * S + s, mask=in_s & now, other=0.0)
            cs = tl.load(C_ptr + at * S + s, mask=in_s & now, other=0.0)
            reset = tl.load(reset_ptr + at, mask=now, other=0)
            before = tl.load(before_is + k * BI * BS)
            decay = tl.exp2(dt[:, None] * rate)
            after = decay * before + (dt * u)[:, None] * bs[None, :]
            dh = carry + dy[:, None] * cs[None, :]
            part = ((j * B + b) * T + t) * S + s
            tl.store(dC_ptr + part, tl.sum(dy[:, None] * after, 0), mask=in_s & now)
            tl.store(dB_ptr + part, tl.sum(dh * (dt * u)[:, None], 0), mask=in_s & now)
            din = tl.sum(dh * bs[None, :], 1)
            dexponent = dh * decay * before
            # the rates are in units of log2
            ddt = tl.sum(dexponent * rate, 1) * 0.6931471805599453 + din * u
            tl.store(du_ptr + at * I + i, din * dt + dy * d, mask=in_i & now)
            tl.store(ddt_ptr + at * I + i, ddt, mask=in_i & now)
            dA += dexponent * dt[:, None]
            dD += dy * u
            carry = tl.where(reset != 0, 0.0, dh * decay)
        tl.debug_barrier()
    tl.store(dA_ptr + (b * I + i[:, None]) * S + s[None, :], dA, mask=in_is)
    tl.store(dD_ptr + b * I + i, dD, mask=in_i)


def forward(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT) -> tuple[Tensor, Tensor]:
    """y and the kept states [B, groups + 1, S, I]; the last of them is the final one."""
    B, T, I = u_BTI.shape
    S, G = A_IS.shape[1], -(-T // KEPT)
    y_BTI, kept_BGSI = torch.empty_like(u_BTI), u_BTI.new_empty(B, G + 1, S, I)
    inputs = (u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT.view(torch.uint8))
    BI, BS = tile(S, FORWARD)
    with _device(u_BTI):
        grid = (triton.cdiv(I, BI), B)
        forward_kernel[grid](*inputs, y_BTI, kept_BGSI, T, I, S, G, BI=BI, BS=BS, KEPT=KEPT)
    return y_BTI, kept_BGSI


def backward(dy_BTI, u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, kept_BGSI) -> list[Tensor]:
    """Gradients of u, dt, A, B, C and D."""
    B, T, I = u_BTI.shape
    S, G = A_IS.shape[1], -(-T // KEPT)
    BI, BS = tile(S, BACKWARD)
    J = triton.cdiv(I, BI)
    du_BTI, ddt_BTI = torch.empty_like(u_BTI), torch.empty_like(u_BTI)
    dB_JBTS, dC_JBTS = (u_BTI.new_empty(J, B, T, S) for _ in range(2))
    parts = (u_BTI.new_empty(B, I, S), dB_JBTS, dC_JBTS, u_BTI.new_empty(B, I))
    before = u_BTI.new_empty(B, J, KEPT, BI, BS)
    inputs = (dy_BTI, u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT.view(torch.uint8))
    with _device(u_BTI):
        backward_kernel[(J, B)](
            *inputs, kept_BGSI, before, du_BTI, ddt_BTI, *parts, T, I, S, G,
            BI=BI, BS=BS, KEPT=KEPT,
        )  # fmt: skip
    return [du_BTI, ddt_BTI, *(part.sum(0) for part in parts)]


def tile(states: int, elements: int) -> tuple[int, int]:
    """Channels and states of a program of at most so many elements, by 4 warps."""
    BS = triton.next_power_of_2(states)
    return min(64, max(16, elements // BS)), BS


def _device(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
