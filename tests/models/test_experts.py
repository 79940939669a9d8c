from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from plait.models import checkpoint
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.experts import Experts
from plait.models.plan import Plan
from plait.models.routing import THRESHOLD_DECAY
from plait.tokenizers.errors import ConfigError

CONFIG = ModelConfig(dim=16, hidden_dim=24, channels=("experts",), experts=(2, 4, 3))
ROWS = ((9, 14), (5, 3, 11))


def build(config: ModelConfig = CONFIG) -> Experts:
    torch.manual_seed(0)
    part = Experts(config, 3, 1.0)
    part.reset_parameters()
    part.router.reset_parameters()
    return part


def run(part: Experts, batch, x_ND: torch.Tensor) -> tuple[torch.Tensor, Context]:
    plan = Plan.of(batch)
    context = Context(order=plan.order, layout=plan.layout)
    return plan.order.unsort(part(plan.order.sort(x_ND), context)), context


def scores(part: Experts, x_ND, batch, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat real positions of the expert's modality, and their scores."""
    modality = next(m for m in range(3) if expert < sum(part.router.sizes[: m + 1]))
    rows = batch.modality_masks[modality].flatten().nonzero().flatten()
    return rows, torch.sigmoid(x_ND[rows] @ part.router.weight[expert])


def expert_output(part: Experts, x_nD: torch.Tensor, expert: int) -> torch.Tensor:
    gate, up = (x_nD @ part.gate_up[expert].T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ part.down[expert].T


def by_loop(part: Experts, x_ND, batch, choose) -> torch.Tensor:
    """Each expert by itself; `choose(expert, scores)` gives the indices that it takes."""
    y_ND = torch.zeros_like(x_ND)
    for expert in range(sum(part.router.sizes)):
        rows, score = scores(part, x_ND, batch, expert)
        for i in choose(expert, score):
            token = rows[i]
            y_ND[token] = y_ND[token] + score[i] * expert_output(part, x_ND[token][None], expert)[0]
    return y_ND


@pytest.mark.parametrize("modalities", [("text", "image", "speech"), ("text", "speech")])
@pytest.mark.parametrize("capacity", [1.0, 0.6, 9.0])
def test_expert_choice_equals_a_loop(capacity, modalities, new_batch):
    batch = new_batch(ROWS, padding=4, modalities=modalities)
    part = build(replace(CONFIG, capacity=capacity)).train()
    x_ND = torch.randn(batch.tokens_BT.numel(), 16, requires_grad=True)
    dy_ND = torch.randn_like(x_ND)

    def choose(expert, score):
        group = next(
            n for m, n in enumerate(part.router.sizes) if expert < sum(part.router.sizes[: m + 1])
        )
        taken = min(len(score), -int(-capacity * len(score) // group))
        return score.argsort(descending=True)[:taken].tolist()

    results = []
    for y_ND in (run(part, batch, x_ND)[0], by_loop(part, x_ND, batch, choose)):
        results.append(
            [y_ND, *torch.autograd.grad((y_ND * dy_ND).sum(), [x_ND, *part.parameters()])]
        )
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not results[0][0][batch.padding_BT.flatten()].any()
    assert results[0][2].abs().sum(1)[:2].all(), "text's routers learn"


@pytest.mark.parametrize("modalities", [("text", "image", "speech"), ("text", "speech")])
def test_expert_choice_within_each_row(modalities, new_batch):
    part = build(replace(CONFIG, expert_choice="row")).train()
    whole, x_ND = new_batch(ROWS, padding=4, modalities=modalities), torch.randn(54, 16)
    y_ND, _ = run(part, whole, x_ND)
    for b in range(2):
        row = new_row(whole, b)
        alone_TD, _ = run(part, row, x_ND[27 * b : 27 * (b + 1)])
        torch.testing.assert_close(y_ND[27 * b : 27 * (b + 1)], alone_TD)


def new_row(batch, b: int):
    tensors = {name: x for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    return replace(batch, **{name: x[b : b + 1] for name, x in tensors.items()})


def test_auxiliary_routers_learn_what_experts_take_and_nothing_else_learns_from_them(new_batch):
    part = build(replace(CONFIG, causal_choice="auxiliary")).train()
    auxiliary = [part.router.auxiliary_in, part.router.auxiliary_out]
    optimizer, agreements = torch.optim.Adam(auxiliary, lr=0.02), []
    x_ND = torch.randn(207, 16)
    batch = new_batch([(120, 80)], padding=7)
    for _ in range(150):
        x_leaf = x_ND.clone().requires_grad_()
        _, context = run(part, batch, x_leaf)
        loss = torch.stack(context.losses).sum()
        others = [p for name, p in part.named_parameters() if "auxiliary" not in name]
        grads = torch.autograd.grad(loss, [x_leaf, *others], allow_unused=True, retain_graph=True)
        assert all(grad is None for grad in grads)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        agreements.append(loss.item())
    assert agreements[-1] < 0.3 * agreements[0]
    chosen_ND = run(part, batch, x_ND)[0]
    told_ND = run(part.eval(), batch, x_ND)[0]
    same_N = torch.isclose(chosen_ND, told_ND, atol=1e-5).all(1)
    assert same_N.float().mean() > 0.9


def test_gate_before_a_norm_takes_the_routers_gradient_away(new_decoder, new_batch):
    """Of tokens with one expert: capacity so small that nearly all have one or none."""
    norms = []
    for after in (True, False):
        config = replace(CONFIG, norm="post", gate_after_norm=after, capacity=0.1, n_layers=1)
        decoder = new_decoder(config).train()
        decoder.loss(new_batch([(200, 190)])).sum_M.sum().backward()
        norms.append(decoder.blocks[0].channel.router.weight.grad.norm().item())
    assert norms[0] > 20 * norms[1], norms


def test_the_leaking_loss_is_the_choice_of_training(new_decoder, new_batch):
    decoder, batch = new_decoder(CONFIG).train(), new_batch(ROWS)
    trained = decoder.loss(batch).sum_M
    leaking = decoder.eval().loss(batch, leaking=True).sum_M
    assert torch.equal(trained, leaking)
    other = new_batch(ROWS, seed=1)
    assert not torch.equal(decoder.loss(other).sum_M, decoder.loss(other, leaking=True).sum_M)


def test_load_is_even_and_what_is_dropped_is_counted(new_batch):
    batch, part = new_batch([(120, 80)], padding=7), build().train()
    x_ND = torch.randn(207, 16)
    y_ND, context = run(part, batch, x_ND)
    real_N = ~batch.padding_BT.flatten()
    untouched = (y_ND[real_N] == 0).all(-1).float().mean()
    torch.testing.assert_close(context.means()["experts_dropped"], untouched)
    assert 0.2 < untouched < 0.45


def test_eval_takes_what_is_above_the_threshold(new_batch):
    part = build().train()
    for seed in range(3):
        run(part, new_batch(ROWS, seed=seed), torch.randn(46, 16))
    part.eval()
    assert part.router.threshold_E.all()
    before_E, batch = part.router.threshold_E.clone(), new_batch(ROWS, seed=9)
    x_ND = torch.randn(46, 16)
    y_ND, context = run(part, batch, x_ND)
    assert torch.equal(part.router.threshold_E, before_E)

    def choose(expert, score):
        return (score > part.router.threshold_E[expert]).nonzero().flatten().tolist()

    torch.testing.assert_close(y_ND, by_loop(part, x_ND, batch, choose), rtol=1e-4, atol=1e-6)
    assert 0.4 < context.means()["experts_load"] < 2.0


def test_threshold_is_an_average_of_the_lowest_scores_taken(new_batch):
    part, wanted = build().train(), None
    for seed in range(3):
        batch = new_batch(ROWS, seed=seed, modalities=("text", "speech"))
        x_ND = torch.randn(46, 16)
        run(part, batch, x_ND)
        lowest = []
        for expert, group in enumerate([2, 2, 4, 4, 4, 4, 3, 3, 3]):
            _, score = scores(part, x_ND, batch, expert)
            taken = -(-len(score) // group)
            lowest.append(score.sort(descending=True).values[taken - 1].item() if taken else 0.0)
        lowest_E = torch.tensor(lowest)
        if wanted is None:
            wanted = lowest_E
        wanted = THRESHOLD_DECAY * wanted + (1 - THRESHOLD_DECAY) * lowest_E
    torch.testing.assert_close(part.router.threshold_E, wanted)
    assert part.router.threshold_E[:2].all() and part.router.threshold_E[6:].all()
    assert not part.router.threshold_E[2:6].any(), "image has no tokens"


def test_noise_is_for_training_only(new_batch):
    batch, x_ND = new_batch(ROWS), torch.randn(46, 16)
    quiet, noisy = build().train(), build(replace(CONFIG, router_noise=1.0)).train()
    wanted_ND, first_ND, second_ND = (run(p, batch, x_ND)[0] for p in (quiet, noisy, noisy))
    assert not torch.equal(first_ND, wanted_ND)
    assert not torch.equal(first_ND, second_ND)
    torch.testing.assert_close(
        quiet.router.threshold_E, noisy.router.threshold_E, rtol=0.05, atol=0
    )
    noisy.load_state_dict(quiet.state_dict())
    assert torch.equal(run(quiet.eval(), batch, x_ND)[0], run(noisy.eval(), batch, x_ND)[0])
    torch.manual_seed(1)
    first_ND = run(noisy.train(), batch, x_ND)[0]
    torch.manual_seed(1)
    assert torch.equal(run(noisy, batch, x_ND)[0], first_ND)


def test_thresholds_are_saved(new_decoder, new_batch, tmp_path):
    decoder, batch = new_decoder(CONFIG).train(), new_batch(ROWS)
    decoder.loss(batch)
    checkpoint.save(decoder, tmp_path)
    loaded = checkpoint.load(tmp_path)
    for one, other in ((decoder.eval(), loaded.eval()), (decoder.train(), loaded.train())):
        assert torch.equal(one(batch), other(batch))
    states = zip(decoder.state_dict().items(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for (_, value), other in states)
    assert sum("threshold" in name for name in loaded.state_dict()) == CONFIG.n_layers


def test_statistics_reach_the_losses(new_decoder, new_batch):
    decoder = new_decoder(CONFIG)
    for mode in (True, False):
        statistics = decoder.train(mode).loss(new_batch(ROWS)).statistics
        blocks = {f"rms/block_{i}" for i in range(len(decoder.blocks))}
        assert statistics.keys() == {"experts_load", "experts_dropped", "rms/output"} | blocks
        assert all(value.shape == () and value.isfinite() for value in statistics.values())


def test_number_of_experts_fits_the_modalities(new_decoder):
    with pytest.raises(ConfigError, match=r"model\.experts: \[2, 2\] for 3 modalities"):
        new_decoder(replace(CONFIG, experts=(2, 2)))
