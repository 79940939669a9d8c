"""The selective scan in plain torch operations: any device and precision, memory linear in length.

The second-best path, for machines without a compiler. The states are kept every 32 steps; within a
group of steps only two small operations run per step, and all the rest for the group at once.
Letters: as scan.py, `L` steps of a group; time comes first inside.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

KEPT = 32


def forward(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT) -> tuple[Tensor, Tensor]:
    """y and the kept states [B, groups + 1, S, I]; the last of them is the final one."""
    h_BIS = u_BTI.new_zeros(len(u_BTI), *A_IS.shape)
    outputs, kept = [u_BTI.new_empty(0, *u_BTI[:, 0].shape)], [h_BIS]
    for u, dt, B, C, reset in _groups(u_BTI, dt_BTI, B_BTS, C_BTS, reset_BT):
        _, h_LBIS = _states(h_BIS, A_IS, u, dt, B, reset)
        outputs.append((h_LBIS @ C[..., None]).squeeze(-1))
        h_BIS = h_LBIS[-1].clone()
        kept.append(h_BIS)
    y_BTI = torch.cat(outputs).transpose(0, 1) + u_BTI * D_I
    return y_BTI.contiguous(), torch.stack(kept, 1).transpose(2, 3).contiguous()


def backward(dy_BTI, u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, kept_BGSI) -> list[Tensor]:
    """Gradients of u, dt, A, B, C and D."""
    dA_IS, carry_BIS = torch.zeros_like(A_IS), u_BTI.new_zeros(len(u_BTI), *A_IS.shape)
    found = []
    groups = list(enumerate(_groups(u_BTI, dt_BTI, B_BTS, C_BTS, reset_BT, dy_BTI)))
    for g, (u, dt, B, C, reset, dy) in reversed(groups):
        h_BIS = kept_BGSI[:, g].transpose(1, 2).contiguous()
        decay_LBIS, h_LBIS = _states(h_BIS, A_IS, u, dt, B, reset)
        dh_LBIS = dy[..., None] * C[:, :, None]
        for step in range(len(dh_LBIS) - 1, -1, -1):
            carry_BIS = dh_LBIS[step].add_(carry_BIS) * decay_LBIS[step]
        dC_LBS = (dy[:, :, None] @ h_LBIS).squeeze(2)
        dB_LBS = ((dt * u)[:, :, None] @ dh_LBIS).squeeze(2)
        din_LBI = (dh_LBIS @ B[..., None]).squeeze(-1)
        dexponent_LBIS = dh_LBIS.mul_(decay_LBIS)
        dexponent_LBIS[0].mul_(h_BIS.masked_fill_(reset[0][:, None, None], 0))
        dexponent_LBIS[1:].mul_(h_LBIS[:-1].masked_fill_(reset[1:, :, None, None], 0))
        ddt_LBI = (dexponent_LBIS * A_IS).sum(-1) + din_LBI * u
        dA_IS += dexponent_LBIS.mul_(dt[..., None]).sum((0, 1))
        found.append((din_LBI * dt, ddt_LBI, dB_LBS, dC_LBS))
    du, ddt, dB, dC = (torch.cat(x[::-1]).transpose(0, 1) for x in zip(*found, strict=True))
    dD_I = (dy_BTI * u_BTI).sum((0, 1))
    return [du + dy_BTI * D_I, ddt.contiguous(), dA_IS, dB.contiguous(), dC.contiguous(), dD_I]


def _states(h_BIS, A_IS, u_LBI, dt_LBI, B_LBS, reset_LB) -> tuple[Tensor, Tensor]:
    """Decays (zero at a reset) and states of each step of a group."""
    decay_LBIS = (dt_LBI[..., None] * A_IS).exp_()
    h_LBIS = (dt_LBI * u_LBI)[..., None] * B_LBS[:, :, None]
    resets = reset_LB.any(1).tolist()
    for step, (now_BIS, decay_BIS) in enumerate(zip(h_LBIS, decay_LBIS, strict=True)):
        if resets[step]:
            inside_B11 = ~reset_LB[step, :, None, None]
            decay_BIS.mul_(inside_B11)
            h_BIS = h_BIS.masked_fill(~inside_B11, 0)
        h_BIS = now_BIS.addcmul_(h_BIS, decay_BIS)
    return decay_LBIS, h_LBIS


def _groups(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors [B, T, ...] as [L, B, ...] of each group of steps."""
    for group in zip(*(x.transpose(0, 1).contiguous().split(KEPT) for x in tensors), strict=True):
        yield list(group)
