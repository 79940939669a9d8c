import numpy as np
import pytest

from plait.pipeline.rows import Rows
from plait.pipeline.weights import by_modality, by_temperature, ramp
from plait.tokenizers.errors import ConfigError

from .made_stream import document, text_stream, write_stream


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(0)
    pictures = [document(i, [("text", 6), ("image", 16)], rng) for i in range(200)]
    speech = [document(i, [("speech", int(rng.integers(5, 30)))], rng) for i in range(150)]
    return [
        text_stream(folder / "text", [rng.integers(5, 60, 300).tolist()]),
        write_stream(folder / "pictures", [pictures]),
        write_stream(folder / "speech", [speech]),
    ]


def test_modalities_come_in_the_shares_asked_for(streams):
    wanted = {"text": 0.5, "image": 0.3, "speech": 0.2}
    rows = Rows(streams, seq_len=64, modality_shares=wanted)
    counts = np.zeros(len(rows.vocabulary.modalities))
    for start in range(0, 4000, 200):
        batch = rows.batch(range(start, start + 200))
        counts += batch.modality_masks.sum((1, 2)).numpy()
    shares = dict(zip(rows.vocabulary.modalities, counts / counts.sum(), strict=True))
    assert {m: shares[m] for m in wanted} == pytest.approx(wanted, abs=0.01)


def test_shares_that_the_streams_cannot_make(streams):
    rows = [100, 100, 100]
    with pytest.raises(ConfigError, match="cannot be mixed"):
        by_modality(streams[:2], rows[:2], {"text": 0.1, "image": 0.9})
    with pytest.raises(ConfigError, match="holds speech"):
        by_modality(streams, rows, {"text": 1, "image": 1})
    with pytest.raises(ConfigError, match="from 0 on"):
        by_modality(streams, rows, {"text": -1, "image": 1, "speech": 1})


def test_the_sizes_are_kept_where_they_do(streams):
    alone = by_modality([streams[0], streams[0]], [30, 10], {"text": 1})
    assert alone == pytest.approx([0.75, 0.25])


def test_temperature_evens_out(streams):
    assert by_temperature([100, 1], 1.0) == pytest.approx([100 / 101, 1 / 101], abs=1e-5)
    assert by_temperature([100, 1], 1e6) == pytest.approx([0.5, 0.5], abs=1e-3)
    rows = Rows(streams, seq_len=64, temperature=2.0)
    sizes = np.array([len(Rows(s, seq_len=64)) for s in streams]) ** 0.5
    assert rows.epochs(3000) == pytest.approx(3000 * sizes / sizes.sum() / sizes**2, rel=0.01)
    with pytest.raises(ConfigError, match="temperature"):
        by_temperature([1, 2], 0.0)
    with pytest.raises(ConfigError, match="only one"):
        Rows(streams, seq_len=64, temperature=2.0, weights=[1, 1, 1])


def test_a_ramp_follows_its_line():
    stretches = ramp(100, 420, [0.9, 0.1], [0.1, 0.9])
    assert stretches[0] == (0, [0.9, 0.1]) and stretches[-1] == (420, [0.1, 0.9])
    for row, weights in stretches[1:-1]:
        assert weights[0] == pytest.approx(0.9 - 0.8 * (row + 5 - 100) / 320)
    with pytest.raises(ConfigError, match="ramp"):
        ramp(5, 10, [1, 0], [0, 1])
