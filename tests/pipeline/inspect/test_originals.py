"""Originals are found in the sources, whole or cut, and only if tokens are theirs."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.pipeline import cli
from plait.pipeline.inspect import originals
from plait.pipeline.inspect.originals import Originals
from plait.pipeline.inspect.row_spans import Within
from plait.pipeline.shard import shard
from plait.pipeline.stream import Stream
from plait.tokenizers import image, speech, text
from plait.tokenizers.media import read_audio, read_image

ORIGINAL = '"original":{'


@pytest.fixture(scope="module")
def tokenizers(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small tokenizers for text, pictures and sounds."""
    folder = tmp_path_factory.mktemp("tokenizers")
    captions = (sample_data / "images" / "metadata.jsonl").read_text(encoding="utf-8")
    sounds = [read_audio(p) for p in sorted((sample_data / "speech").glob("digits_*.flac"))[:4]]
    pictures = [read_image(p) for p in sorted((sample_data / "images").glob("*.png"))[:8]]
    options = image.FitOptions(method="patches", levels=(4, 4), size=32, stride=8, n_patches=128)
    made = {
        "text": text.fit([captions], text.FitOptions(vocab_size=400)),
        "image": image.fit(pictures, options),
        "speech": speech.fit(sounds, speech.FitOptions(codebooks=2, codebook_size=16)),
    }
    for name, tokenizer in made.items():
        tokenizer.save(folder / name)
    return [folder / name for name in made]


@pytest.fixture
def stream(sample_data: Path, tokenizers: list[Path], tmp_path: Path) -> Path:
    """Captioned pictures, one of them broken, loose sounds, and a tar of pictures."""
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    (data / "sounds").mkdir()
    rows = [{"file_name": "broken.png", "caption": "broken"}]
    (data / "pictures" / "broken.png").write_bytes(b"no picture")
    for path in sorted((sample_data / "images").glob("*.png"))[:4]:
        shutil.copy(path, data / "pictures")
        rows.append({"file_name": path.name, "caption": path.stem})
    (data / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for path in sorted((sample_data / "speech").glob("digits_*.flac"))[:3]:
        shutil.copy(path, data / "sounds")
    shard([data], tmp_path / "stream", tokenizers, workers=1)
    return tmp_path / "stream"


def looked_up(folder: Path) -> tuple[dict[str, dict], Originals]:
    """What is found for each document's first span of a picture or sound, by key."""
    stream = Stream(folder)
    search, found = Originals(stream), {}
    for number in range(len(stream)):
        document = stream.document(number)
        for at, span in enumerate(document.spans):
            tokenizer = stream.tokenizer(span.name)
            shown = search.content(number, Within(at, 0), len(span.ids), tokenizer)
            if shown is not None:
                found[document.key] = shown
    return found, search


def pixels(content: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content["src"].partition(",")[2])))


def samples(content: dict) -> np.ndarray:
    data, rate = soundfile.read(io.BytesIO(base64.b64decode(content["src"].partition(",")[2])))
    assert rate == 16_000
    return data


def test_originals_are_found(stream: Path):
    found, search = looked_up(stream)
    assert (search.asked, search.found, len(found)) == (7, 7, 7)
    assert search.words == "7 of 7 originals were found in the stream's sources."
    data = stream.parent / "data"
    for key, content in found.items():
        if content["kind"] == "audio":
            raw = read_audio(data / "sounds" / key.rpartition("/")[2])
            seconds = len(raw.samples) / raw.sample_rate_hz
            assert len(samples(content)) == pytest.approx(16_000 * seconds, abs=2)
        else:
            name = key.partition("#")[0]
            [file] = (data / "pictures").glob(f"{Path(name).stem}.png")
            wanted = read_image(file)
            wanted.thumbnail((originals.SIDE, originals.SIDE))
            assert np.array_equal(np.asarray(pixels(content)), np.asarray(wanted))


def test_of_a_cut_sound_the_part_is_shown(stream: Path):
    opened = Stream(stream)
    number, document = next(
        (i, opened.document(i))
        for i in range(len(opened))
        if opened.document(i).spans[-1].modality == "speech"
    )
    tokenizer, n = opened.tokenizer("speech"), len(document.spans[0].ids)
    half = n // 2 // 2 * 2
    search = Originals(opened)
    whole = search.content(number, Within(0, 0), n, tokenizer)
    part = search.content(number, Within(0, half), n - half, tokenizer)
    assert whole is not None and part is not None
    rest = samples(whole)[-len(samples(part)) :]
    assert len(samples(part)) == pytest.approx(len(samples(whole)) * (1 - half / n), abs=3)
    assert np.abs(rest - samples(part))[200:-200].max() < 2e-3 < np.abs(rest).max()  # but for edges


def test_other_contents_under_the_same_name_are_not_shown(stream: Path):
    for file in (stream.parent / "data" / "pictures").glob("*.png"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(file)
    found, search = looked_up(stream)
    assert {content["kind"] for content in found.values()} == {"audio"}
    assert search.words == "3 of 7 originals were found in the stream's sources."


def test_without_sources_pixels_stand_alone(stream: Path):
    shutil.rmtree(stream.parent / "data")
    page = stream.parent / "page.html"
    assert cli.main(["inspect", str(stream), "--html", str(page)]) == 0
    words = page.read_text()
    assert "The originals are not at hand" in words and ORIGINAL not in words
    assert '"kind":"image"' in words and '"kind":"audio"' in words


def test_originals_stand_in_the_page_unless_they_are_not_wanted(stream: Path):
    page = stream.parent / "page.html"
    assert cli.main(["inspect", str(stream), "--html", str(page)]) == 0
    assert page.read_text().count(ORIGINAL) == 7
    assert cli.main(["inspect", str(stream), "--html", str(page), "--no-originals"]) == 0
    assert ORIGINAL not in page.read_text() and "originals were" not in page.read_text()


def test_time_is_bounded(stream: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(originals, "SEARCH_S", 0.0)
    found, search = looked_up(stream)
    assert not found and search.asked == 7


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("s3://bucket/data.jsonl", "images"),
        ("//host/share/data.jsonl", "images"),
        ("\\\\host\\share", "images"),
        ("none.jsonl", "images"),
        ("data", "os"),
        (7, "images"),
    ],
)
def test_manifests_that_point_elsewhere_open_nothing(path: object, kind: str, tmp_path: Path):
    (tmp_path / "data").mkdir()
    assert originals.open_described({"path": path, "kind": kind}, tmp_path) is None


def test_names_in_a_manifest_do_not_leave_its_folder(stream: Path, tmp_path: Path):
    """A key that climbs out of the folder of loose files finds nothing."""
    manifest = json.loads((stream / "stream.json").read_text())
    number = next(i for i, s in enumerate(manifest["sources"]) if s["kind"] == "audio")
    folder = Path(manifest["sources"][number]["path"])
    assert folder.is_dir()
    inner = folder / "inner"
    inner.mkdir()
    manifest["sources"][number]["path"] = str(inner)
    for file in (folder / "sounds").glob("*.flac"):
        shutil.copy(file, inner.parent / file.name)
    (stream / "stream.json").write_text(json.dumps(manifest))
    found, _ = looked_up(stream)
    assert "audio" not in {content["kind"] for content in found.values()}
