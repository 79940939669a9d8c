"""What is said of a stream: JSON, Parquet, terminal and page agree; samples say that they are."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest
from rich.console import Console

from plait.pipeline import cli
from plait.pipeline.inspect import stream_page, stream_report, stream_terminal
from plait.pipeline.inspect.rates import rates
from plait.pipeline.inspect.stream_report import StreamReport, facts, look
from plait.pipeline.shard import shard
from plait.pipeline.stream import Stream
from plait.tokenizers import byte_patch, speech, text
from plait.tokenizers.media import read_audio

from ..made_stream import document, random_shape, random_stream, write_stream


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> StreamReport:
    """Of a stream with copies, under hostile keys."""
    rng = np.random.default_rng(4)
    made = [document(i, random_shape(rng, 40), rng) for i in range(60)]
    made += [replace(made[i], key=f"\x1b[31m<b>{i}\u202e") for i in (3, 3, 7)]
    folder = tmp_path_factory.mktemp("stream")
    return look(write_stream(folder, [made[:30], made[30:]]), seq_len=64)


def shown(report: StreamReport, width: int = 80, colour: bool = False) -> str:
    file = io.StringIO()
    stream_terminal.show(Console(file=file, width=width, force_terminal=colour), report)
    return file.getvalue()


def test_json_agrees_with_the_counts(report: StreamReport):
    found = json.loads(json.dumps(facts(report)))
    counts, stream = report.counts, report.stream
    names = [t.modality for t in stream.tokenizers]
    rows = [[row[n] for n in [*names, "end"]] for row in found["transitions"].values()]
    assert list(found["transitions"]) == ["start", *names]
    assert np.roll(rows, -1, axis=0).tolist() == counts.transitions.tolist()
    assert sum(found["transitions"]["start"].values()) == stream.documents
    for name, entry in found["modalities"].items():
        assert sum(entry["lengths"]["spans"]) == entry["spans"]
        assert len(entry["lengths"]["edges"]) == len(entry["lengths"]["spans"]) + 1
        times = [pair["times"] for pair in entry["most_used"]]
        assert times == sorted(times, reverse=True) and times[0] == max(
            counts.modalities[name].code_counts
        )
    assert found["duplicates"]["documents"] == 3 and found["duplicates"]["groups"] == 2
    assert found["packing"]["fill"] == report.packed.fill
    assert found["sample"] is None and found["validation"] is None
    assert found["held_out"]["documents"] > 0
    assert found["rates"] == [
        {
            "modality": "image",
            "name": "tokens per image",
            "value": counts.modalities["image"].tokens / counts.modalities["image"].spans,
            "source": f"{counts.modalities['image'].spans:,} images",
            "sampled": False,
        },
        {
            "modality": "bytes",
            "name": "bytes per patch",
            "value": counts.modalities["bytes"].tokens / int(counts.patches[3]),
            "source": f"{int(counts.patches[3]):,} patches",
            "sampled": False,
        },
    ]


def test_parquet_sums_to_the_totals(
    report: StreamReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "sub" / "counts.parquet"
    command = ["inspect", report.stream.url, "--json", "--parquet", str(file)]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    table = pyarrow.parquet.read_table(file)
    assert table.column_names == list(stream_report.PARQUET_COLUMNS)
    where = {"stream": report.stream.url}
    assert table.to_pylist() == [where | row for row in found["by_shard"]]
    grouped = table.group_by("modality").aggregate(
        [(column, "sum") for column in ("tokens", "spans", "documents")]
    )
    for row in grouped.to_pylist():
        entry = found["modalities"][row["modality"]]
        for column in ("tokens", "spans", "documents"):
            assert row[f"{column}_sum"] == entry[column]
    assert pyarrow.compute.sum(table["tokens"]).as_py() == found["tokens"]


def test_a_sample_is_whole_shards_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stream, made = random_stream(tmp_path / "s", documents=90, shards=9)
    url, page = str(tmp_path / "s"), tmp_path / "p.html"
    assert cli.main(["inspect", url, "--sample", "3", "--html", str(page)]) == 0
    words = "Sample: 3 of 9 shards, evenly spaced"
    assert words in " ".join(capsys.readouterr().out.split())
    assert words in page.read_text()
    assert cli.main(["inspect", url, "--sample", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    chosen = [d for n in (0, 4, 8) for d in made[10 * n : 10 * n + 10]]
    tokens = sum(len(e.ids) for d in chosen for _, e in d.spans)
    share = tokens / stream.tokens
    assert found["sample"] == {
        "shards": 3,
        "documents": 30,
        "tokens": tokens,
        "share_of_tokens": share,
    }
    assert found["tokens"] == stream.tokens
    assert sum(m["tokens"] for m in found["modalities"].values()) == tokens
    assert {row["shard"] for row in found["by_shard"]} == {f"shard-{n:06d}" for n in (0, 4, 8)}
    assert not [a for a in found["alerts"] if "never used" in a]
    assert cli.main(["inspect", url, "--sample", "99", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sample"] is None
    assert cli.main(["inspect", url, "--sample", "-1"]) == 2


def test_a_sample_of_a_stream_at_a_url_fetches_its_shards_alone(
    tmp_path: Path, memory_url: str, monkeypatch: pytest.MonkeyPatch
):
    stream, _ = random_stream(tmp_path / "s", documents=60, shards=6)
    files, root = fsspec.url_to_fs(memory_url)
    files.put(str(tmp_path / "s"), root, recursive=True)
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    found = look(Stream(memory_url), seq_len=64, sample=2)
    assert found.part.documents == 20
    fetched = {p.stem for p in (tmp_path / "cache").rglob("*.tar*")}
    assert {name.partition(".")[0] for name in fetched} == {"shard-000000", "shard-000005"}
    assert facts(look(Stream(memory_url), seq_len=64)) == facts(look(stream, seq_len=64))


def test_terminal_fits_and_reads_without_colour(report: StreamReport):
    """In 80 columns: nothing is wider; letters name modalities; colour adds only escapes."""
    plain = shown(report)
    assert max(map(len, plain.splitlines())) <= 80
    assert "\x1b" not in plain and "\u202e" not in plain
    rows = re.findall(r"^ +\d+  ([TISBtisb.|]{16,})$", plain, re.MULTILINE)
    assert len(rows) == 8
    assert {"T", "I", "S", "B"} <= set("".join(rows).upper())
    assert "T text  I image  S speech  B bytes" in plain
    assert re.search(r"^text +1 [▁▂▃▄▅▆▇█ ]+ \d+$", plain, re.MULTILINE)
    coloured = shown(report, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_no_color_is_kept(report: StreamReport, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    codes = re.findall(r"\x1b\[([0-9;]*)m", shown(report, colour=True))
    assert set(codes) <= {"", "0", "1"}


def test_a_terminal_without_unicode_gets_plain_bars(report: StreamReport):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    stream_terminal.show(Console(file=file, width=80), report)
    file.flush()
    words = file.buffer.getvalue().decode("ascii")
    assert re.search(r"^text +1 [.:=+*#@ -]+ \d+$", words, re.MULTILINE)


def test_page_sections_are_escaped_and_hold_the_figures(report: StreamReport):
    page = "".join(stream_page.sections(report, None))
    assert "&lt;b&gt;3" in page and "<b>3" not in page and "\u202e" not in page
    for title in ("Rows", "Rates", "Code use", "Transitions", "Duplicates"):
        assert f"<h2>{title}</h2>" in page
    heat = page.partition("<h2>Transitions</h2>")[2].partition("</table>")[0]
    cells = [int(n.replace(",", "")) for n in re.findall(r"<td[^>]*>([\d,]+)</td>", heat)]
    assert sum(cells) == report.counts.transitions.sum()
    assert f"{report.packed.fill:.1%}" in page


def test_rates_of_real_tokenizers(sample_data: Path, tmp_path: Path):
    """Seconds and bytes are those of the files, as nearly as frames and samples tell."""
    sounds = sorted((sample_data / "speech").glob("digits_*.flac"))[:4]
    waves = [read_audio(path) for path in sounds]
    words = ["a caf\u00e9, and a rose \u65e5\u672c" * 9, "plain words " * 20]
    made = {
        "text": text.fit(words, text.FitOptions(vocab_size=300)),
        "codec": speech.fit(waves, speech.FitOptions(codebooks=2, codebook_size=16)),
        "units": speech.fit(waves, speech.FitOptions(method="units", units=8)),
        "bytes": byte_patch.fit([b""], byte_patch.FitOptions()),
    }
    for name, tokenizer in made.items():
        tokenizer.save(tmp_path / name)
    (tmp_path / "data").mkdir()
    for path in sounds:
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    rows = [json.dumps({"text": words[i % 2]}) for i in range(6)]
    (tmp_path / "data" / "texts.jsonl").write_text("\n".join(rows))
    seconds = sum(len(w.samples) / w.sample_rate_hz for w in waves)
    for kind in ("codec", "units"):
        out = tmp_path / f"out-{kind}"
        folders = [tmp_path / "text", tmp_path / kind]
        shard([tmp_path / "data"], out, folders, workers=1)
        stream = Stream(out)
        counts = stream_report.count(stream)
        found = {rate.modality: rate for rate in rates(stream, counts)}
        tokens = counts.modalities["text"].tokens
        size = sum(len(words[i % 2].encode()) for i in range(6))
        assert found["text"].value == pytest.approx(size / tokens)
        assert not found["text"].sampled
        tokens = counts.modalities["speech"].tokens
        assert found["speech"].value == pytest.approx(tokens / seconds, rel=0.1)
