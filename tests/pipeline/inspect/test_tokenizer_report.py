"""A tokenizer's report shows its work on samples, in the terminal and on a page."""

import re
from html import unescape
from pathlib import Path

import pytest
import torch

from plait.pipeline import cli
from plait.pipeline.inspect import tokenizer_report
from plait.pipeline.inspect.tokenizer_report import SENTENCES, TokenizerReport
from plait.tokenizers import byte_patch, text
from plait.tokenizers.image import PatchKMeans


@pytest.fixture(scope="module")
def folders(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers of text, bytes and pictures."""
    folder = tmp_path_factory.mktemp("tokenizers")
    captions = (sample_data / "images" / "metadata.jsonl").read_text(encoding="utf-8")
    text.fit([captions, *SENTENCES], text.FitOptions(vocab_size=500)).save(folder / "text")
    options = byte_patch.FitOptions(method="entropy", max_patch=0)
    byte_patch.fit([captions.encode()], options).save(folder / "bytes")
    centroids_KP = torch.rand(30, 3 * 8**2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    PatchKMeans(centroids_KP, 32, 8).save(folder / "image")
    return folder


def written(folder: Path, tmp_path: Path) -> str:
    page = tmp_path / "page.html"
    assert cli.main(["inspect", str(folder), "--html", str(page)]) == 0
    source = page.read_text(encoding="utf-8")
    assert len(source) < 2_000_000
    return source


def boxes(source: str) -> list[list[str]]:
    """The pieces of each box of tokens."""
    found = re.findall(r'<div class="tokens[^"]*">(.*?)</div>', source, re.DOTALL)
    return [
        [unescape(p) for p in re.findall("<span[^>]*>(.*?)</span>", b, re.DOTALL)] for b in found
    ]


def test_text(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, shown = written(folders / "text", tmp_path), capsys.readouterr().out
    spelled = ["".join(box) for box in boxes(source)[:3]]
    wanted = [s.replace("\n", "\u21b5\n").replace("\t", "\u2192\t") for s in SENTENCES]
    assert spelled == wanted
    tokenizer = TokenizerReport.read(folders / "text").tokenizer
    assert f"{len(tokenizer.encode_batch([SENTENCES[0]])[0].ids)} tokens" in source
    names = tokenizer_report.piece_names(tokenizer)
    longest, shortest = tokenizer_report.longest_and_shortest(names)
    assert len(longest[0][1]) == max(map(len, names.values())) and len(shortest[0][1]) == 1
    assert boxes(source)[3] == [name for _, name in longest]
    assert "\u2502" in shown and "longest" in shown
    first = shown.replace("\u2502", "").replace("\u00b7", " ").replace("\n", "")
    assert SENTENCES[0] in first


def test_bytes(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, shown = written(folders / "bytes", tmp_path), capsys.readouterr().out
    tokenizer = TokenizerReport.read(folders / "bytes").tokenizer
    [encoded] = tokenizer.encode_batch([SENTENCES[0].encode()])
    assert encoded.patch_starts is not None
    assert len(boxes(source)[0]) == encoded.patch_starts.sum() > 3
    assert source.count("--e:") == sum(map(len, boxes(source)))
    assert "A patch begins above" in source and "\u2502" in shown


def test_image(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, shown = written(folders / "image", tmp_path), capsys.readouterr().out
    assert source.count("<img") == 2 * tokenizer_report.SHOWN + 1
    assert '"atlases":[{"columns":30,"codes":[0,1,' in source
    assert shown.count(" dB") == tokenizer_report.SHOWN
    assert "Before and after" in source and "Codebook atlas" in source


def test_values_are_bounded():
    [[name, value], _] = tokenizer_report.flat({"a": {"curve": list(range(9999))}, "b": 1})
    assert name == "a.curve" and len(value) < 2100
