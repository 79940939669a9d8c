"""Prompts taken in whole give what steps give, each row at its own length."""

import pytest
import torch

from .test_causal import settle

LENGTHS = (1, 3, 29, 70)


def prepared(decoder, new_batch):
    """A decoder with thresholds and a head of every modality, and four documents of 90 tokens."""
    settle(decoder, new_batch([(40, 30), (70,)], seed=1))
    torch.manual_seed(1)
    torch.nn.init.normal_(decoder.modality_head, std=0.02)  # zero at birth
    return new_batch([(90,)] * len(LENGTHS))


def test_prefill_equals_steps_and_the_whole_pass(config, new_decoder, new_batch):
    decoder = new_decoder(config)
    batch = prepared(decoder, new_batch)
    tokens_BT, whole_BTV = batch.tokens_BT, decoder(batch)
    prompts = [row[:n].tolist() for row, n in zip(tokens_BT, LENGTHS, strict=True)]
    x_BD, cache = decoder.prefill(prompts)
    assert cache.length_B.tolist() == list(LENGTHS)
    position_B = torch.tensor(LENGTHS) - 1
    rows_B = torch.arange(len(LENGTHS))
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(decoder.logits(x_BD), whole_BTV[rows_B, position_B], **close)
    steps = []
    for prompt in prompts:
        steps.append(decoder.start(1))
        for token in prompt:
            logits_1V = decoder.step(torch.tensor([token]), steps[-1])
        torch.testing.assert_close(
            logits_1V[0], whole_BTV[len(steps) - 1, len(prompt) - 1], **close
        )
    for _ in range(20):
        position_B += 1
        tokens_B = tokens_BT[rows_B, position_B]
        logits_BV = decoder.step(tokens_B, cache)
        torch.testing.assert_close(logits_BV, whole_BTV[rows_B, position_B], **close)
        for b, own in enumerate(steps):
            by_step_1V = decoder.step(tokens_B[b : b + 1], own)
            torch.testing.assert_close(logits_BV[b : b + 1], by_step_1V, **close)


def test_rows_can_be_dropped_and_repeated(config, new_decoder, new_batch):
    decoder = new_decoder(config)
    batch = prepared(decoder, new_batch)
    whole_BTV = decoder(batch)
    prompts = [row[:n].tolist() for row, n in zip(batch.tokens_BT, LENGTHS, strict=True)]
    _, cache = decoder.prefill(prompts)
    rows_B = torch.tensor([3, 1, 1])
    cache.keep(rows_B)
    position_B = torch.tensor(LENGTHS)[rows_B]
    for _ in range(8):
        logits_BV = decoder.step(batch.tokens_BT[rows_B, position_B], cache)
        wanted_BV = whole_BTV[rows_B, position_B]
        torch.testing.assert_close(logits_BV, wanted_BV, rtol=0, atol=1e-5)
        position_B += 1
    cache.keep(torch.tensor([1]))
    logits_BV = decoder.step(batch.tokens_BT[1, position_B[1:2]], cache)
    torch.testing.assert_close(logits_BV[0], whole_BTV[1, position_B[1]], rtol=0, atol=1e-5)


def test_logits_of_a_range(new_decoder, new_batch):
    from .conftest import CONFIGS

    decoder = new_decoder(CONFIGS["mot"])
    prepared(decoder, new_batch)
    decoder.set_prior(torch.arange(decoder.vocabulary.size))
    x_BD, _ = decoder.prefill([[1, 20, 60], [1]])
    all_BV = decoder.logits(x_BD)
    for ids in (slice(0, 1), slice(30, 77), slice(3, None)):
        torch.testing.assert_close(decoder.logits(x_BD, ids), all_BV[:, ids])


def test_wrong_prompts_are_named(new_decoder):
    from .conftest import CONFIGS

    decoder = new_decoder(CONFIGS["dense"])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decoder.prefill([[1], []])
    with pytest.raises(ValueError, match="prompt 0 has an id outside"):
        decoder.prefill([[1, decoder.vocabulary.size]])
