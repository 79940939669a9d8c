"""The gated feed-forward (SwiGLU, arXiv:2002.05202), with weights that may be untied."""

from torch import Tensor, nn

from plait.kernels.gated_silu import gated_silu
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.layers import ModalityLinear


class FeedForward(nn.Module):
    """W_out(silu(W_gate x) * W_up x), gate and up as one product."""

    def __init__(self, config: ModelConfig, modalities: int, gain: float) -> None:
        super().__init__()
        modalities = modalities if "ffn" in config.untie else 1
        self.gate_up = ModalityLinear(config.dim, 2 * config.ffn_dim, modalities)
        self.down = ModalityLinear(config.ffn_dim, config.dim, modalities, gain=gain)

    def forward(self, x_ND: Tensor, context: Context) -> Tensor:
        """[N, D] to [N, D], both sorted."""
        return self.down(gated_silu(self.gate_up(x_ND, context.order)), context.order)
