"""The selective scan of Mamba (arXiv:2312.00752, section 3) with resets, and its single step.

Special here: it trains on CPUs. A textbook loop's backward is quadratic in the length; here a C
file, compiled at its first use, trains on 1024 tokens of 512 channels and 16 states 40 times faster
than the loop below, which is the definition and linear. Without a compiler `scan_chunked` runs in
plain torch (2.5 times faster), and on CUDA `scan_triton`. All keep the state every 32 steps and
compute the steps between again in the backward; all give the same result at every run, whatever the
threads. Letters: models/README.md; here `I` is the inner width, `S` the states of a channel, and
`G` groups of 32 steps.
"""

import importlib.util

import torch
from torch import Tensor

from plait.kernels import scan_c, scan_chunked
from plait.kernels.choose import choose, constant
from plait.kernels.permute import permute_rows

KEPT = 32
"""Steps between kept states, in every path."""


def selective_scan(
    u_BTI: Tensor,
    dt_BTI: Tensor,
    A_IS: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    D_I: Tensor,
    reset_BT: Tensor | None = None,
    places: tuple[Tensor, Tensor] | None = None,
    *,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y [B, T, I]: h = exp(dt A) h + dt B u, y = C h + D u, with h zero before a reset's position.

    `dt` is after softplus and not negative, A is negative, reset is bool. Computed in float32, or
    in float64 if u is; y has u's precision. With `return_state` it is (y, h [B, I, S] after the
    last position), and no gradient flows through that state. ValueError where shapes disagree.
    With `places`, u, dt, B, C and y are in another order, in which [B, T] is but a shape: position
    t of row b stands at `places[0][b * T + t]`, and `places[1]` is the inverse permutation. The C
    path reads them where they stand.
    """
    if reset_BT is None:
        reset_BT = torch.zeros(u_BTI.shape[:2], dtype=torch.bool, device=u_BTI.device)
    _check(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT)
    dtype = torch.float64 if u_BTI.dtype is torch.float64 else torch.float32
    inputs = [x.to(dtype) for x in (u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I)] + [reset_BT]
    path = choose("selective_scan", _fastest(u_BTI.device.type, dtype))
    moved = places if path != "c" else None
    if moved is not None:
        ordered = {i: permute_rows(inputs[i], *moved) for i in (0, 1, 3, 4)}
        inputs = [ordered.get(i, x) for i, x in enumerate(inputs)]
    if path == "reference":
        y_BTI, h_BIS = reference(*inputs)
    else:
        place_N = places[0] if places is not None and moved is None else None
        y_BTI, kept_BGSI = scan_op(*(x.contiguous() for x in inputs), path, place_N)
        h_BIS = kept_BGSI[:, -1].transpose(1, 2)
    y_BTI = y_BTI.to(u_BTI.dtype)
    y_BTI = y_BTI if moved is None else permute_rows(y_BTI, *moved[::-1])
    return (y_BTI, h_BIS.detach()) if return_state else y_BTI


def selective_scan_step(
    state_BIS: Tensor,
    u_BI: Tensor,
    dt_BI: Tensor,
    A_IS: Tensor,
    B_BS: Tensor,
    C_BS: Tensor,
    D_I: Tensor,
) -> tuple[Tensor, Tensor]:
    """One position: (y [B, I], the new state [B, I, S]); a reset is a state of zeros."""
    decay_BIS = (dt_BI[..., None] * A_IS).exp()  # eq. 4
    state_BIS = decay_BIS * state_BIS + (dt_BI * u_BI)[..., None] * B_BS[:, None]  # eq. 2a
    return (state_BIS * C_BS[:, None]).sum(-1) + D_I * u_BI, state_BIS  # eq. 2b


def reference(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT) -> tuple[Tensor, Tensor]:
    """The definition: one step after another; (y, the last state)."""
    h_BIS = u_BTI.new_zeros(len(u_BTI), *A_IS.shape)
    outputs = []
    steps = (x.unbind(1) for x in (u_BTI, dt_BTI, B_BTS, C_BTS, reset_BT))
    for u_BI, dt_BI, B_BS, C_BS, reset_B in zip(*steps, strict=True):
        h_BIS = h_BIS.masked_fill(reset_B[:, None, None], 0)
        y_BI, h_BIS = selective_scan_step(h_BIS, u_BI, dt_BI, A_IS, B_BS, C_BS, D_I)
        outputs.append(y_BI)
    return torch.stack(outputs, 1) if outputs else u_BTI * D_I, h_BIS


@constant
def _fastest(device: str, dtype: torch.dtype) -> str:
    """The fastest path there is: triton, c or chunked."""
    if device == "cuda" and dtype is torch.float32 and importlib.util.find_spec("triton"):
        return "triton"
    return "c" if device == "cpu" and dtype is torch.float32 and scan_c.available() else "chunked"


def _module(path: str):
    if path == "triton":
        from plait.kernels import scan_triton

        return scan_triton
    return scan_c if path == "c" else scan_chunked


@torch.library.custom_op("plait::selective_scan", mutates_args=())
def scan_op(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    reset: Tensor,
    path: str,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y [B, T, I] and the kept states [B, G + 1, S, I], the final one last; contiguous inputs."""
    placed = _placed(path, reset, place)
    y, kept = _module(path).forward(u, dt, A, B, C, D, reset, *placed)
    return y.contiguous(), kept.contiguous()


@torch.library.custom_op("plait::selective_scan_backward", mutates_args=())
def scan_backward_op(
    dy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    reset: Tensor,
    kept: Tensor,
    path: str,
    place: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of u, dt, A, B, C and D."""
    placed = _placed(path, reset, place)
    inputs = [dy.contiguous(), u, dt, A, B, C, D, reset, *placed, kept]
    return [dx.contiguous() for dx in _module(path).backward(*inputs)]  # as the fake says


def _placed(path: str, reset: Tensor, place: Tensor | None) -> tuple[Tensor, ...]:
    """Where steps stand, which the C path alone wants to know."""
    if path != "c":
        assert place is None
        return ()
    return (torch.arange(reset.numel()) if place is None else place,)


@scan_op.register_fake
def _(u, dt, A, B, C, D, reset, path, place=None):
    groups = (u.shape[1] + KEPT - 1) // KEPT
    return torch.empty_like(u), u.new_empty(u.shape[0], groups + 1, A.shape[1], u.shape[2])


@scan_backward_op.register_fake
def _(dy, u, dt, A, B, C, D, reset, kept, path, place=None):
    return [torch.empty_like(x) for x in (u, dt, A, B, C, D)]


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.path, place = inputs
    ctx.save_for_backward(*tensors, output[1], place)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dkept):
    if dy is None:
        return (None,) * 9
    *tensors, place = ctx.saved_tensors
    return (*scan_backward_op(dy, *tensors, ctx.path, place), None, None, None)


scan_op.register_autograd(_differentiate, setup_context=_save)


def _check(u_BTI, dt_BTI, A_IS, B_BTS, C_BTS, D_I, reset_BT) -> None:
    B, T, I = u_BTI.shape
    S = A_IS.shape[-1]
    if not T:
        raise ValueError(f"u is {(B, T, I)}: a scan needs a position")
    wanted = {"dt": (B, T, I), "A": (I, S), "B": (B, T, S), "C": (B, T, S), "D": (I,)}
    given = zip(wanted.items(), (dt_BTI, A_IS, B_BTS, C_BTS, D_I), strict=True)
    for (name, shape), tensor in given:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; with u {(B, T, I)} it is {shape}")
    if tuple(reset_BT.shape) != (B, T) or reset_BT.dtype is not torch.bool:
        raise ValueError(f"reset is {reset_BT.dtype} {tuple(reset_BT.shape)}, not bool {(B, T)}")
