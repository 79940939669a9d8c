"""No logit depends on a later token or on another document, for presets and combinations."""

from dataclasses import replace

import pytest
import torch

from plait.models.plan import Plan


def settle(decoder, batch) -> None:
    """Give expert thresholds their values, as training does."""
    decoder.train()
    with torch.no_grad():
        decoder(batch)
    decoder.eval()


def with_tokens(batch, decoder, where_BT, seed=5):
    """The batch with other tokens, of other modalities too, at some positions."""
    table = torch.from_numpy(decoder.vocabulary.modality_table)
    generator = torch.Generator().manual_seed(seed)
    random_BT = torch.randint(3, len(table), batch.tokens_BT.shape, generator=generator)
    tokens_BT = torch.where(where_BT, random_BT, batch.tokens_BT)
    return replace(batch, tokens_BT=tokens_BT, modality_BT=table[tokens_BT])


@pytest.mark.parametrize("rows", [((9, 14),), ((5, 18), (12, 9, 7))], ids=["B1", "B2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_causal_and_isolated(config, mode, rows, new_decoder, new_batch):
    if mode == "train" and config.chooses:
        pytest.skip("such a choice sees the whole batch in training, by definition")
    decoder, batch = new_decoder(config), new_batch(rows, padding=2)
    settle(decoder, new_batch([(60, 40)], seed=1))
    decoder.train(mode == "train")
    before_BTV = decoder(batch)
    row, document = len(rows) - 1, 1
    inside_BT = torch.zeros_like(batch.loss_mask_BT)
    inside_BT[row] = batch.document_BT[row] == document
    change_BT = inside_BT & (batch.position_BT >= 4)
    difference_BT = (decoder(with_tokens(batch, decoder, change_BT)) - before_BTV).abs().amax(-1)
    assert difference_BT[~change_BT].max() < 1e-6
    assert difference_BT[change_BT].min() > 1e-5
    later_BT = inside_BT & (batch.position_BT > 4)
    one_BT = change_BT & ~later_BT
    difference_BT = (decoder(with_tokens(batch, decoder, one_BT)) - before_BTV).abs().amax(-1)
    assert difference_BT[~change_BT].max() < 1e-6
    assert difference_BT[later_BT].max() > 1e-5


def test_experts_see_the_batch_in_training(new_decoder, new_batch):
    from .conftest import CONFIGS

    decoder, batch = new_decoder(CONFIGS["moma"]).train(), new_batch([(24, 24)])
    last_BT = (batch.document_BT == 1) & (batch.position_BT > 2)
    before_BTV = decoder(batch)
    difference_BT = (decoder(with_tokens(batch, decoder, last_BT)) - before_BTV).abs().amax(-1)
    assert difference_BT[batch.document_BT == 0].max() > 1e-4


def test_steps_equal_the_whole_pass(config, new_decoder, new_batch):
    decoder = new_decoder(config)
    settle(decoder, new_batch([(40, 30), (70,)], seed=1))
    torch.nn.init.normal_(decoder.modality_head, std=0.02)  # zero at birth
    batch = new_batch([(70,), (70,)])
    whole_BTV = decoder(batch, Plan.of(batch))
    cache = decoder.start(2)
    for t, tokens_B in enumerate(batch.tokens_BT.unbind(1)):
        logits_BV = decoder.step(tokens_B, cache)
        torch.testing.assert_close(logits_BV, whole_BTV[:, t], rtol=0, atol=1e-5)
    assert cache.length_B.tolist() == [70, 70]
    assert (batch.modality_BT[0] != batch.modality_BT[1]).any()


def test_steps_do_not_depend_on_other_rows_or_calls(new_decoder, new_batch):
    from .conftest import CONFIGS

    decoder, batch = new_decoder(CONFIGS["hybrid"]), new_batch([(8,), (8,)])
    together, alone = decoder.start(2), decoder.start(1)
    for tokens_B in batch.tokens_BT.unbind(1):
        both_BV = decoder.step(tokens_B, together)
        one_BV = decoder.step(tokens_B[1:], alone)
        torch.testing.assert_close(both_BV[1:], one_BV, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the cache is of 2"):
        decoder.step(batch.tokens_BT[:1, 0], together)
