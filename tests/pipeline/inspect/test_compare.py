"""`plait inspect A B`: the facts of both and their differences, against counts of the documents."""

import json
from collections import Counter
from pathlib import Path

import pytest

from plait.pipeline import cli

from ..made_stream import random_stream
from .test_run_report import write_run


def compared(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict:
    assert cli.main(["inspect", *map(str, paths), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    documents = [random_stream(tmp_path / n, documents=k)[1] for n, k in (("a", 30), ("b", 50))]
    names = ["text", "image", "speech", "bytes"]
    tokens = []
    for made in documents:
        count: Counter[str] = Counter()
        for document in made:
            for kind, encoded in document.spans:
                count[names[kind]] += len(encoded.ids)
        tokens.append(count)
    found = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert found["kind"] == "stream"
    assert found["compared"] == {"A": str(tmp_path / "a"), "B": str(tmp_path / "b")}
    assert [facts["documents"] for facts in found["facts"]] == [30, 50]
    a, b = tokens
    for name in names:
        wanted = {"values": [a[name], b[name]], "difference": [b[name] - a[name]]}
        wanted["share"] = [pytest.approx((b[name] - a[name]) / a[name])]
        assert found["differs"][f"modalities.{name}.tokens"] == wanted
        share = found["differs"][f"shares.{name}"]["values"]
        assert share == pytest.approx([n[name] / n.total() for n in tokens])
    assert "modalities.text.vocab_size" not in found["differs"]
    file = tmp_path / "page.html"
    assert cli.main(["inspect", *(str(tmp_path / n) for n in "ab"), "--html", str(file)]) == 0
    terminal, page = capsys.readouterr().out, file.read_text()
    for text in (terminal, page):
        assert f"{a['text']:,}" in text and f"{b['text'] - a['text']:+,}" in text
    assert page.count('class="stack"') == 2
    assert page.count('aria-label="Histogram') == 8


def line(step: int, text: float, **more: float) -> dict:
    return {"step": step, "loss": 2 * text, "loss/text": text, "tokens/text": 100 * step, **more}


def test_three_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write_run(tmp_path / "a", [line(1, 3.0), line(2, 2.0, **{"validation/loss": 5.0})])
    b = write_run(tmp_path / "b", [line(1, 3.0), line(2, 1.5, mfu=0.5)])
    c = write_run(tmp_path / "c", [line(2, 2.0)])
    (c / "config.toml").write_text('preset = "dense"\nsteps = 9\n[model]\ndim = 32\n')
    found = compared(capsys, a, b, c)
    assert found["differs"]["loss.train.text"] == {
        "values": [2.0, 1.5, 2.0],
        "difference": [-0.5, 0.0],
        "share": [-0.25, 0.0],
    }
    assert found["differs"]["loss.validation.all"]["difference"] == [None, None]
    assert found["differs"]["config.steps"]["values"] == [5, 5, 9]
    assert "config.model.dim" not in found["differs"] and "step" not in found["differs"]
    assert cli.main(["inspect", str(a), str(b), "--html", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr().out
    (row,) = (x.split() for x in shown.splitlines() if x.startswith("train text"))
    assert row == ["train", "text", "2", "1.5", "-0.5", "-25.0%"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("over step: A, B") == 2, "training loss of all and of text"
    assert page.count("over step: A") == 3, "and A's validation"


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run", [line(1, 3.0)])
    random_stream(tmp_path / "stream", documents=3, shards=1)
    assert cli.main(["inspect", str(run), str(tmp_path / "stream")]) == 2
    assert f"{tmp_path / 'stream'} is a stream" in capsys.readouterr().err
    assert cli.main(["inspect", *[str(run)] * 6]) == 2
    assert "at most 5" in capsys.readouterr().err
    assert cli.main(["inspect"]) == 2
    assert "name a stream, a run or a tokenizer" in capsys.readouterr().err
