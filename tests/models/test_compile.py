"""The whole loss as one graph: no layer of a preset makes torch.compile fall back to Python.

In eval too, where the data says how many tokens each expert takes: these sizes are symbols of the
graph. But a block of depth lays out attention over documents of the tokens that pass, and so many
products as there are lengths of documents are no graph; its parts around attention are
(training/test_speed.py).
"""

from dataclasses import replace

import pytest
import torch

from plait.models.plan import Plan

from .conftest import CONFIGS, gradients


def results(decoder, function) -> list[torch.Tensor]:
    decoder.zero_grad()
    if decoder.values is not None:
        decoder.values.ledger.clear()
    sum_M = function()
    sum_M.sum().backward()
    return [sum_M.detach(), *gradients(decoder).values()]


def check_one_graph(decoder, batch) -> None:
    """Equal losses and gradients, of a graph that is whole."""
    plan = Plan.of(batch)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda: decoder.loss(batch, plan).sum_M, fullgraph=True, backend="aot_eager"
    )
    wanted = results(decoder, lambda: decoder.loss(batch, plan).sum_M)
    for got, expected in zip(results(decoder, compiled), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_loss_of_a_preset_is_one_graph(preset, new_decoder, new_batch):
    if preset.depth_capacity < 1:
        pytest.skip("attention over the chosen tokens' documents is laid out on the host")
    check_one_graph(new_decoder(preset).train(), new_batch([(9, 14), (5, 3, 11)], padding=2))


@pytest.mark.parametrize("causal_choice", ["threshold", "auxiliary"])
def test_experts_in_eval_are_one_graph(causal_choice, new_decoder, new_batch):
    config = replace(CONFIGS["moma"], n_layers=1, causal_choice=causal_choice)
    decoder, batch = new_decoder(config).train(), new_batch([(9, 14), (5, 3, 11)], padding=2)
    with torch.no_grad():
        decoder.loss(batch)
    taken: list[int] = []
    channel = decoder.eval().blocks[0].channel
    hook = channel.router.register_forward_hook(lambda _, args, choice: taken.extend(choice.counts))
    decoder.loss(batch)
    hook.remove()
    assert len(set(taken)) > 1, "sizes are the data's, not one capacity's"
    check_one_graph(decoder, batch)
