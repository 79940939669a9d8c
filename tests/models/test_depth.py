import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from plait.kernels.attention import AttentionLayout
from plait.models import checkpoint
from plait.models.block import Block
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.depth import chosen
from plait.models.flops import count_parameters, flops_per_token
from plait.models.plan import Order, Plan
from plait.models.routing import THRESHOLD_DECAY
from plait.tokenizers.errors import ConfigError

from .test_parts import attention_loop, context_of, feed_forward_loop, mamba_loop, norm

ROWS = ((6, 5), (3, 9))
CONFIG = ModelConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, depth_capacity=0.5)
UNTIED = {"attention": ("qkv", "o", "ffn", "norm"), "mamba": ("in", "x", "dt", "out", "norm")}


def built(config: ModelConfig) -> Block:
    torch.manual_seed(0)
    mixer, channel = config.blocks[0]
    block = Block(config, mixer, channel, 3, 1.0, depth=True)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    block.depth.router.threshold_E.zero_()
    return block.train()


def best(score_BT: torch.Tensor, real_BT: torch.Tensor, capacity: float) -> torch.Tensor:
    """Where the highest scores are among all real positions, of whatever row and modality."""
    places = sorted(
        real_BT.nonzero().tolist(), key=lambda bt: score_BT[bt[0], bt[1]].item(), reverse=True
    )
    passes_BT = torch.zeros_like(real_BT)
    for b, t in places[: math.ceil(capacity * len(places))]:
        passes_BT[b, t] = True
    return passes_BT


def by_loop(block: Block, config: ModelConfig, x_BTD, batch, context, passes_BT) -> torch.Tensor:
    """The block token by token, for those that pass; a token's own score weighs what it adds."""

    def normed(x_BTD, part):
        rows = [
            torch.stack([norm(x_D, part, int(m)) for x_D, m in zip(x_TD, modality_T, strict=True)])
            for x_TD, modality_T in zip(x_BTD, batch.modality_BT, strict=True)
        ]
        return torch.stack(rows)

    among = replace(batch, document_BT=torch.where(passes_BT, batch.document_BT, -1))
    mixer = attention_loop if config.mixers == ("attention",) else mamba_loop
    score_BT1 = torch.sigmoid(x_BTD @ block.depth.router.weight[0])[..., None]
    y_BTD = x_BTD
    parts = [(block.mixer_norm, block.mixer, mixer)]
    if block.channel is not None:
        parts.append((block.channel_norm, block.channel, feed_forward_loop))
    for part_norm, part, loop in parts:
        if config.norm == "pre":
            y_BTD = y_BTD + loop(part, normed(y_BTD, part_norm), among, context)
        else:
            y_BTD = y_BTD + normed(loop(part, y_BTD, among, context), part_norm)
    return torch.where(passes_BT[..., None], x_BTD + score_BT1 * (y_BTD - x_BTD), x_BTD)


@pytest.mark.parametrize("modalities", [("text", "image", "speech"), ("text", "speech")])
@pytest.mark.parametrize("mixer", ["attention", "mamba"])
@pytest.mark.parametrize("change", [{}, {"norm": "post"}, {"untie": ()}], ids=str)
def test_equals_a_loop_over_tokens(change, mixer, modalities, new_batch):
    channels = ("ffn",) if mixer == "attention" else ("none",)
    options = {"mixers": (mixer,), "channels": channels, "untie": UNTIED[mixer], "state_dim": 4}
    config = replace(CONFIG, **{**options, **change})
    batch, block = new_batch(ROWS, padding=3, modalities=modalities), built(config)
    plan = Plan.of(batch)
    context = context_of(plan, config)
    x_BTD = torch.randn(*batch.tokens_BT.shape, 16, requires_grad=True)
    dy_BTD = torch.randn_like(x_BTD)
    passes_BT = best(x_BTD @ block.depth.router.weight[0], ~batch.padding_BT, 0.5)
    assert passes_BT.sum() == 12 and passes_BT.any(1).all()

    def fast():
        y_ND = block(context.order.sort(x_BTD.flatten(0, 1)), context)
        return context.order.unsort(y_ND).view_as(x_BTD)

    results = []
    for y_BTD in (fast(), by_loop(block, config, x_BTD, batch, context, passes_BT)):
        leaves = [x_BTD, *block.parameters()]
        results.append([y_BTD, *torch.autograd.grad((y_BTD * dy_BTD).sum(), leaves)])
    for got, wanted in zip(*results, strict=True):
        scale = max(1.0, float(wanted.detach().abs().max()))
        torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-5)
    assert block.depth.router.weight.grad is None and results[0][-1].isfinite().all()
    stays_BT = (results[0][0] == x_BTD).all(-1)
    assert torch.equal(stays_BT, ~passes_BT), "padding never passes"


@pytest.mark.parametrize("channels", [("ffn",), ("experts",), ("memory",)])
def test_experts_choose_among_the_tokens_that_pass(channels, new_decoder, new_batch):
    """A model with one block of depth: only the share of the tokens that pass is changed."""
    config = replace(CONFIG, n_layers=1, channels=channels, depth_capacity=0.25, experts=(2,))
    decoder, batch = new_decoder(config).train(), new_batch([(30, 13), (27,)], padding=4)
    inputs: list[torch.Tensor] = []
    block = decoder.blocks[0]
    block.channel.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    decoder(batch)
    assert [len(x_JD) for x_JD in inputs] == [math.ceil(0.25 * 70)]


def test_the_part_of_a_context(new_batch):
    """Rows, modalities and documents of the chosen, worked out one by one."""
    batch = new_batch(ROWS, padding=2)
    plan = Plan.of(batch)
    for order in (plan.order, plan.order.unsorted()):
        context = replace(context_of(plan, replace(CONFIG, untie=("o",))), order=order)
        flat = [1, 4, 7, 8, 14, 15, 18, 23]
        row_J = order.rows(torch.tensor(flat)).sort().values
        part = chosen(context, row_J)
        number_N = torch.arange(plan.document_BT.numel())
        assert part.order.unsort(order.sort(number_N)[row_J]).tolist() == flat
        assert part.order.sort(torch.tensor(flat)).tolist() == order.sort(number_N)[row_J].tolist()
        documents = [(f // 14, int(plan.document_BT.flatten()[f])) for f in flat]
        numbers = [sorted(set(documents)).index(d) for d in documents]
        assert part.document_BT.tolist() == [numbers]
        starts = [i == 0 or numbers[i] != numbers[i - 1] for i in range(len(flat))]
        assert part.reset_BT.tolist() == [starts]
        assert isinstance(part.layout, AttentionLayout)
        modality = batch.modality_BT.flatten()[flat].tolist()
        if order is plan.order:
            assert part.order.counts == tuple(modality.count(m) for m in range(3))
            wanted = Order.of(torch.tensor(modality), torch.zeros(8).bool(), 3)
            assert torch.equal(part.order.permutation_N, wanted.permutation_N)
        else:
            assert (part.order.counts, part.order.permutation_N) == ((8,), None)
        for m, of_rows in enumerate(part.order.by_row):
            here = [
                f // 14
                for f, n in zip(flat, modality, strict=True)
                if len(part.order.by_row) == 1 or n == m
            ]
            assert of_rows == (here.count(0), here.count(1))


@pytest.mark.parametrize("causal_choice", ["threshold", "auxiliary"])
def test_caches_hold_the_tokens_that_took_the_block(causal_choice, new_decoder, new_batch):
    config = replace(CONFIG, depth_capacity=0.4, causal_choice=causal_choice)
    decoder = new_decoder(config).train()
    with torch.no_grad():
        decoder(new_batch([(60, 40)], seed=1))
    decoder.eval()
    batch = new_batch([(40,), (40,)])
    passed: list[int] = []
    mixer = decoder.blocks[0].mixer
    mixer.register_forward_hook(lambda _, args, y: passed.append(len(y)))
    whole_BTV = decoder(batch)
    cache = decoder.start(2)
    for t in range(40):
        logits_BV = decoder.step(batch.tokens_BT[:, t], cache)
        torch.testing.assert_close(logits_BV, whole_BTV[:, t], rtol=0, atol=1e-5)
    lengths = [row.length for row in cache.mixers[0].rows]
    assert sum(lengths) == passed[0] and 0 < passed[0] < 80
    assert cache.mixers[1].length == 40
    assert len(set(lengths)) == 2, "rows took it at steps of their own"


def test_threshold_follows_the_lowest_score_that_passes(new_batch):
    config = replace(CONFIG, channels=("none",))
    block, wanted = built(config), None
    for seed in range(3):
        batch = new_batch(ROWS, seed=seed, padding=1)
        context = context_of(Plan.of(batch), config)
        x_ND = torch.randn(batch.tokens_BT.numel(), 16)
        block(x_ND, context)
        score_n = torch.sigmoid(x_ND @ block.depth.router.weight[0])[~batch.padding_BT.flatten()]
        lowest = score_n.sort(descending=True).values[math.ceil(0.5 * len(score_n)) - 1]
        wanted = lowest if wanted is None else wanted.lerp(lowest, 1 - THRESHOLD_DECAY)
    torch.testing.assert_close(block.depth.router.threshold_E, wanted[None])
    assert context.means().keys() == {"depth_load"}
    y_ND = block.eval()(x_ND, context)
    passes_N = (y_ND != x_ND).any(-1)
    score_N = torch.sigmoid(x_ND @ block.depth.router.weight[0])
    assert torch.equal(passes_N, (score_N > wanted) & ~batch.padding_BT.flatten())


def test_the_leaking_loss_is_the_choice_of_training(new_decoder, new_batch):
    decoder, batch = new_decoder(CONFIG).train(), new_batch(ROWS)
    trained = decoder.loss(batch).sum_M
    assert torch.equal(decoder.eval().loss(batch, leaking=True).sum_M, trained)
    other = new_batch(ROWS, seed=1)
    assert not torch.equal(decoder.loss(other).sum_M, decoder.loss(other, leaking=True).sum_M)


def test_all_pass_where_capacity_is_one(new_decoder):
    assert not any(
        "depth" in name for name in new_decoder(replace(CONFIG, depth_capacity=1.0)).state_dict()
    )
    config = replace(CONFIG, n_layers=5, depth_every=3)
    assert config.depths == (True, False, False, True, False)
    assert replace(config, depth_every=1).depths == (True,) * 5


def test_saved_and_loaded(new_decoder, new_batch, tmp_path):
    decoder, batch = new_decoder(CONFIG).train(), new_batch(ROWS)
    decoder.loss(batch)
    checkpoint.save(decoder, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded.blocks[0].depth.router.threshold_E.all()
    for one, other in ((decoder.eval(), loaded.eval()), (decoder.train(), loaded.train())):
        assert torch.equal(one(batch), other(batch))


def test_costs_count_the_tokens_that_pass(vocabulary):
    def sizes(config: ModelConfig) -> tuple[int, float]:
        with torch.device("meta"):
            decoder = Decoder(config, vocabulary)
        per_token = flops_per_token(decoder, 64)["image"]
        return count_parameters(decoder)["active"]["image"], per_token

    whole, half = sizes(replace(CONFIG, depth_capacity=1.0)), sizes(CONFIG)
    block = 4 * 16 * 16 + 3 * 16 * 24
    norms = 2 * 16 + 2 * 8
    assert whole[0] - half[0] == (block + norms) // 2 - 16
    assert whole[1] - half[1] == 6 * (block / 2 - 16) + 12 * 16 * 64 * (1 - 0.5**2)


def test_more_than_all_is_refused():
    with pytest.raises(ConfigError, match=r"depth_capacity: 1.5 should be a share, up to 1"):
        replace(CONFIG, depth_capacity=1.5)
    with pytest.raises(ConfigError, match=r"depth_every: 0 should be an integer >= 1"):
        replace(CONFIG, depth_every=0)
