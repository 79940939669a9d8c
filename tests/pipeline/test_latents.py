"""Continuous latents through the command line: fit, shard, stream, inspect, packed rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.pipeline import cli
from plait.pipeline.block import EncodedDocument
from plait.pipeline.inspect.row_spans import Places, encoded_piece, pieces
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Span, Stream
from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.errors import SampleError
from plait.tokenizers.image import KLAutoencoder

from .made_stream import write_stream

COUNT = 24
OPTIONS = ["--method", "kl", "--size", "16", "--stride", "4", "--channels", "3"]
OPTIONS += ["--preset", "tiny", "--steps", "30", "--held-out", "0.3", "--n-patches", "500"]


def picture(seed: int) -> Image.Image:
    """A slope of colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:20, :26] / 26
    slopes = rng.uniform(-200, 200, (3, 2))
    pixels = [128 + a * (x - 0.5) + b * (y - 0.5) for a, b in slopes]
    return Image.fromarray(np.stack(pixels, -1).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions, tokenizers for both, and their stream."""
    folder = tmp_path_factory.mktemp("latents")
    data, rows = folder / "data", []
    data.mkdir()
    for i in range(COUNT):
        picture(i).save(data / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"slope number {i}"}))
    (data / "metadata.jsonl").write_text("\n".join(rows))
    fit = ["--out", str(folder / "kl"), *OPTIONS]
    assert cli.main(["fit", "image", str(data), *fit]) == 0
    assert (
        cli.main(["fit", "text", str(data), "--out", str(folder / "t"), "--vocab-size", "300"]) == 0
    )
    made = ["--tokenizer", str(folder / "kl"), "--tokenizer", str(folder / "t")]
    out = ["--out", str(folder / "stream"), "--workers", "1"]
    assert cli.main(["shard", str(data), *made, *out]) == 0
    return folder


def test_the_stream_gives_the_latents_back(folder: Path):
    tokenizer = load_tokenizer(folder / "kl")
    assert isinstance(tokenizer, KLAutoencoder)
    stream = Stream(folder / "stream")
    seen = set()
    for i in range(len(stream)):
        document = stream.document(i)
        (span,) = [s for s in document.spans if s.modality == "image"]
        number = int(Path(document.key).stem)
        expected = tokenizer.encode_batch([picture(number)])[0]
        assert span.latents is not None and expected.latents is not None
        assert span.latents.dtype == np.float16 and span.width == 4
        assert np.array_equal(span.latents, expected.latents) and not span.ids.any()
        before, after = picture(number).resize((16, 16)), tokenizer.decode(span.encoded)
        assert np.abs(np.array(before, float) - np.array(after, float)).mean() < 30
        assert all(s.latents is None for s in document.spans if s is not span)
        seen.add(number)
    assert seen == set(range(COUNT))


def test_the_report_and_its_page(folder: Path):
    report = json.loads((folder / "kl" / "report.json").read_text())
    figures = {"psnr", "ssim", "frechet_texture", "kl_nats", "latents_mean", "latents_deviation"}
    assert figures < set(report["metrics"]) and report["vocab_size"] == 1
    assert {"error", "kl nats"} == set(report["curves"])
    assert len(report["curves"]["kl nats"]) == 3
    page = (folder / "kl" / "report.html").read_text()
    assert page.count("before: a picture") == page.count("after: a picture") > 1
    assert "Latents" in page and "Code use" not in page
    assert "kl nats over share of the fit" in page


def test_inspect(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.html"
    command = ["inspect", str(folder / "stream"), "--json", "--html", str(page)]
    assert cli.main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    image = facts["modalities"]["image"]
    assert (image["tokens"], image["vocab_size"], image["codes_used"]) == (16 * COUNT, 1, 1)
    assert image["perplexity"] == 1 and image["entropy_bits"] == 0
    assert not any(alert.startswith("image") for alert in facts["alerts"])
    assert page.read_text().count("data:image/png") > 1
    assert "cannot be decoded" not in page.read_text()


def test_packed_rows_hold_places_alone(folder: Path):
    rows = Rows(Stream(folder / "stream"), seq_len=64)
    (place,) = {int(t) for t in rows[0].tokens} & {rows.vocabulary.start("image")}
    assert (rows[0].tokens == place).sum() >= 16
    ids = rows.vocabulary.to_local("image", np.full(16, place))
    tokenizer = load_tokenizer(folder / "kl")
    with pytest.raises(SampleError, match="its ids hold nothing"):
        tokenizer.decode(Span(name="image", modality="image", ids=ids, width=4).encoded)


def test_a_page_tells_pictures_of_one_document_apart(tmp_path: Path):
    """All have the same ids, so their place says which is which."""
    pictures = [
        Encoded(ids=np.zeros(4, np.int64), width=2, latents=np.full((4, 1), i)) for i in range(3)
    ]
    made = EncodedDocument(key="a", metadata={}, spans=[(1, picture) for picture in pictures])
    stream = write_stream(tmp_path, [[made]])
    rows = Rows(stream, seq_len=32)
    document = stream.document(0)
    places = Places(rows[0], rows.vocabulary, [document])
    found = [
        encoded_piece(document, places.within(piece), np.zeros(len(piece), np.int64)).latents
        for piece in pieces(rows[0], rows.vocabulary)
        if piece.tokenizer is not None
    ]
    assert [latents[:, 0].tolist() for latents in found if latents is not None] == [
        [float(i)] * 4 for i in range(3)
    ]
