import json
from itertools import islice

import pytest
import torch

from plait.pipeline.loader import Loader
from plait.pipeline.rows import Rows
from plait.tokenizers.errors import ConfigError, ResumeError

from .made_stream import random_stream, text_stream


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return random_stream(tmp_path_factory.mktemp("loader"), documents=100)[0]


def tensors(batch):
    names = ("tokens", "modality", "document", "position", "loss_mask")
    return [getattr(batch, f"{name}_BT") for name in names]


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_make_the_same_global_batches(stream, packing, world_size):
    rows = Rows(stream, seq_len=48, packing=packing, seed=2)
    alone = list(islice(Loader(rows, batch_size=8), 30))
    parts = [
        list(islice(Loader(rows, batch_size=8, rank=r, world_size=world_size, prefetch=r), 30))
        for r in range(world_size)
    ]
    for step, batch in enumerate(alone):
        assert batch.step == step
        together = [torch.cat(x) for x in zip(*(tensors(p[step]) for p in parts), strict=True)]
        assert all(map(torch.equal, tensors(batch), together))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumes_at_any_step(stream, prefetch):
    rows = Rows(stream, seq_len=48)
    whole = list(islice(Loader(rows, batch_size=4), 40))
    for step in (0, 1, 7, 39):
        first = Loader(rows, batch_size=4, prefetch=prefetch)
        assert len(list(islice(first, step))) == step
        state = json.loads(json.dumps(first.state_dict()))
        fresh = Loader(Rows(stream, seq_len=48), batch_size=4, rank=0, world_size=2)
        fresh.load_state_dict(state)
        batch = next(iter(fresh))
        assert batch.step == step
        assert torch.equal(batch.tokens_BT, whole[step].tokens_BT[:2])


def test_another_order_is_refused_by_name(stream, tmp_path):
    state = Loader(Rows(stream, seq_len=48), batch_size=4).state_dict()
    other = text_stream(tmp_path, [[5, 6]])
    cases = [
        (Rows(stream, seq_len=48, seed=1), 4, "seed was 0, is 1"),
        (Rows(stream, seq_len=50), 4, "seq_len was 48, is 50"),
        (Rows(stream, seq_len=48, packing="concat"), 4, "packing was 'best_fit'"),
        (Rows(stream, seq_len=48, split="train", validation=0.1), 4, "split was 'all'"),
        (Rows([stream, other], seq_len=48, weights=[2, 1]), 4, r"weights was None, is \[2, 1\]"),
        (Rows(other, seq_len=48), 4, "streams was"),
        (Rows(stream, seq_len=48), 8, "batch_size was 4, is 8"),
    ]
    for rows, batch_size, message in cases:
        with pytest.raises(ResumeError, match=message):
            Loader(rows, batch_size=batch_size).load_state_dict(state)
    with pytest.raises(ResumeError, match="no state"):
        Loader(Rows(stream, seq_len=48), batch_size=4).load_state_dict({"step": 3})


def test_a_prepared_batch_comes_in_its_place(stream):
    rows = Rows(stream, seq_len=48)
    loader = Loader(rows, batch_size=4, prepare=lambda batch: (batch.step, batch.fill))
    assert [step for step, _ in islice(loader, 3)] == [0, 1, 2]
    assert loader.wait_s > 0


def test_an_error_in_the_thread_reaches_the_consumer(stream):
    def fail(batch):
        if batch.step == 2:
            raise RuntimeError("prepare failed")
        return batch

    loader = Loader(Rows(stream, seq_len=48), batch_size=4, prepare=fail)
    with pytest.raises(RuntimeError, match="prepare failed"):
        list(islice(loader, 5))
    assert loader.step == 2


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(5, 0, 2), (0, 0, 1), (4, 2, 2)])
def test_ranks_that_cannot_be(stream, batch_size, rank, world_size):
    with pytest.raises(ConfigError):
        Loader(Rows(stream, seq_len=48), batch_size=batch_size, rank=rank, world_size=world_size)
