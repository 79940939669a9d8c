import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.pipeline import cli
from plait.pipeline.fit import FitJob, find_module, main, run_fit
from plait.pipeline.fit_samples import find_samples
from plait.tokenizers.base import load_tokenizer
from plait.tokenizers.errors import ConfigError


@pytest.fixture
def data(tmp_path) -> Path:
    """Text, captioned pictures and sounds, and what is wrong with some of them."""
    folder = tmp_path / "data"
    for name in ("text", "images", "speech"):
        (folder / name).mkdir(parents=True)
    rows = [{"id": f"d{i}", "text": f"document {i} says hello again"} for i in range(40)]
    rows += [{"id": "empty", "text": ""}, {"id": "odd", "text": "\ud800"}]
    lines = [json.dumps(row) for row in rows] + ["{not json"]
    with gzip.open(folder / "text" / "documents.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    random = np.random.default_rng(0)
    rows = []
    for i in range(12):
        picture = random.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "caption": f"picture {i}"})
    (folder / "images" / "3.png").write_bytes(b"no picture")
    write_rows(folder / "images", rows)
    rows = []
    for i in range(6):
        tone = 0.5 * np.sin(np.arange(6000) * (0.1 + 0.02 * i) + 0.2 * random.standard_normal(6000))
        soundfile.write(folder / "speech" / f"{i}.wav", tone, 16000)
        rows.append({"file_name": f"{i}.wav", "text": f"sound {i}"})
    soundfile.write(folder / "speech" / "empty.wav", np.zeros(0), 16000)
    write_rows(folder / "speech", [*rows, {"file_name": "empty.wav", "text": "nothing"}])
    return folder


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


SPEECH = ["--codebooks", "2", "--codebook-size", "16"]
CASES = {
    "text": ["--vocab-size", "300"],
    "speech": SPEECH,
    "bytes": ["--method", "fixed", "--patch-size", "4"],
}


@pytest.mark.parametrize("kind", CASES)
def test_fit_saves_a_tokenizer_and_a_report(kind, data, tmp_path, capsys):
    source = data / ("speech" if kind == "speech" else "text")
    out = tmp_path / "out" / kind
    assert cli.main(["fit", kind, str(source), "--out", str(out), *CASES[kind]]) == 0
    tokenizer = load_tokenizer(out)
    report = read_json(out / "report.json")
    assert report["fingerprint"] == tokenizer.fingerprint
    assert report["vocab_size"] == tokenizer.vocab_size
    assert report["kind"] == kind
    assert report["samples"]["held_out"] >= 1
    assert report["metrics"]["tokens"] > 0
    assert report["seconds"]["fit"] >= 0
    shown = capsys.readouterr().out
    assert "tokens" in shown
    assert "rejected.jsonl" in shown


def test_bad_samples_are_counted_with_their_reasons(data, tmp_path):
    main(["text", str(data / "text"), "--out", str(tmp_path / "t"), "--vocab-size", "300"])
    report = read_json(tmp_path / "t" / "report.json")
    lines = (tmp_path / "t" / "rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert report["samples"]["rejected"] == len(rejected) == 3
    reasons = " ".join(r["reason"] for r in rejected)
    assert "JSON" in reasons
    assert "surrogate" in reasons
    assert "empty" in reasons
    assert report["samples"]["fit"] + report["samples"]["held_out"] == 40


def test_no_rejected_file_where_nothing_was_rejected(data, tmp_path):
    job = FitJob(sources=(str(data / "images"),), out=tmp_path / "t")
    report = run_fit("text", job, find_module("text").FitOptions(vocab_size=300))
    assert report["samples"] == {"fit": 10, "held_out": 2, "rejected": 0}
    assert not (tmp_path / "t" / "rejected.jsonl").exists()


def test_an_empty_sound_is_set_aside(data):
    samples = find_samples("speech", [data / "speech"], held_out=0)
    assert len(list(samples.load(samples.fit))) == 6
    assert [r.reason for r in samples.rejected.values()] == ["the sound is empty"]
    list(samples.load(samples.fit))
    assert len(samples.rejected) == 1  # once, however often it is read
    assert samples.counts() == {"fit": 6, "held_out": 0, "rejected": 1}


def test_an_unreadable_picture_is_set_aside(data):
    samples = find_samples("image", [data / "images"], held_out=0)
    pictures = list(samples.load(samples.fit))
    assert len(pictures) == 11
    assert {p.mode for p in pictures} == {"RGB"}
    assert [Path(r.key).name[:5] for r in samples.rejected.values()] == ["3.png"]


def test_several_sources_and_all_texts_of_a_tree(data):
    samples = find_samples("text", [data / "text", data / "images", data / "speech"], held_out=0)
    tree = find_samples("text", [data], held_out=0)
    texts = sorted(samples.load(samples.fit))
    assert texts == sorted(tree.load(tree.fit))
    assert len(texts) == 40 + 12 + 7


def test_the_split_follows_from_keys_alone(data):
    def keys(**options):
        samples = find_samples("text", [data / "text"], **options)
        return set(samples.load(samples.fit)), set(samples.load(samples.held_out))

    fitted, held_out = keys(held_out=0.3)
    assert not fitted & held_out
    assert len(fitted | held_out) == 40
    assert 4 <= len(held_out) <= 20
    assert keys(held_out=0.3, seed=5) == (fitted, held_out)
    assert keys(held_out=0.1)[1] <= held_out
    some, rest = keys(held_out=0.3, max_samples=15)
    assert len(some | rest) <= 15
    assert rest <= held_out or len(rest) == 1
    assert keys(max_samples=15, seed=0) != keys(max_samples=15, seed=1)


def test_bytes_take_text_and_files(data, tmp_path):
    samples = find_samples("bytes", [data / "text"], held_out=0)
    assert b"document 0 says hello again" in set(samples.load(samples.fit))
    files = find_samples("bytes", [f"bytes:{data / 'images'}"], held_out=0)
    assert b"no picture" in set(files.load(files.fit))


def test_a_source_without_that_kind_says_what_it_holds(data, tmp_path):
    with pytest.raises(ConfigError, match="no image, but 42 text"):
        find_samples("image", [data / "images", data / "text"])
    with pytest.raises(ConfigError, match=r"no audio, but .*12 image"):
        find_samples("speech", [data / "images"])


def test_sources_of_nothing_but_bad_samples(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    job = FitJob(sources=(str(tmp_path),), out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"none of the samples can be used.*a\.wav"):
        run_fit("speech", job, find_module("speech").FitOptions())
    assert not (tmp_path / "out").exists()


def test_an_existing_tokenizer_is_not_overwritten_unasked(data, tmp_path, capsys):
    out = tmp_path / "t"
    command = ["fit", "bytes", str(data / "text"), "--out", str(out)]
    assert cli.main(command) == 0
    before = load_tokenizer(out).fingerprint
    assert cli.main([*command, "--method", "fixed"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert load_tokenizer(out).fingerprint == before
    assert cli.main([*command, "--method", "fixed", "--overwrite"]) == 0
    assert load_tokenizer(out).fingerprint != before


def test_overwriting_with_another_kind_leaves_no_old_file(data, tmp_path):
    out = tmp_path / "t"
    main(["text", str(data / "text"), "--out", str(out), "--vocab-size", "300"])
    main(["bytes", str(data / "images"), "--out", str(out), "--overwrite"])
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "report.json"]


def test_pictures_before_and_after_are_kept_until_the_next_fit(data, tmp_path):
    out = tmp_path / "t"
    small = ["--levels", "3", "3", "--method", "patches", "--size", "32"]
    main(["image", str(data / "images"), "--out", str(out), *small])
    names = read_json(out / "report.json")["pictures"]
    assert names == ["report/before_after.png"] and (out / names[0]).is_file()
    assert load_tokenizer(out).fingerprint == read_json(out / "report.json")["fingerprint"]
    main(["bytes", str(data / "images"), "--out", str(out), "--overwrite"])
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "report.json"]


@pytest.mark.parametrize("kind", ["text", "image", "speech", "bytes"])
def test_help_shows_the_options_of_the_kind(kind, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([kind, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--out", "--held-out", "--max-samples", "--source", "--overwrite"):
        assert option in shown
    for name in find_module(kind).FitOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


def test_wrong_use(data, tmp_path, capsys):
    out = ["--out", str(tmp_path / "t")]
    assert cli.main(["fit", "smell", "x", *out]) == 2
    assert "text, image, speech, bytes" in capsys.readouterr().err
    assert cli.main(["fit", "text", *out]) == 2
    assert "SOURCE" in capsys.readouterr().err
    assert cli.main(["fit", "text", str(tmp_path / "absent"), *out]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.main(["fit", "text", str(data / "text"), *out, "--held-out", "1"]) == 2
    assert "--held-out" in capsys.readouterr().err
    assert cli.main(["fit"]) == 2
    assert cli.main(["fit", "--help"]) == 0
    assert not (tmp_path / "t").exists()


def test_json_report_and_notes(data, tmp_path, capsys):
    main(["text", str(data / "images"), "--out", str(tmp_path / "t"), "--json"])
    shown = capsys.readouterr()
    assert json.loads(shown.out) == read_json(tmp_path / "t" / "report.json")
    assert "too little text" in shown.err
    assert "too little text" in json.loads(shown.out)["notes"][0]


def test_fit_on_the_sample_data(sample_data, tmp_path):
    small = ["--codebooks", "4", "--codebook-size", "64"]
    main(["speech", str(sample_data / "speech"), "--out", str(tmp_path / "s"), *small])
    assert read_json(tmp_path / "s" / "report.json")["metrics"]["si_sdr_db"] > 0
    main(["text", str(sample_data), "--out", str(tmp_path / "t"), "--vocab-size", "1000"])
    metrics = read_json(tmp_path / "t" / "report.json")["metrics"]
    assert metrics["exact"] == 1
    assert metrics["bytes_per_token"] > 2
