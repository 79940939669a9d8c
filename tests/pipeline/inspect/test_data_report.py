"""A mixture's shares against batches that are counted, and a run's validation in its training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from plait.pipeline import cli
from plait.pipeline.inspect.mixture_shares import mixture_shares, modality_shares
from plait.pipeline.rows import Rows

from ..made_stream import document, random_stream, text_stream, write_stream

WEIGHTS = [[3.0, 1.0], None, [(0, [1.0, 1.0]), (12, [1.0, 3.0])]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_are_those_of_the_rows(tmp_path: Path, weights: list | None):
    """A whole number of epochs of the shorter stream, or nearly: tokens are counted in batches."""
    one, _ = random_stream(tmp_path / "one", documents=60, longest=30)
    two = text_stream(tmp_path / "two", [[20, 40, 5, 60] * 20])
    rows = Rows([one, two], seq_len=64, weights=weights)
    count = 400
    batch = rows.batch(range(count))
    streams = [rows.documents_of(row)[0][0] for row in range(count)]
    kept = (~batch.padding_BT).sum(1).numpy()
    found = mixture_shares(rows, count)
    assert [s.name for s in found] == ["one", "two"]
    for number, s in enumerate(found):
        mine = np.array(streams) == number
        assert s.rows == pytest.approx(mine.mean())
        assert s.tokens == pytest.approx(kept[mine].sum() / kept.sum(), abs=0.01)
        assert s.fill == pytest.approx(kept[mine].mean() / 64, abs=0.02)
        assert s.weight == pytest.approx(s.rows, abs=2 / count)
        assert s.drift == pytest.approx(s.tokens - s.weight)
    assert sum(s.documents for s in found) == pytest.approx(1)
    special = len(rows.vocabulary.specials)
    plain = batch.tokens_BT >= special
    for number, (_, share) in enumerate(modality_shares(rows, count).items()):
        of_all = ((batch.modality_BT == number) & plain).sum() / plain.sum()
        assert share == pytest.approx(float(of_all), abs=0.02)


def run_folder(folder: Path, data: list[Path], held_out: list[Path], share: float = 0.25) -> Path:
    folder.mkdir()
    config = {
        "data": [str(path) for path in data],
        "seed": 5,
        "steps": 20,
        "rows": {"seq_len": 64, "batch_size": 4, "accumulate": 2, "packing": "concat", "cut": []},
        "mixture": {
            "weights": [0.75, 0.25],
            "temperature": 1.0,
            "shares": {},
            "exhausted": "repeat",
        },
        "validation": {"share": share, "data": [str(path) for path in held_out]},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    return folder


def inspected(capsys: pytest.CaptureFixture[str], *command: str | Path) -> dict:
    assert cli.main(["inspect", *map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_s_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its rows and weights; its own split, across streams; else its validation streams."""
    rng = np.random.default_rng(0)
    made = [document(i, [("text", 20 + i % 9)], rng) for i in range(80)]
    one = write_stream(tmp_path / "one", [made[:60]])
    two = write_stream(tmp_path / "two", [[replace(d, key=f"{d.key}x") for d in made[40:]]])
    run = run_folder(tmp_path / "run", [tmp_path / "one", tmp_path / "two"], [])
    found = inspected(capsys, run, "--data")
    assert (found["rows"], found["seq_len"]) == (160, 64)
    assert [s["weight"] for s in found["streams"]] == [0.75, 0.25]
    splits = [
        {
            name: {d for r in range(len(rows)) for _, d in rows.documents_of(r)}
            for name in ("train", "validation")
            for rows in [Rows(s, seq_len=64, seed=5, split=name, validation=0.25)]
        }
        for s in (one, two)
    ]
    kept = splits[0]["validation"] | {40 + d for d in splits[1]["validation"]}
    trained = splits[0]["train"] | {40 + d for d in splits[1]["train"]}
    leaked = sum(d in trained for d in splits[0]["validation"])
    leaked += sum(40 + d in trained for d in splits[1]["validation"])
    assert len(kept) > 10 and leaked > 2
    assert found["validation"]["same_content"] == leaked
    assert found["validation"]["same_key"] == 0
    assert "hold the same as a training document" in found["alerts"][0]
    third = write_stream(tmp_path / "three", [[made[1], document(99, [("text", 9)], rng)]])
    run = run_folder(tmp_path / "run2", [tmp_path / "one", tmp_path / "two"], [third.path])
    found = inspected(capsys, run, "--data")
    assert [found["validation"][n] for n in ("documents", "same_content", "same_key")] == [2, 1, 1]


def test_streams_that_are_to_be_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    random_stream(tmp_path / "one", documents=60, longest=30)
    text_stream(tmp_path / "two", [[20, 40, 5, 60] * 20])
    paths = [str(tmp_path / "one"), str(tmp_path / "two")]
    options = ["--seq-len", "64", "--weights", "1", "3"]
    found = inspected(capsys, *paths, *options)
    assert [round(s["rows"], 2) for s in found["streams"]] == [0.25, 0.75]
    assert sum(found["modalities"].values()) == pytest.approx(1)
    page = tmp_path / "p.html"
    assert cli.main(["inspect", *paths, *options, "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "Weight" in shown and f"{found['streams'][0]['tokens']:.1%}" in shown
    assert f"{found['streams'][0]['tokens']:.1%}" in page.read_text()
    assert cli.main(["inspect", *paths, "--weights", "1"]) == 2
    assert "2 streams and 1 --weights: one each" in capsys.readouterr().err
    assert cli.main(["inspect", paths[0], "--data"]) == 2
    assert "no run's" in capsys.readouterr().err
