"""A small stream in all four modalities, from the repository's sample data, and a browser."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from plait.pipeline.shard import shard
from plait.tokenizers import byte_patch, image, speech, text
from plait.tokenizers.media import read_audio, read_image

from .browser import chromium

PICTURES, SOUNDS = 20, 8


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def four_tokenizers(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tokenizers that are fitted in a second or two."""
    folder = tmp_path_factory.mktemp("four")
    texts = [p.read_text(encoding="utf-8") for p in sorted(sample_data.glob("text/handbook/*"))]
    pictures = [read_image(p) for p in _some(sample_data, "images", "png", PICTURES)]
    sounds = [read_audio(p) for p in _some(sample_data, "speech", "flac", SOUNDS)]
    patches = image.FitOptions(method="patches", levels=(4, 4), n_patches=2000)
    made = {
        "text": text.fit(texts, text.FitOptions(vocab_size=600)),
        "image": image.fit(pictures, patches),
        "speech": speech.fit(sounds, speech.FitOptions(codebooks=2, codebook_size=16)),
        "bytes": byte_patch.fit([b""], byte_patch.FitOptions()),
    }
    for name, tokenizer in made.items():
        tokenizer.save(folder / name)
    return [folder / name for name in made]


@pytest.fixture(scope="session")
def small_stream(
    sample_data: Path, four_tokenizers: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Captioned pictures and sounds and texts of the sample data; half the texts as bytes."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("small")
    for name, suffix, count in (("images", "png", PICTURES), ("speech", "flac", SOUNDS)):
        (data / name).mkdir()
        names = [p.name for p in _some(sample_data, name, suffix, count)]
        for file in names:
            shutil.copy(sample_data / name / file, data / name / file)
        rows = (sample_data / name / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [row for row in rows if json.loads(row)["file_name"] in names]
        (data / name / "metadata.jsonl").write_text("\n".join(kept), encoding="utf-8")
    shutil.copytree(sample_data / "text" / "handbook", data / "text")
    shard([data], out / "stream", four_tokenizers, workers=1, bytes_share=0.5)
    return out / "stream"


def _some(sample_data: Path, folder: str, suffix: str, count: int) -> list[Path]:
    return sorted((sample_data / folder).glob(f"*.{suffix}"))[:count]
