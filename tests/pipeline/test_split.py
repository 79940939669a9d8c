"""The split: by hash, with a document of each modality held out."""

import numpy as np
import pytest

from plait.pipeline.rows import Rows
from plait.pipeline.split import Splitter
from plait.tokenizers.errors import ConfigError

from .made_stream import document, random_stream, text_stream, write_stream


def held_out(stream, seed, validation=0.05):
    splits = {
        split: Splitter(stream, seed=seed, split=split, validation=validation).chosen(
            np.arange(stream.documents)
        )
        for split in ("train", "validation")
    }
    assert (splits["train"] ^ splits["validation"]).all()
    return np.flatnonzero(splits["validation"]).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_of_each_modality_a_document_is_held_out(tmp_path, seed):
    """Three documents of each rare modality among many of text."""
    rng = np.random.default_rng(seed)
    kinds = ["text"] * 60 + ["image", "speech", "bytes"] * 3
    made = [document(i, [(str(k), 8)], rng) for i, k in enumerate(rng.permutation(kinds))]
    stream = write_stream(tmp_path, [made[:30], made[30:]])
    out = held_out(stream, seed)
    assert {made[i].spans[0][0] for i in out} == {0, 1, 2, 3}
    assert len(out) < 15


def test_a_modality_with_one_document_is_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [[("text", 5)]] * 3 + [[("speech", 6)]]
    made = [document(i, shape, rng) for i, shape in enumerate(shapes)]
    assert 3 not in held_out(write_stream(tmp_path, [made]), seed=0, validation=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_two_documents_give_one_to_each_split(tmp_path, seed):
    rng = np.random.default_rng(seed)
    shape = [("text", 5), ("image", 8), ("speech", 6), ("bytes", 3)]
    made = [document(i, shape, rng) for i in range(2)]
    for shards in ([made], [made[:1], made[1:]]):
        stream = write_stream(tmp_path / str(len(shards)), shards)
        assert len(held_out(stream, seed, validation=1e-9)) == 1
        for split in ("train", "validation"):
            assert len(Rows(stream, seq_len=64, seed=seed, split=split, validation=1e-9)) == 1


def test_the_share_is_kept(tmp_path):
    stream, _ = random_stream(tmp_path, documents=2000, shards=5)
    assert 60 <= len(held_out(stream, seed=1)) <= 145
    assert held_out(stream, seed=1) != held_out(stream, seed=2)


@pytest.mark.parametrize(
    ("split", "validation"), [("test", 0.1), ("validation", 0.0), ("train", 1.0), ("train", -0.1)]
)
def test_wrong_splits_are_refused(tmp_path, split, validation):
    with pytest.raises(ConfigError, match=r"^(split 'test'|validation)"):
        Splitter(text_stream(tmp_path, [[5]]), seed=0, split=split, validation=validation)
