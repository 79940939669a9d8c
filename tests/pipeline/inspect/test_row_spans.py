"""Pieces of packed rows lie where they say in their documents, and targets are seen."""

from pathlib import Path

import numpy as np
import pytest

from plait.pipeline import cli
from plait.pipeline.inspect import batch_view
from plait.pipeline.inspect.batch_view import BatchView
from plait.pipeline.inspect.row_spans import Places, encoded_piece, pieces, targets
from plait.pipeline.learned import Learned
from plait.pipeline.rows import Packing, Rows
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError

from ..made_stream import document, random_stream, write_stream


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_pieces_lie_where_they_say(tmp_path: Path, packing: Packing):
    stream, _ = random_stream(tmp_path, documents=120, longest=90)
    rows = Rows(stream, seq_len=64, packing=packing)
    seen = cut = 0
    for number in range(len(rows)):
        row = rows[number]
        documents = [stream.document(i) for _, i in rows.documents_of(number)]
        places = Places(row, rows.vocabulary, documents)
        found = list(pieces(row, rows.vocabulary))
        assert [p.start for p in found] == [0, *(p.stop for p in found[:-1])]
        assert found[-1].stop == len(row.tokens)
        for piece in found:
            if piece.tokenizer is None:
                continue
            within, source = places.within(piece), documents[piece.document]
            local = rows.vocabulary.to_local(
                piece.tokenizer.name, row.tokens[piece.start : piece.stop]
            )
            stored = [span.ids for span in source.spans[within.span :]]
            assert np.array_equal(np.concatenate(stored)[within.offset :][: len(piece)], local)
            whole = source.spans[within.span].encoded
            encoded = encoded_piece(source, within, local)
            if whole.latents is not None and encoded.latents is not None:
                here = slice(within.offset, within.offset + len(piece))
                assert np.array_equal(encoded.latents, whole.latents[here])
            seen, cut = seen + 1, cut + (within.offset > 0)
    assert seen > 200 and cut > 10


def test_targets_are_those_of_the_loss_mask(tmp_path: Path):
    rng = np.random.default_rng(0)
    shapes = [[("text", 5), ("image", 8), ("text", 3)]] * 4
    stream = write_stream(tmp_path, [[document(i, s, rng) for i, s in enumerate(shapes)]])
    row = Rows(stream, seq_len=21, learned=Learned(mask=("image",)))[0]
    learned_T = targets(row)
    # <bos> 5 words <image> 8 codes </image> 3 words <eos>, then padding
    wanted = [False] + [True] * 5 + [False] * 10 + [True] * 4 + [False]
    assert learned_T.tolist() == wanted


def no_tokenizer(name: str) -> Tokenizer:
    raise ConfigError(f"no tokenizer {name}")


def test_masked_spans_are_hatched(tmp_path: Path):
    stream, _ = random_stream(tmp_path, documents=60)
    rows = Rows(stream, seq_len=256, learned=Learned(mask=("image",)))
    view = BatchView(rows, no_tokenizer)
    images = [b for b in view.markup.split("<button")[1:] if ", image," in b]
    others = [b for b in view.markup.split("<button")[1:] if ", image," not in b]
    assert images and all(
        "no target" in b and "left:0%;width:100%" in b.replace(".00", "") for b in images
    )
    assert others and not any("no target" in b for b in others)
    assert view.learned < 0.95
    unmasked = BatchView(Rows(stream, seq_len=256), no_tokenizer)
    assert "no target" not in unmasked.markup


def test_what_is_not_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_view, "MOST_SPANS", 8)
    stream, _ = random_stream(tmp_path, documents=60, longest=10)
    view = BatchView(Rows(stream, seq_len=512), no_tokenizer, count=2)
    assert view.markup.count("<button") == 8
    assert view.markup.count("more tokens, not drawn") == 2
    places = [len(d["parts"]) for row in view.data for d in row]  # pyright: ignore
    assert sum(places) == 8


def test_very_many_and_very_long_documents_keep_the_page_small(tmp_path: Path):
    rng = np.random.default_rng(0)
    made = [document(i, [("text", 1 + i % 3)], rng) for i in range(12_000)]
    for i in range(0, 12_000, 4_000):
        object.__setattr__(made[i], "key", "\u202ekey" * 100_000)
    view = BatchView(Rows(write_stream(tmp_path, [made]), seq_len=32_768), no_tokenizer)
    assert len(str(view.page_data)) + len(view.markup) < 1_000_000
    keys = [d["key"] for row in view.data for d in row]
    assert max(len(str(key)) for key in keys) < 250


def test_a_mask_of_no_modality_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A row that is too short for a picture is not; it is made longer."""
    random_stream(tmp_path / "s", documents=30)
    page = tmp_path / "p.html"
    command = ["inspect", str(tmp_path / "s"), "--html", str(page)]
    assert cli.main([*command, "--mask", "smell"]) == 2
    assert "no modality 'smell'" in capsys.readouterr().err and not page.exists()
    assert cli.main([*command, "--seq-len", "4"]) == 0 and "A packed batch" in page.read_text()
