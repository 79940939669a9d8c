"""The selective state-space mixer (Mamba-1), with projections that may be untied by modality.

Mixture-of-Mamba (arXiv:2501.16295): the four projections may have weights for each modality; the
convolution, A and D are shared and see the tokens in their order, so the state mixes modalities.
The bias of the step size goes with its projection, and is the current token's; it is there whether
or not anything is untied, so with all tied this is Mamba. Convolution window and state start anew
at each document. Letters: `I` inner width, `S` states, `R` rank of the step size.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.kernels.causal_conv import causal_conv, causal_conv_step
from plait.kernels.scan import selective_scan, selective_scan_step
from plait.kernels.step_size import step_size
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import ModalityLinear, spread

STEP_MIN, STEP_MAX = 1e-3, 1e-1
"""Range of the initial step sizes."""


@dataclass(eq=False)
class MambaCache:
    """The last inputs of the convolution [B, K, I], oldest first, and the state [B, I, S]; A."""

    window_BKI: Tensor
    state_BIS: Tensor
    A_IS: Tensor

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows, which may repeat."""
        self.window_BKI, self.state_BIS = self.window_BKI[rows_B], self.state_BIS[rows_B]


class Mamba(nn.Module):
    """y = W_out(scan(silu(conv(x))) * silu(z)), where x, z = W_in(input)."""

    no_decay = ("A_log", "D", "dt_bias", "conv_bias")

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__()
        inner, self.states = config.expand * config.dim, config.state_dim
        self.rank = config.mamba_dt_rank
        untied = {p: modalities if p in config.untie else 1 for p in ("in", "x", "dt", "out")}
        self.in_proj = ModalityLinear(config.dim, 2 * inner, untied["in"])
        self.x_proj = ModalityLinear(inner, self.rank + 2 * self.states, untied["x"])
        self.dt_proj = ModalityLinear(self.rank, inner, untied["dt"], gain=3**-0.5)
        self.dt_bias = nn.Parameter(torch.empty(untied["dt"], inner))
        self.out_proj = ModalityLinear(inner, config.dim, untied["out"], gain=gain)
        self.conv_weight = nn.Parameter(torch.empty(inner, config.conv_width))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, self.states))
        self.D = nn.Parameter(torch.empty(inner))

    def reset_parameters(self) -> None:
        """Step sizes log-uniform, A = -(1 .. S), D = 1 (arXiv:2312.00752, section 3.6)."""
        with torch.no_grad():
            span = math.log(STEP_MAX / STEP_MIN)
            step = (torch.rand_like(self.dt_bias) * span).exp() * STEP_MIN
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus gives the step
            self.A_log.copy_(torch.arange(1, self.states + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)
        bound = self.conv_weight.shape[1] ** -0.5
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.zeros_(self.conv_bias)

    def forward(self, x_ND: Tensor, context: Context, cache: MambaCache | None = None) -> Tensor:
        """[N, D] to [N, D], both sorted; a cache, of one document a row, takes in their state."""
        assert context.document_BT is not None and context.reset_BT is not None
        shape, places = context.document_BT.shape, context.order.places
        u_NI, z_NI = self.in_proj(x_ND, context.order).chunk(2, dim=-1)
        if cache is not None:
            u_BTI = context.order.unsort(u_NI).unflatten(0, shape)
            cache.window_BKI = _window(u_BTI, context.document_BT >= 0, self.conv_weight.shape[1])
        conv = (self.conv_weight, self.conv_bias, context.document_BT)
        u_NI = F.silu(causal_conv(u_NI.unflatten(0, shape), *conv, places)).flatten(0, 1)
        dt_NI, B_NS, C_NS = self._selection(u_NI, context)
        reset_BT = context.reset_BT
        if cache is not None:  # a step of size 0 leaves the state as it is: padding, to the right
            padding_N = context.order.sort((context.document_BT < 0).flatten())
            dt_NI, reset_BT = dt_NI.masked_fill(padding_N[:, None], 0), None
        y_BTI, state_BIS = selective_scan(
            u_NI.unflatten(0, shape),
            dt_NI.unflatten(0, shape),
            self._A,
            B_NS.unflatten(0, shape),
            C_NS.unflatten(0, shape),
            self.D,
            reset_BT,
            places,
            return_state=True,
        )
        if cache is not None:
            cache.state_BIS = state_BIS
        return self.out_proj(y_BTI.flatten(0, 1) * F.silu(z_NI), context.order)

    def start(self, batch_size: int, device: torch.device) -> MambaCache:
        """An empty cache."""
        inner, taps = self.conv_weight.shape
        return MambaCache(
            torch.zeros(batch_size, taps, inner, device=device),
            torch.zeros(batch_size, inner, self.states, device=device),
            self._A.detach(),
        )

    def step(self, x_BD: Tensor, context: Context, cache: MambaCache) -> Tensor:
        """One position of each row, [B, D] sorted, to [B, D]."""
        u_BI, z_BI = self.in_proj(x_BD, context.order).chunk(2, dim=-1)
        u_BI, cache.window_BKI = causal_conv_step(
            cache.window_BKI, context.order.unsort(u_BI), self.conv_weight, self.conv_bias
        )
        u_BI = F.silu(u_BI)
        selection = self._selection(context.order.sort(u_BI), context)
        dt_BI, B_BS, C_BS = map(context.order.unsort, selection)
        y_BI, cache.state_BIS = selective_scan_step(
            cache.state_BIS, u_BI, dt_BI, cache.A_IS, B_BS, C_BS, self.D
        )
        return self.out_proj(context.order.sort(y_BI) * F.silu(z_BI), context.order)

    def active(self, modality: int) -> tuple[float, float]:
        """Parameters that a token meets: in products, and others."""
        shared = (self.conv_weight, self.conv_bias, self.A_log, self.D)
        return 0, self.dt_bias[0].numel() + sum(p.numel() for p in shared)

    @property
    def _A(self) -> Tensor:
        return -self.A_log.float().exp()

    def _selection(self, u_NI: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Step size, and input and output maps of the state, sorted; float32."""
        order, sizes = context.order, (self.rank, self.states, self.states)
        dt_NR, B_NS, C_NS = self.x_proj(u_NI, order).split(sizes, dim=-1)
        dt_NI = self.dt_proj(dt_NR, order)
        if context.layout is None:  # of a step's few values, torch's own is faster
            dt_NI = F.softplus(dt_NI.float() + spread(self.dt_bias, order))
        else:
            dt_NI = step_size(dt_NI, self.dt_bias, order.counts)
        return dt_NI, B_NS.float(), C_NS.float()


def _window(u_BTI: Tensor, real_BT: Tensor, taps: int) -> Tensor:
    """The last `taps` real positions of each row [B, K, I], zeros where it has fewer."""
    back_1K = torch.arange(-taps, 0, device=u_BTI.device)[None]
    at_BK = real_BT.sum(1, keepdim=True) + back_1K
    at_BK1 = at_BK.clamp(min=0)[..., None]
    window_BKI = u_BTI.gather(1, at_BK1.expand(-1, -1, u_BTI.shape[2]))
    return window_BKI.masked_fill((at_BK < 0)[..., None], 0)
