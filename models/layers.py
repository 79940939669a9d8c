"""The layers that all parts are built of: a linear map and a norm that may differ by modality.

Weights are stacked over M, so an untied part is one parameter: M = 1 is the plain layer, and a
modality without tokens gets a gradient of exact zeros. Rows come sorted by modality (`Order`).
Every module here draws its weights anew in `reset_parameters`, from torch's global generator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.grouped_linear import grouped_linear
from plait.kernels.rms_norm import rms_norm
from plait.models.plan import Order


class ModalityLinear(nn.Module):
    """y = W[m] x + b[m] for rows sorted by modality m; weight [M, O, I], bias [M, O]."""

    no_decay = ("bias",)

    def __init__(
        self, inputs: int, outputs: int, modalities: int = 1, *, bias: bool = False, gain: float = 1
    ) -> None:
        """`gain` scales the initial weights, whose standard deviation is inputs ** -0.5."""
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(modalities, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(modalities, outputs)) if bias else None

    def reset_parameters(self) -> None:
        """Truncated normal weights, zero bias."""
        truncated_normal(self.weight, self.gain * self.weight.shape[2] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_ND: Tensor, order: Order) -> Tensor:
        """[N, I] to [N, O]."""
        m = 0 if len(self.weight) == 1 else order.alone
        if m is not None:
            return F.linear(x_ND, self.weight[m], None if self.bias is None else self.bias[m])
        return grouped_linear(x_ND, self.weight, order.counts, self.bias)

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets: in products, and others."""
        return self.weight[0].numel(), 0 if self.bias is None else self.bias[0].numel()


class ModalityNorm(nn.Module):
    """RMSNorm over the last axis with a gain for each modality, [M, D]."""

    no_decay = ("weight", "bias")

    def __init__(self, dim: int, modalities: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(modalities, dim))

    def reset_parameters(self) -> None:
        """Gain 1."""
        nn.init.ones_(self.weight)

    def forward(self, x_ND: Tensor, order: Order) -> Tensor:
        """[N, ..., D] to the same shape, in its dtype."""
        return rms_norm(x_ND, *self.gains(x_ND, order), self.eps)

    def gains(self, x_ND: Tensor, order: Order) -> tuple[Tensor, tuple[int, ...]]:
        """Those of the rows, [M, D] in their dtype, and how many rows have each."""
        weight_MD = self.weight.to(x_ND.dtype)
        m = 0 if len(weight_MD) == 1 else order.alone
        return (weight_MD, order.counts) if m is None else (weight_MD[m : m + 1], (len(x_ND),))

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets: in products, and others."""
        return 0, self.weight[0].numel()


class ModalityLayerNorm(nn.Module):
    """LayerNorm over the last axis with a gain and bias for each modality, [M, D]."""

    no_decay = ("weight", "bias")

    def __init__(self, dim: int, modalities: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(modalities, dim))
        self.bias = nn.Parameter(torch.empty(modalities, dim))

    def reset_parameters(self) -> None:
        """Gain 1, bias 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_ND: Tensor, order: Order) -> Tensor:
        """[N, ..., D] to the same shape, in its dtype."""
        size = self.weight.shape[1:]
        weight_MD, bias_MD = self.weight.to(x_ND.dtype), self.bias.to(x_ND.dtype)
        m = 0 if len(weight_MD) == 1 else order.alone
        if m is not None:
            return F.layer_norm(x_ND, size, weight_MD[m], bias_MD[m], self.eps)
        parts = zip(x_ND.split(order.counts), weight_MD, bias_MD, strict=True)
        return torch.cat([F.layer_norm(x_nD, size, w_D, b_D, self.eps) for x_nD, w_D, b_D in parts])

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets: in products, and others."""
        return 0, 2 * self.weight[0].numel()


def take(x_ND: Tensor, row_J: Tensor) -> Tensor:
    """Rows of x, some of them more than once; twenty times faster backward than index_select's."""
    return _Take.apply(x_ND, row_J)


def put(y_JD: Tensor, row_J: Tensor, rows: int) -> Tensor:
    """Rows added up at their places among `rows` rows; the same result whatever the threads."""
    return _Put.apply(y_JD, row_J, rows)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, row_J):
        ctx.save_for_backward(row_J)
        ctx.rows = len(x_ND)
        return x_ND.index_select(0, row_J)

    @staticmethod
    def backward(ctx, *dy):
        return _Put.apply(dy[0], *ctx.saved_tensors, ctx.rows), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_JD, row_J, rows):
        ctx.save_for_backward(row_J)
        index_JD = row_J[:, None].expand_as(y_JD)
        return y_JD.new_zeros(rows, y_JD.shape[1]).scatter_add_(0, index_JD, y_JD)

    @staticmethod
    def backward(ctx, *dy):
        return _Take.apply(dy[0], *ctx.saved_tensors), None, None


def spread(w_MD: Tensor, order: Order) -> Tensor:
    """A vector a modality to one a sorted row, [N, D]; with M = 1 it stays [1, D]."""
    m = 0 if len(w_MD) == 1 else order.alone
    if m is not None:
        return w_MD[m : m + 1]
    return torch.cat([w_D.expand(n, -1) for n, w_D in zip(order.counts, w_MD, strict=True)])


def rotation(position_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, T, K/2] of the rotary angles of positions (arXiv:2104.09864)."""
    steps = torch.arange(0, head_dim, 2, device=position_BT.device, dtype=torch.float32)
    angle = position_BT[..., None].float() * theta ** (-steps / head_dim)
    return angle.cos(), angle.sin()


def truncated_normal(weight: Tensor, std: float) -> None:
    """Fill with a normal distribution cut at three standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
