"""Each part against a loop written token by token from its equations, gradients included."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from plait.models.attention import Attention
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.feed_forward import FeedForward
from plait.models.layers import ModalityLayerNorm, ModalityNorm, rotation
from plait.models.mamba import Mamba
from plait.models.memory import Memory
from plait.models.plan import Plan
from plait.models.values import ValueTable

ROWS = ((6, 5), (3, 8))
MAMBA = ("in", "x", "dt", "out")
UNTIED = ("qkv", "o", "ffn", "norm")


def built(cls, config: ModelConfig) -> nn.Module:
    """The part with random parameters everywhere, gains and biases too."""
    torch.manual_seed(0)
    part = cls(config, 3, 1.0)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return part


def table(rows: int, width: int) -> ValueTable:
    values = ValueTable(rows, width)
    nn.init.normal_(values.weight)
    return values


def context_of(plan: Plan, config: ModelConfig) -> Context:
    order = plan.order if config.by_modality else plan.order.unsorted()
    position_BT = order.sort(plan.position_BT.flatten()).view_as(plan.position_BT)
    return Context(
        order=order,
        turn=rotation(position_BT, config.head_dim, config.rope_theta),
        layout=plan.sorted_layout if config.by_modality else plan.layout,
        document_BT=plan.document_BT,
        reset_BT=plan.reset_BT,
        values=table(config.memory_keys**2, config.value_dim),
    )


def compare(part: nn.Module, config: ModelConfig, batch, loop, tolerance=1e-5) -> None:
    """`loop(part, x_BTD, batch, context)` gives the part's output; inputs, weights by gradient."""
    plan = Plan.of(batch)
    context = context_of(plan, config)
    x_BTD = torch.randn(*batch.tokens_BT.shape, config.dim).requires_grad_()
    dy_BTD = torch.randn_like(x_BTD) * (batch.document_BT >= 0)[..., None]
    leaves = [x_BTD, *(p for p in part.parameters() if p.requires_grad)]
    values = context.values
    assert values is not None

    def fast(x_BTD: Tensor) -> Tensor:
        y_ND = part(context.order.sort(x_BTD.flatten(0, 1)), context)
        return context.order.unsort(y_ND).view_as(x_BTD)

    results = []
    for function in (fast, lambda x_BTD: loop(part, x_BTD, batch, context)):
        y_BTD = function(x_BTD)
        grads = [
            *torch.autograd.grad(
                (y_BTD * dy_BTD).sum(), [*leaves, values.weight], allow_unused=True
            )
        ]
        if isinstance(part, Memory):
            assert (grads[-1] is None) == (function is fast)
            grads[-1] = values.gradient().to_dense() if function is fast else grads[-1]
        else:
            assert grads.pop() is None
        real_BTD = y_BTD.detach()[batch.document_BT >= 0]
        results.append([real_BTD, *grads])
    for got, wanted in zip(*results, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=tolerance)


def documents(batch) -> Iterator[tuple[int, list[int]]]:
    """(row, its positions) of each document."""
    for b, document_T in enumerate(batch.document_BT.tolist()):
        for document in sorted({d for d in document_T if d >= 0}):
            yield b, [t for t, d in enumerate(document_T) if d == document]


def of(weight: Tensor, m: int) -> Tensor:
    return weight[m if len(weight) > 1 else 0]


def norm(x: Tensor, part, m: int) -> Tensor:
    if part is None:
        return x
    if isinstance(part, ModalityLayerNorm):
        x = x - x.mean()
        return x / (x.square().mean() + 1e-5).sqrt() * of(part.weight, m) + of(part.bias, m)
    return x / (x.square().mean() + 1e-5).sqrt() * of(part.weight, m)


def turned(x_K: Tensor, position: int, theta: float) -> Tensor:
    """Rotation as a product of complex numbers."""
    half = len(x_K) // 2
    angle = torch.tensor([position * theta ** (-i / half) for i in range(half)])
    z = torch.complex(x_K[:half], x_K[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag))


def attention_loop(part: Attention, x_BTD: Tensor, batch, context) -> Tensor:
    H, K, theta = part.heads, part.head_dim, 10_000.0
    y_BTD = {}
    for b, positions in documents(batch):
        keys, values = [], []
        for t in positions:
            m = int(batch.modality_BT[b, t])
            q, k, v = (of(part.qkv.weight, m) @ x_BTD[b, t]).view(3, H, K)
            at = int(batch.position_BT[b, t])
            q = [turned(norm(q_K, part.q_norm, m), at, theta) for q_K in q]
            keys.append([turned(norm(k_K, part.k_norm, m), at, theta) for k_K in k])
            values.append(v)
            heads = []
            for h in range(H):
                score_S = torch.stack([q[h] @ key[h] for key in keys]) / K**0.5
                share_S = score_S.exp() / score_S.exp().sum()
                heads.append(sum(s * v_HK[h] for s, v_HK in zip(share_S, values, strict=True)))
            y_BTD[b, t] = of(part.o.weight, m) @ torch.cat(heads)
    return gathered(y_BTD, x_BTD)


def mamba_loop(part: Mamba, x_BTD: Tensor, batch, context) -> Tensor:
    K, S = part.conv_weight.shape[1], part.states
    A_IS = -part.A_log.exp()
    y_BTD = {}
    for b, positions in documents(batch):
        window = [torch.zeros_like(part.D)] * K
        h_IS = torch.zeros_like(A_IS)
        for t in positions:
            m = int(batch.modality_BT[b, t])
            x_I, z_I = (of(part.in_proj.weight, m) @ x_BTD[b, t]).chunk(2)
            window = [*window[1:], x_I]
            u_I = part.conv_bias + sum(part.conv_weight[:, k] * window[k] for k in range(K))
            u_I = u_I * u_I.sigmoid()
            dt_R, B_S, C_S = (of(part.x_proj.weight, m) @ u_I).split((part.rank, S, S))
            dt_I = (1 + (of(part.dt_proj.weight, m) @ dt_R + of(part.dt_bias, m)).exp()).log()
            h_IS = (dt_I[:, None] * A_IS).exp() * h_IS + (dt_I * u_I)[:, None] * B_S
            y_I = (h_IS @ C_S + part.D * u_I) * (z_I * z_I.sigmoid())
            y_BTD[b, t] = of(part.out_proj.weight, m) @ y_I
    return gathered(y_BTD, x_BTD)


def memory_loop(part: Memory, x_BTD: Tensor, batch, context) -> Tensor:
    """Scores of all n * n slots, the best k of each head."""
    heads, _, n, half = part.keys.shape
    y_BTD = {}
    for b, positions in documents(batch):
        for t in positions:
            x_D = x_BTD[b, t]
            query = (part.query @ x_D + part.query_bias).view(heads, 2, half)
            read = 0
            for h in range(heads):
                keys, q = part.keys[h], query[h]
                if part.query_gain is not None:
                    q = [rms(q[side]) * part.query_gain for side in (0, 1)]
                    keys = [
                        torch.stack([rms(key) * part.key_gain for key in keys[side]]) / half**0.5
                        for side in (0, 1)
                    ]
                one, two = keys[0] @ q[0], keys[1] @ q[1]
                scores = torch.stack([one[i] + two[j] for i in range(n) for j in range(n)])
                best, slots = scores.topk(part.top_k)
                read = read + (best.exp() / best.exp().sum()) @ context.values.weight[slots]
            if part.gate is not None:
                gate = part.gate @ x_D + part.gate_bias
                read = part.out @ (read * gate * gate.sigmoid()) + part.out_bias
            y_BTD[b, t] = read
    return gathered(y_BTD, x_BTD)


def feed_forward_loop(part: FeedForward, x_BTD: Tensor, batch, context) -> Tensor:
    y_BTD = {}
    for b, positions in documents(batch):
        for t in positions:
            m = int(batch.modality_BT[b, t])
            gate, up = (of(part.gate_up.weight, m) @ x_BTD[b, t]).chunk(2)
            y_BTD[b, t] = of(part.down.weight, m) @ (gate * gate.sigmoid() * up)
    return gathered(y_BTD, x_BTD)


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-5).sqrt()


def gathered(y_BTD: dict[tuple[int, int], Tensor], x_BTD: Tensor) -> Tensor:
    rows = [
        torch.stack([y_BTD.get((b, t), torch.zeros_like(x_TD[t])) for t in range(len(x_TD))])
        for b, x_TD in enumerate(x_BTD)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("modalities", [("text", "image", "speech"), ("text", "speech")])
@pytest.mark.parametrize(
    "options",
    [
        {"untie": UNTIED},
        {"untie": ("o",), "qk_norm": "layer"},
        {"untie": UNTIED, "qk_norm": "layer"},
        {"untie": (), "qk_norm": "none"},
    ],
)
def test_attention(options, modalities, new_batch):
    config = ModelConfig(dim=16, n_heads=2, **options)
    batch = new_batch(ROWS, padding=2, modalities=modalities)
    compare(built(Attention, config), config, batch, attention_loop)


@pytest.mark.parametrize("modalities", [("text", "image", "speech"), ("text", "speech")])
@pytest.mark.parametrize("untie", [MAMBA, *((p,) for p in MAMBA), ()])
def test_mamba(untie, modalities, new_batch):
    config = ModelConfig(dim=16, mixers=("mamba",), state_dim=4, untie=untie)
    batch = new_batch(ROWS, padding=2, modalities=modalities)
    compare(built(Mamba, config), config, batch, mamba_loop)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def test_memory(qk_norm, gate, new_batch):
    config = ModelConfig(
        dim=16,
        channels=("memory",),
        memory_keys=5,
        memory_top_k=3,
        memory_heads=2,
        memory_gate=gate,
        memory_value_dim=12 if gate else 16,
        memory_qk_norm=qk_norm,
    )
    compare(built(Memory, config), config, new_batch(ROWS, padding=2), memory_loop)


def test_feed_forward(new_batch):
    config = ModelConfig(dim=16, hidden_dim=24, untie=("ffn",))
    compare(built(FeedForward, config), config, new_batch(ROWS, padding=2), feed_forward_loop)


def test_norm_of_an_empty_segment(new_batch):
    plan = Plan.of(new_batch(ROWS, modalities=("speech",)))
    part = ModalityNorm(4, 3)
    part.reset_parameters()
    y_ND = part(torch.ones(plan.document_BT.numel(), 4), plan.order)
    y_ND.sum().backward()
    assert part.weight.grad.isfinite().all()
    assert not part.weight.grad[:2].any()
