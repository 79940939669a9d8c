"""A linear layer with one weight a modality, over rows in sequence order: one product a run.

For few and long runs of rows that must keep their order: every run reads the weights again. At 15
runs in 2048 rows, 512 to 2048, it costs 1.04 times the sorted `grouped_linear`. Our Mamba needs no
such layer, for its convolution and scan read sorted rows where they stand. Letters:
models/README.md; here `O` are outputs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels.choose import choose


def run_length_linear(
    x_ND: Tensor, w_MOD: Tensor, runs: Sequence[tuple[int, int]], bias_MO: Tensor | None = None
) -> Tensor:
    """Rows in runs of (modality, length), one after another, each by its weight; [N, O].

    An absent modality's weight gets a gradient of exact zeros. ValueError where runs do not fit.

    >>> w_MOD = torch.tensor([[[1.0]], [[10.0]]])
    >>> run_length_linear(torch.ones(4, 1), w_MOD, [(0, 1), (1, 2), (0, 1)]).flatten().tolist()
    [1.0, 10.0, 10.0, 1.0]
    """
    runs = tuple((int(m), int(n)) for m, n in runs)
    fits = all(0 <= m < len(w_MOD) and n >= 0 for m, n in runs)
    if not fits or sum(n for _, n in runs) != len(x_ND):
        raise ValueError(f"runs {runs[:4]}... for {len(x_ND)} rows and {len(w_MOD)} modalities")
    if choose("run_length_linear", "products in place") == "reference":
        return reference(x_ND, w_MOD, runs, bias_MO)
    if torch.is_autocast_enabled(x_ND.device.type):
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND, w_MOD = x_ND.to(dtype), w_MOD.to(dtype)
        bias_MO = None if bias_MO is None else bias_MO.to(dtype)
    return _RunLengthLinear.apply(x_ND, w_MOD, runs, bias_MO)


def reference(
    x_ND: Tensor, w_MOD: Tensor, runs: Sequence[tuple[int, int]], bias_MO: Tensor | None = None
) -> Tensor:
    """The definition: a linear layer a run."""
    parts = zip(x_ND.split([n for _, n in runs]), runs, strict=True)
    biases = [None] * len(w_MOD) if bias_MO is None else list(bias_MO)
    nothing = 0 * (w_MOD.sum() + (0 if bias_MO is None else bias_MO.sum()))
    outputs = [F.linear(x_nD, w_MOD[m], biases[m]) for x_nD, (m, _) in parts]
    return torch.cat([x_ND.new_empty(0, w_MOD.shape[1]), *outputs]) + nothing


class _RunLengthLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, w_MOD, runs, bias_MO):
        ctx.save_for_backward(x_ND, w_MOD)
        ctx.runs, ctx.has_bias = runs, bias_MO is not None
        y_NO = x_ND.new_empty(len(x_ND), w_MOD.shape[1])
        with torch.autocast(x_ND.device.type, enabled=False):
            for m, rows in _segments(runs):
                if bias_MO is None:
                    torch.mm(x_ND[rows], w_MOD[m].T, out=y_NO[rows])
                else:
                    torch.addmm(bias_MO[m], x_ND[rows], w_MOD[m].T, out=y_NO[rows])
        return y_NO

    @staticmethod
    def backward(ctx, *dy):
        (dy_NO,) = dy
        x_ND, w_MOD = ctx.saved_tensors
        dx_ND = dw_MOD = dbias_MO = None
        if ctx.needs_input_grad[0]:
            dx_ND = torch.empty_like(x_ND, memory_format=torch.contiguous_format)
            for m, rows in _segments(ctx.runs):
                torch.mm(dy_NO[rows], w_MOD[m], out=dx_ND[rows])
        if ctx.needs_input_grad[1]:
            dw_MOD = torch.zeros_like(w_MOD, memory_format=torch.contiguous_format)
            for m, rows in _segments(ctx.runs):
                dw_MOD[m].addmm_(dy_NO[rows].T, x_ND[rows])
        if ctx.has_bias and ctx.needs_input_grad[3]:
            dbias_MO = dy_NO.new_zeros(w_MOD.shape[:2])
            for m, rows in _segments(ctx.runs):
                dbias_MO[m] += dy_NO[rows].sum(0)
        return dx_ND, dw_MOD, None, dbias_MO


def _segments(runs: Sequence[tuple[int, int]]) -> list[tuple[int, slice]]:
    """(modality, its rows) of those runs that have rows."""
    segments, start = [], 0
    for m, length in runs:
        if length:
            segments.append((m, slice(start, start + length)))
        start += length
    return segments
