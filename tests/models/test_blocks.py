"""Whole blocks against loops written token by token, gradients included; what combines trains."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plait.models.attention import Attention
from plait.models.block import Block
from plait.models.config import ModelConfig
from plait.models.experts import Experts
from plait.models.feed_forward import FeedForward
from plait.models.mamba import Mamba
from plait.models.plan import Plan

from .conftest import COMBINATIONS, CONFIGS
from .test_parts import (
    ROWS,
    UNTIED,
    attention_loop,
    built,
    compare,
    documents,
    feed_forward_loop,
    gathered,
    mamba_loop,
    norm,
)

BATCHES = [("text", "image", "speech"), ("text", "speech")]
EXPERTS = (2, 4, 3)


def build(config: ModelConfig) -> Block:
    """The first block, random everywhere; experts draw the line near the middle score."""
    block = built(lambda *args: Block(args[0], *config.blocks[0], *args[1:]), config)
    if isinstance(block.channel, Experts):
        router = block.channel.router
        router.threshold_E.uniform_(0.4, 0.6)
        for weight in (router.auxiliary_in, router.auxiliary_out):
            if weight is not None:
                weight.requires_grad_(False)
    return block.eval()


def tokens(x_BTD: Tensor, batch, function) -> Tensor:
    """`function(x_D, modality)` of each token of a document."""
    found = {
        (b, t): function(x_BTD[b, t], int(batch.modality_BT[b, t]))
        for b, positions in documents(batch)
        for t in positions
    }
    return gathered(found, x_BTD)


def experts_loop(part: Experts, x_BTD: Tensor, batch, norm_part=None) -> Tensor:
    """Each token meets those experts of its modality that the causal rule tells it to."""
    router = part.router

    def one(x_D: Tensor, m: int) -> Tensor:
        first, y_D = sum(router.sizes[:m]), torch.zeros_like(x_D)
        for e in range(first, first + router.sizes[m]):
            score = (router.weight[e] @ x_D).sigmoid()
            taken = score > router.threshold_E[e]
            if router.auxiliary_in is not None:
                hidden_F = router.auxiliary_in[m] @ x_D
                hidden_F = hidden_F * hidden_F.sigmoid()
                taken = (router.auxiliary_out[e] @ hidden_F).sigmoid() > 0.5
            if taken:
                gate, up = (part.gate_up[e] @ x_D).chunk(2)
                out_D = part.down[e] @ (gate * gate.sigmoid() * up)
                y_D = y_D + score * norm(out_D, norm_part, m)
        return y_D

    return tokens(x_BTD, batch, one)


def block_loop(block: Block, x_BTD: Tensor, batch, context) -> Tensor:
    """x + norm(part(x)), or x + part(norm(x)), of both parts."""

    def normed(x_BTD: Tensor, part) -> Tensor:
        return tokens(x_BTD, batch, lambda x_D, m: norm(x_D, part, m))

    def mixer(x_BTD: Tensor) -> Tensor:
        loop = {Attention: attention_loop, Mamba: mamba_loop}[type(block.mixer)]
        return loop(block.mixer, x_BTD, batch, context)

    def channel(x_BTD: Tensor) -> Tensor:
        if isinstance(block.channel, FeedForward):
            return feed_forward_loop(block.channel, x_BTD, batch, context)
        inside = block.channel_norm if block.gated_after else None
        return experts_loop(block.channel, x_BTD, batch, inside)

    if not block.post:
        x_BTD = x_BTD + mixer(normed(x_BTD, block.mixer_norm))
        return x_BTD + channel(normed(x_BTD, block.channel_norm))
    x_BTD = x_BTD + normed(mixer(x_BTD), block.mixer_norm)
    y_BTD = channel(x_BTD)
    return x_BTD + (y_BTD if block.gated_after else normed(y_BTD, block.channel_norm))


@pytest.mark.parametrize("modalities", BATCHES)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("qk_norm", ["rms", "layer"])
def test_mixture_of_transformers(qk_norm, norm, modalities, new_batch):
    config = ModelConfig(dim=16, n_heads=2, hidden_dim=24, untie=UNTIED, norm=norm, qk_norm=qk_norm)
    batch = new_batch(ROWS, padding=2, modalities=modalities)
    compare(build(config), config, batch, block_loop)


@pytest.mark.parametrize("modalities", BATCHES)
@pytest.mark.parametrize("rule", ["threshold", "auxiliary"])
@pytest.mark.parametrize("norm", [{}, {"norm": "post"}, {"norm": "post", "gate_after_norm": False}])
def test_moma_as_it_generates(norm, rule, modalities, new_batch):
    config = ModelConfig(
        dim=16,
        n_heads=2,
        hidden_dim=24,
        channels=("experts",),
        experts=EXPERTS,
        causal_choice=rule,
        untie=("norm",),
        **norm,
    )
    batch = new_batch(ROWS, padding=2, modalities=modalities)
    compare(build(config), config, batch, block_loop)


@pytest.mark.parametrize("modalities", BATCHES)
@pytest.mark.parametrize("channel", ["ffn", "experts"])
def test_mixture_of_mamba_with_a_channel_mixer(channel, modalities, new_batch):
    config = ModelConfig(
        dim=16,
        hidden_dim=24,
        mixers=("mamba",),
        channels=(channel,),
        experts=EXPERTS,
        state_dim=4,
        untie=("in", "x", "dt", "out"),
    )
    batch = new_batch(ROWS, padding=2, modalities=modalities)
    compare(build(config), config, batch, block_loop)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations_train(name, new_decoder, new_batch):
    """Loss in training, and in eval by the causal rules, falls within a few steps of one batch."""
    decoder = new_decoder(replace(CONFIGS[name], router_noise=0.0))
    batch = new_batch(((9, 14), (5, 3, 11)), padding=2)
    plan = Plan.of(batch)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)

    def mean_loss() -> Tensor:
        losses = decoder.loss(batch, plan)
        return losses.sum_M.sum() / losses.count_M.sum()

    before = mean_loss().item()
    decoder.train()
    for _ in range(15):
        optimizer.zero_grad()
        mean_loss().backward()
        optimizer.step()
    trained, after = mean_loss().item(), decoder.eval().loss(batch, plan).sum_M.isfinite()
    assert after.all()
    assert trained < 0.6 * before, (before, trained)
