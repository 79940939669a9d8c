"""The whole loss as one graph: no layer of a preset makes torch.compile fall back to Python.

In training; in eval the experts' causal rule asks the data how many tokens each of them takes.
Blocks of depth ask in training too, how many of the chosen tokens are of each document.
"""

import pytest
import torch

from plait.models.plan import Plan

from .conftest import gradients


def results(decoder, function) -> list[torch.Tensor]:
    decoder.zero_grad()
    if decoder.values is not None:
        decoder.values.ledger.clear()
    sum_M = function()
    sum_M.sum().backward()
    return [sum_M.detach(), *gradients(decoder).values()]


def test_loss_of_a_preset_is_one_graph(preset, new_decoder, new_batch):
    if preset.depth_capacity < 1:
        pytest.skip("documents of the chosen tokens are counted outside the graph")
    decoder, batch = new_decoder(preset).train(), new_batch([(9, 14), (5, 3, 11)], padding=2)
    plan = Plan.of(batch)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda: decoder.loss(batch, plan).sum_M, fullgraph=True, backend="aot_eager"
    )
    wanted = results(decoder, lambda: decoder.loss(batch, plan).sum_M)
    for got, expected in zip(results(decoder, compiled), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
