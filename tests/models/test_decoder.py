from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from plait.kernels import cross_entropy
from plait.models.config import ModelConfig
from plait.models.decoder import VALUES, Decoder
from plait.models.plan import Plan
from plait.tokenizers.errors import ConfigError

from .conftest import CONFIGS, gradients

ROWS = ((9, 14), (5, 3, 11))


def backward(decoder, batch) -> torch.Tensor:
    losses = decoder.loss(batch)
    (losses.sum_M.sum() / losses.count_M.sum()).backward()
    return losses.sum_M.detach()


def test_tied_mot_is_dense_and_tied_mixture_of_mamba_is_mamba():
    assert replace(CONFIGS["mot"], untie=()) == CONFIGS["dense"]
    assert not replace(CONFIGS["mixture_of_mamba"], untie=()).by_modality


@pytest.mark.parametrize("name", ["mot", "mixture_of_mamba", "post", "hybrid", "mot_memory"])
def test_untied_parts_with_equal_weights_are_the_shared_model(name, new_decoder, new_batch):
    untied = new_decoder(replace(CONFIGS[name], router_noise=0)).train()
    tied = new_decoder(replace(CONFIGS[name], router_noise=0, untie=()), seed=1).train()
    state = {
        name: value.expand_as(untied.state_dict()[name])
        for name, value in tied.state_dict().items()
    }
    untied.load_state_dict(state)
    batch = new_batch(ROWS, padding=3)
    torch.testing.assert_close(untied(batch), tied(batch), rtol=0, atol=1e-6)
    torch.testing.assert_close(backward(untied, batch), backward(tied, batch), rtol=1e-6, atol=0)
    shared = gradients(tied)
    for name, grad in gradients(untied).items():
        wanted = shared[name]
        if grad.shape != wanted.shape:
            grad = grad.sum(0, keepdim=True)
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_absent_modality_has_a_gradient_of_zeros(config, new_decoder, new_batch):
    decoder = new_decoder(config).train()
    backward(decoder, new_batch(ROWS, padding=4, modalities=("text", "image")))
    stacked = 0
    for name, grad in gradients(decoder).items():
        assert grad is not None, name
        assert grad.isfinite().all(), name
        part = "norm" in name or "weight" in name or "dt_bias" in name
        if part and len(grad) == 3 and grad.ndim > 1:
            stacked += 1
            assert not grad[2].any(), name
            assert grad[0].any(), name
    assert stacked or not config.untie


def test_every_parameter_is_initialised(config, new_decoder):
    decoder = new_decoder(config, seed=3)
    first = {name: value.clone() for name, value in decoder.state_dict().items()}
    with torch.no_grad():
        for value in decoder.state_dict().values():
            value.fill_(torch.nan)
    torch.manual_seed(3)
    decoder.initialise()
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, first[name]), name
        assert value.isfinite().all(), name
    other = new_decoder(config, seed=4)
    assert not torch.equal(other.embedding, decoder.embedding)
    for name, parameter in decoder.named_parameters():
        if "weight" in name and len(parameter) == 3 and "norm" not in name:
            assert not torch.equal(parameter[0], parameter[1]), name


def test_loss_is_cross_entropy_by_target_modality(new_decoder, new_batch, preset):
    decoder = new_decoder(replace(preset, z_loss=0.0))
    batch = new_batch(ROWS, padding=2)
    losses = decoder.loss(batch)
    loss_BT = F.cross_entropy(decoder(batch).transpose(1, 2), batch.targets_BT, reduction="none")
    for m in range(3):
        here_BT = batch.loss_mask_BT & (batch.target_modality_BT == m)
        assert losses.count_M[m] == here_BT.sum() > 0
        torch.testing.assert_close(losses.sum_M[m], loss_BT[here_BT].sum())


def test_padding_changes_nothing(config, new_decoder, new_batch):
    decoder = new_decoder(replace(config, router_noise=0)).train()
    bare, padded = new_batch([(9, 14)]), new_batch([(9, 14), (0,)], padding=5)
    torch.testing.assert_close(decoder.loss(bare).sum_M, decoder.loss(padded).sum_M)
    torch.testing.assert_close(decoder(bare)[0], decoder(padded)[0, :23], rtol=0, atol=1e-5)


def test_batch_without_targets(config, new_decoder, new_batch):
    decoder = new_decoder(config).train()
    assert not backward_sum(decoder, new_batch([(0,), (0,)], padding=7)).any()
    assert all(grad is not None and not grad.any() for grad in gradients(decoder).values())


def backward_sum(decoder, batch) -> torch.Tensor:
    sum_M = decoder.loss(batch).sum_M
    sum_M.sum().backward()
    return sum_M.detach()


def test_z_loss_is_in_the_gradient_only(new_decoder, new_batch):
    batch = new_batch(ROWS)
    plain, pulled = (new_decoder(ModelConfig(dim=32, z_loss=z)) for z in (0.0, 0.5))
    assert torch.equal(backward_sum(plain, batch), backward_sum(pulled, batch))
    plain.head.grad = None
    logits_BTV = plain(batch)[batch.loss_mask_BT]
    square = logits_BTV.logsumexp(-1).square().sum()
    cross_entropy = F.cross_entropy(
        logits_BTV, batch.targets_BT[batch.loss_mask_BT], reduction="sum"
    )
    (cross_entropy + 0.5 * square).backward()
    torch.testing.assert_close(pulled.head.grad, plain.head.grad, rtol=1e-4, atol=1e-4)


def test_head_in_pieces_is_the_whole_head(new_decoder, new_batch, monkeypatch):
    batch, decoder = new_batch(ROWS), new_decoder(ModelConfig(dim=32, z_loss=1e-3))
    whole = backward(decoder, batch), decoder.head.grad.clone()
    decoder.zero_grad()
    monkeypatch.setattr(cross_entropy, "PIECE", 10 * len(decoder.head))
    torch.testing.assert_close((backward(decoder, batch), decoder.head.grad), whole)


def test_few_steps_fit_a_batch(preset, new_decoder, new_batch):
    decoder = new_decoder(preset).train()
    batch = new_batch(ROWS, padding=2)
    plan = Plan.of(batch)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        losses = decoder.loss(batch, plan)
        loss = losses.sum_M.sum() / losses.count_M.sum()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0], history[::5]


def test_mixed_precision(preset, new_decoder, new_batch):
    decoder, batch = new_decoder(preset).train(), new_batch(ROWS)
    wanted = decoder.loss(batch).sum_M.sum().item()
    with torch.autocast("cpu", torch.bfloat16):
        losses = decoder.loss(batch)
    losses.sum_M.sum().backward()
    assert losses.sum_M.dtype == torch.float32
    assert losses.sum_M.sum().item() == pytest.approx(wanted, rel=0.02)
    assert all(grad.isfinite().all() for grad in gradients(decoder).values())


def test_parameter_kinds(config, new_decoder):
    decoder = new_decoder(config)
    kinds = decoder.parameter_kinds()
    assert kinds.keys() == dict(decoder.named_parameters()).keys()
    for name, kind in kinds.items():
        bare = name.rpartition(".")[2]
        exempt = "norm" in name or bare in ("A_log", "D", "query_gain", "key_gain")
        exempt |= bare.endswith("bias")
        assert kind == ("values" if name == VALUES else "no_decay" if exempt else "decay"), name


def test_other_modalities_are_named(new_decoder, new_batch):
    batch = replace(new_batch(ROWS), modalities=("text", "image"))
    with pytest.raises(ConfigError, match=r"\('text', 'image'\).*'speech'"):
        new_decoder(ModelConfig(dim=32))(batch)


def test_one_modality_needs_no_order(new_batch, vocabulary):
    text = type(vocabulary)(vocabulary.tokenizers[:1])
    decoder = Decoder(ModelConfig(dim=32, untie=("qkv", "norm")), text)
    assert all(len(p) == 1 for name, p in decoder.named_parameters() if "qkv" in name)


def test_prior_is_what_an_empty_context_says(new_decoder, new_batch, preset):
    """With heads of zero the model predicts the token frequencies, and nothing else."""
    decoder, batch = new_decoder(preset), new_batch(ROWS)
    counts_V = torch.arange(decoder.vocabulary.size) % 7
    decoder.set_prior(counts_V)
    torch.nn.init.zeros_(decoder.head)
    share_V = (counts_V + 1) / (counts_V + 1).sum()
    probability_BTV = decoder(batch).softmax(-1)
    assert torch.allclose(probability_BTV, share_V.expand_as(probability_BTV), atol=1e-6)
