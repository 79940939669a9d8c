"""The selective scan in plain torch operations: any device and precision, memory linear in length.

The second-best path, for machines without a compiler. The states are kept every 32 steps; within a
group of steps only two small operations run per step, and all the rest for the group at once.
Letters: as scan.py, `L` steps of a group.
"""

import torch
from torch import Tensor

KEPT = 32


def forward(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT) -> tuple[Tensor, Tensor]:
    """y and the kept states [B, groups + 1, S, I]; the last of them is the final one."""
    h_BIS = u_BTI.new_zeros(len(u_BTI), *A_IS.shape)
    y_BTI, kept = torch.empty_like(u_BTI), [h_BIS]
    for group in _groups(u_BTI.shape[1]):
        inputs = (x[:, group] for x in (u_BTI, dt_BTI, B_BTS, reset_BT))
        _, h_LBIS, h_BIS = _states(h_BIS, A_IS, *inputs)
        y_BTI[:, group] = torch.einsum("lbis,bls->bli", h_LBIS, C_BTS[:, group])
        kept.append(h_BIS)
    y_BTI.addcmul_(u_BTI, D_I)
    return y_BTI, torch.stack(kept, 1).transpose(2, 3).contiguous()


def backward(dy_BTI, u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT, kept_BGSI) -> list[Tensor]:
    """Gradients of u, dt, A, B, C and D."""
    du_BTI, ddt_BTI = dy_BTI * D_I, torch.empty_like(dt_BTI)
    dA_IS, dB_BTS, dC_BTS = (torch.zeros_like(x) for x in (A_IS, B_BTS, C_BTS))
    carry_BIS = u_BTI.new_zeros(len(u_BTI), *A_IS.shape)
    for g, group in reversed(list(enumerate(_groups(u_BTI.shape[1])))):
        u, dt, B, C, dy, reset = (
            x[:, group] for x in (u_BTI, dt_BTI, B_BTS, C_BTS, dy_BTI, reset_BT)
        )
        h_BIS = kept_BGSI[:, g].transpose(1, 2).contiguous()
        decay_LBIS, h_LBIS, _ = _states(h_BIS, A_IS, u, dt, B, reset)
        dC_BTS[:, group] = torch.einsum("lbis,bli->bls", h_LBIS, dy)
        dh_LBIS = torch.einsum("bli,bls->lbis", dy, C).contiguous()
        for step in range(len(dh_LBIS) - 1, -1, -1):
            carry_BIS = dh_LBIS[step].add_(carry_BIS) * decay_LBIS[step]
        dB_BTS[:, group] = torch.einsum("lbis,bli->bls", dh_LBIS, dt * u)
        din_BLI = torch.einsum("lbis,bls->bli", dh_LBIS, B)
        before_LBIS = torch.cat([h_BIS[None], h_LBIS[:-1]])
        before_LBIS.masked_fill_(reset.T[:, :, None, None], 0)
        rated_LBIS = dh_LBIS.mul_(decay_LBIS).mul_(before_LBIS)
        ddt_BTI[:, group] = torch.einsum("lbis,is->bli", rated_LBIS, A_IS) + din_BLI * u
        dA_IS += torch.einsum("lbis,bli->is", rated_LBIS, dt)
        du_BTI[:, group] += din_BLI * dt
    return [du_BTI, ddt_BTI, dA_IS, dB_BTS, dC_BTS, (dy_BTI * u_BTI).sum((0, 1))]


def _states(h_BIS, A_IS, u_BLI, dt_BLI, B_BLS, reset_BL) -> tuple[Tensor, Tensor, Tensor]:
    """Decays (zero at a reset) and states of each step of a group, and a copy of the last."""
    reset_LB = reset_BL.T.contiguous()
    decay_LBIS = (dt_BLI.transpose(0, 1)[..., None] * A_IS).exp_()
    decay_LBIS.masked_fill_(reset_LB[:, :, None, None], 0)
    h_LBIS = torch.einsum("bli,bls->lbis", dt_BLI * u_BLI, B_BLS).contiguous()
    resets = reset_LB.any(1).tolist()
    for step, now_BIS in enumerate(h_LBIS):
        if resets[step]:
            h_BIS = h_BIS.masked_fill(reset_LB[step][:, None, None], 0)
        h_BIS = now_BIS.addcmul_(h_BIS, decay_LBIS[step])
    return decay_LBIS, h_LBIS, h_BIS.clone()


def _groups(length: int) -> list[slice]:
    return [slice(first, min(first + KEPT, length)) for first in range(0, length, KEPT)]
