import json
import pickle
import time
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from plait.pipeline.batch import Batch
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
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
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


@pytest.mark.parametrize("prefetch", [0, 1, 3, 8])
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


def drawn_documents(rows, first, last):
    return [name for i in range(first, last) for name in rows.documents_of(i)]


def test_weights_change_when_a_run_resumes(tmp_path):
    streams = [text_stream(tmp_path / n, [[10] * 400], seed=i) for i, n in enumerate("ab")]
    old, new, newest = ([3, 1], [1, 3], [1, 1])
    first = Loader(Rows(streams, seq_len=12, weights=old), batch_size=4)
    assert len(list(islice(first, 10))) == 10
    state = first.state_dict()
    with pytest.raises(ResumeError, match="weights was"):
        Loader(Rows(streams, seq_len=12, weights=new), batch_size=4).load_state_dict(state)
    for weights in (new, new, newest):
        loader = Loader(Rows(streams, seq_len=12, weights=weights), batch_size=4)
        loader.load_state_dict(state, new_weights=True)
        assert len(list(islice(loader, 15))) == 15
        state = json.loads(json.dumps(loader.state_dict()))
    assert len(json.dumps(state)) < 600
    drawn = drawn_documents(loader.rows, 0, 220)
    assert drawn[:40] == drawn_documents(first.rows, 0, 40)
    assert len(set(drawn)) == 220
    shares = [(0, 40, 0.75), (40, 160, 0.25), (160, 220, 0.5)]
    for start, stop, share in shares:
        for i in range(start, stop):
            taken = sum(s == 0 for s, _ in drawn[start : i + 1])
            assert abs(taken - share * (i + 1 - start)) < 1
    again = Loader(Rows(streams, seq_len=12, weights=newest), batch_size=4)
    again.load_state_dict(state, new_weights=True)
    assert drawn_documents(again.rows, 0, 220) == drawn
    assert again.epochs == loader.epochs == again.rows.epochs(220)


def test_other_rows_are_refused_though_weights_may_change(stream):
    state = Loader(Rows(stream, seq_len=48), batch_size=4).state_dict()
    loader = Loader(Rows(stream, seq_len=48, seed=1), batch_size=4)
    with pytest.raises(ResumeError, match="seed was 0"):
        loader.load_state_dict(state, new_weights=True)


@pytest.mark.parametrize("prefetch", [0, 1, 3, 8])
def test_batches_end_where_rows_stop(stream, prefetch):
    rows = Rows(stream, seq_len=48, exhausted="stop")
    loader = Loader(rows, batch_size=4, prefetch=prefetch)
    assert len(list(loader)) == len(rows) // 4 == loader.steps
    failing = Rows(stream, seq_len=48, exhausted="error")
    loader = Loader(failing, batch_size=4, prefetch=prefetch)
    with pytest.raises(ConfigError, match="exhausted"):
        list(loader)


def test_rows_go_through_a_pickle(stream, tmp_path):
    other = text_stream(tmp_path, [[9] * 20])
    rows = Rows([stream, other], seq_len=48, weights=[(0, [1, 1]), (7, [1, 2])], seed=4)
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.fingerprint == rows.fingerprint
    assert torch.equal(copy.batch(range(40)).tokens_BT, rows.batch(range(40)).tokens_BT)


def test_torch_makes_the_same_batches_with_workers(stream):
    rows = Rows(stream, seq_len=48)
    loaded = DataLoader(rows, batch_size=8, num_workers=2, multiprocessing_context="spawn")
    batches = list(loaded)
    assert len(batches) == -(-len(rows) // 8)
    for step, batch in enumerate(batches):
        numbers = range(8 * step, min(8 * step + 8, len(rows)))
        want = rows.batch(numbers)
        assert isinstance(batch, Batch) and batch.modalities == want.modalities
        assert all(map(torch.equal, tensors(batch), tensors(want)))
        assert (batch.patch_start_BT is None) == (want.patch_start_BT is None)
        if want.patch_start_BT is not None:
            assert torch.equal(batch.patch_start_BT, want.patch_start_BT)


def test_torch_shuffles_rows_in_this_process(stream):
    rows = Rows(stream, seq_len=48)
    generator = torch.Generator().manual_seed(1)
    batches = list(DataLoader(rows, batch_size=5, shuffle=True, generator=generator))
    tokens = sorted(row.numpy().tobytes() for batch in batches for row in batch.tokens_BT)
    assert tokens == sorted(rows[i].tokens.tobytes() for i in range(len(rows)))


def test_a_prepared_batch_comes_in_its_place(stream):
    rows = Rows(stream, seq_len=48)
    loader = Loader(rows, batch_size=4, prepare=lambda batch: (batch.step, batch.fill))
    assert [step for step, _ in islice(loader, 3)] == [0, 1, 2]
    assert loader.wait_s > 0


@pytest.mark.parametrize("prefetch", [1, 2, 5, 8])
def test_no_more_batches_lie_ready_than_asked_for(stream, prefetch):
    made = []
    loader = Loader(
        Rows(stream, seq_len=48),
        batch_size=4,
        prefetch=prefetch,
        prepare=lambda batch: made.append(batch.step),
    )
    for taken, _ in enumerate(islice(loader, 30), start=1):
        if taken % 7 == 0:
            time.sleep(0.02)
            assert taken < len(made) <= taken + prefetch


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
