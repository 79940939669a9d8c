import time

import pytest
import torch

from plait.models import flops
from plait.models.plan import Plan
from plait.models.training.utilisation import Utilisation, peak_flops


def counted(decoder, batch) -> float:
    utilisation = Utilisation(decoder)
    utilisation.add(batch)
    return utilisation.flops


def test_rows_of_one_document_count_as_flops_per_token(preset, new_decoder, new_batch):
    decoder, batch = new_decoder(preset), new_batch([(24,), (24,)])
    each = flops.flops_per_token(decoder, 24)
    tokens = dict(zip(batch.modalities, batch.modality_masks.flatten(1).sum(1), strict=True))
    assert counted(decoder, batch) == pytest.approx(
        sum(each[m] * int(n) for m, n in tokens.items())
    )


def test_documents_do_not_attend_to_each_other_and_padding_counts_nothing(
    preset, new_decoder, new_batch
):
    decoder, whole = new_decoder(preset), new_batch([(24,)], modalities=("text",))
    parts = new_batch([(8, 16)], modalities=("text",), padding=5)
    pair = flops.flops_per_token(decoder, 1)["text"] - flops.flops_per_token(decoder, 0)["text"]
    difference = pair * (24**2 - 8**2 - 16**2)
    assert counted(decoder, whole) - counted(decoder, parts) == pytest.approx(difference)


def test_line_is_of_the_batches_since_the_last(new_decoder, new_batch, preset):
    utilisation = Utilisation(new_decoder(preset))
    batch = new_batch([(24,)], modalities=("text",))
    for _ in range(2):
        utilisation.add(batch)
        each = utilisation.flops / 24
        line = utilisation.line(tokens_per_s=100.0)
        assert line["flops_per_s"] == pytest.approx(100 * each)
        assert line["mfu"] == pytest.approx(100 * each / peak_flops(torch.device("cpu")))


def test_peak_is_measured_once_and_cheaply():
    peak_flops.cache_clear()
    started = time.process_time()
    peak = peak_flops(torch.device("cpu"))
    assert time.process_time() - started < 1.5
    assert peak > 1e8
    assert peak_flops(torch.device("cpu")) == peak


def test_all_of_a_plan_is_pinned(new_batch, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x + 0)
    plan = Plan.of(new_batch([(5, 4)], padding=2))
    pinned = plan.pin_memory()
    pairs = [(plan, pinned), (plan.order, pinned.order), (plan.layout, pinned.layout)]
    for old, new in pairs:
        for name, tensor in vars(old).items():
            if isinstance(tensor, torch.Tensor):
                assert getattr(new, name) is not tensor, name
                assert torch.equal(getattr(new, name), tensor), name
