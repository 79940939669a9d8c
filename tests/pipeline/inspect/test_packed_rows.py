"""The fill of rows, and rows as runs, against the rows that training gets."""

from pathlib import Path

import numpy as np
import pytest

from plait.pipeline.inspect.count import count_stream
from plait.pipeline.inspect.packed_rows import MARKER, PADDING, pack, varied
from plait.pipeline.inspect.stream_terminal import bars, letters, row_letters
from plait.pipeline.rows import Rows

from ..made_stream import random_stream, text_stream


@pytest.mark.parametrize(("seq_len", "longest"), [(32, 60), (64, 20), (256, 300)])
def test_fill_and_runs_are_those_of_rows(tmp_path: Path, seq_len: int, longest: int):
    stream, made = random_stream(tmp_path, documents=120, longest=longest)
    packed = pack(stream, count_stream(stream).sizes, seq_len)
    assert packed is not None and packed.seq_len == seq_len
    rows = Rows(stream, seq_len=seq_len)
    batch = rows.batch(range(len(rows)))
    kept = ~batch.padding_BT.numpy()
    assert packed.rows == len(rows)
    assert packed.tokens == kept.sum()
    assert packed.fill == pytest.approx(kept.mean())
    sizes = [2 + sum(len(e.ids) + 2 * (t != 0) for t, e in d.spans) for d in made]
    assert packed.longer == sum(size > seq_len for size in sizes)
    assert np.mean([s <= packed.keeps_95 for s in sizes]) >= 0.95
    assert np.mean([s <= packed.keeps_95 // 2 for s in sizes]) < 0.95
    assert len(packed.examples) == min(8, len(rows))
    names = [info.modality for info in stream.tokenizers]
    modalities = [rows.vocabulary.modalities.index(name) for name in names]
    for number, runs in packed.examples:
        document = np.repeat([r.document for r in runs], [r.tokens for r in runs])
        assert document.tolist() == batch.document_BT[number].tolist()
        kinds = np.repeat([r.kind for r in runs], [r.tokens for r in runs])
        modality = np.array([*modalities, 0, 0])[kinds]  # PADDING and MARKER are the last two
        assert (modality == batch.modality_BT[number].numpy()).all()
        assert ((kinds == PADDING) == ~kept[number]).all()
        markers = batch.tokens_BT[number].numpy() < len(rows.vocabulary.specials)
        assert ((kinds == MARKER) == (markers & kept[number])).all()


def test_rows_grow_until_a_picture_fits(tmp_path: Path):
    stream, _ = random_stream(tmp_path, documents=40)
    sizes = count_stream(stream).sizes
    packed = pack(stream, sizes, 8)
    assert packed is not None and packed.seq_len == 32
    assert pack(stream, sizes, 8, most=16) is None


def test_letters_of_a_row(tmp_path: Path):
    """Case tells documents apart, a cell shows what it holds most of, padding is a point."""
    stream = text_stream(tmp_path, [[18, 10]])
    packed = pack(stream, count_stream(stream).sizes, 40)
    assert packed is not None and packed.rows == 1
    cells = row_letters(packed.examples[0][1], ["T", "I", "S", "B"], 20)
    words = "".join(letter for letter, _ in cells)
    assert words in ("T" * 10 + "t" * 6 + "....", "T" * 6 + "t" * 10 + "....")
    assert letters(["text", "speech", "touch", "x1"]) == {
        "text": "T",
        "speech": "S",
        "touch": "O",
        "x1": "X",
    }
    assert bars([0, 0, 5]) == "  █" and bars([]) == ""


def test_varied_rows_show_what_is_rare():
    tokens = np.zeros((50, 3))
    tokens[:, 0] = 16
    tokens[37] = [8, 8, 0]
    chosen = varied(tokens, 4)
    assert 37 in chosen and len(set(chosen)) == 4 and chosen == sorted(chosen)
