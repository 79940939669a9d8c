"""`plait inspect`: the promised keys, and a page that hostile content can neither run nor break."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.pipeline import cli, progress
from plait.pipeline.inspect import batch_view, content, stream_report, token_pieces
from plait.pipeline.inspect.markup import readable, script_json, tag
from plait.pipeline.shard import shard
from plait.pipeline.stream import Stream
from plait.tokenizers import byte_patch, speech, text
from plait.tokenizers.base import Encoded
from plait.tokenizers.media import read_audio

from ..made_stream import random_stream

HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'
    " {{data}} \u202eright to left\u202c \u2028 & &lt; \x00\x1b[31m '\"`"
)


@pytest.fixture(scope="module")
def tokenizers(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small tokenizers for text, speech and bytes."""
    folder = tmp_path_factory.mktemp("tokenizers")
    captions = (sample_data / "images" / "metadata.jsonl").read_text(encoding="utf-8")
    sounds = [read_audio(p) for p in sorted((sample_data / "speech").glob("digits_*.flac"))[:6]]
    made = {
        "text": text.fit([captions, HOSTILE], text.FitOptions(vocab_size=400)),
        "speech": speech.fit(sounds, speech.FitOptions(codebooks=2, codebook_size=16)),
        "bytes": byte_patch.fit([b""], byte_patch.FitOptions()),
    }
    for name, tokenizer in made.items():
        tokenizer.save(folder / name)
    return [folder / name for name in made]


@pytest.fixture(scope="module")
def stream(
    sample_data: Path, tokenizers: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stream of hostile texts, spoken digits and broken samples."""
    data = tmp_path_factory.mktemp("data")
    (data / "speech").mkdir()
    rows = []
    for number, path in enumerate(sorted((sample_data / "speech").glob("digits_*.flac"))[:6]):
        shutil.copy(path, data / "speech" / path.name)
        words = HOSTILE if number == 0 else path.stem
        rows.append({"file_name": path.name, "text": words})
    (data / "speech" / "broken.flac").write_bytes(b"fLaC")
    rows.append({"file_name": "broken.flac", "text": "broken"})
    (data / "speech" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [{"id": HOSTILE, "text": f"{HOSTILE} {i}" * (1 + i % 3)} for i in range(30)]
    (data / "texts.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, texts)).encode()))
    out = tmp_path_factory.mktemp("out") / HOSTILE.replace("/", "")[:40].replace("\x00", "")
    shard([data], out, tokenizers, workers=1)
    return out


@pytest.fixture(scope="module")
def page(stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "sub" / "page.html"
    assert cli.main(["inspect", str(stream), "--html", str(file)]) == 0
    return file


def inspect_json(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert cli.main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_stream_json_has_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made, documents = random_stream(tmp_path / "s", documents=40)
    facts = inspect_json(tmp_path / "s", capsys)
    assert facts["format"] == 1
    assert facts["documents"] == 40
    assert facts["rejected"] == 0
    assert facts["shards"] == 3
    assert facts["tokens"] == sum(len(e.ids) for d in documents for _, e in d.spans)
    on_disk = [p for p in (tmp_path / "s").rglob("*") if p.suffix in (".tar", ".index", ".npz")]
    assert facts["bytes"] == made.bytes >= sum(p.stat().st_size for p in on_disk) > 0
    assert list(facts["modalities"]) == ["text", "image", "speech", "bytes"]
    for entry in facts["modalities"].values():
        promised = {"tokens", "spans", "documents", "vocab_size", "codes_used", "perplexity"}
        more = {"entropy_bits", "entropy_nats", "length", "lengths", "most_used", "least_used"}
        assert promised | more == set(entry)
        assert list(entry["length"]) == ["min", "median", "p95", "max"]
        assert entry["entropy_bits"] == pytest.approx(np.log2(entry["perplexity"]))
    assert sum(e["tokens"] for e in facts["modalities"].values()) == facts["tokens"]
    assert facts["tokenizers"]["image"]["vocab_size"] == 100
    assert isinstance(facts["modalities"]["text"]["length"]["max"], int)


def test_counting_a_large_stream_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(stream_report, "LARGE", 1)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0)
    made, _ = random_stream(tmp_path, documents=5)
    assert cli.main(["inspect", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["tokens"] == made.tokens
    assert "counting" in shown.err


def test_real_stream_in_the_terminal(stream: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["inspect", str(stream)]) == 0
    shown = capsys.readouterr().out
    assert "speech" in shown and "documents 36" in shown and "rejected 1" in shown
    assert "look: 1 of 37 samples (2.7%) were rejected." in shown
    assert max(map(len, shown.splitlines())) <= 140


class Page(HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def test_hostile_content_stays_text(page: Path):
    parsed = Page(page)
    names = [name for name, _ in parsed.elements]
    assert names.count("script") == 2
    assert not {"img", "iframe", "object", "link", "base", "form"} & set(names)
    assert not [a for _, attrs in parsed.elements for a in attrs if a.startswith("on")]
    shown = json.loads(parsed.scripts[0])
    keys = [document["key"] for row in shown["rows"] for document in row]
    assert any("</script><script>" in key for key in keys)
    pieces = [
        p
        for row in shown["rows"]
        for d in row
        for part in d["parts"]
        for p in part.get("pieces", [])
    ]
    assert not [c for c in "".join(pieces) if c in "\u202e\x00\x1b\u2028"]
    assert "\\u202e" in "".join(pieces) and "{{data}}" in "".join(pieces)


def test_page_is_one_small_file_that_fetches_nothing(page: Path):
    source = page.read_text(encoding="utf-8")
    assert len(source) < 2_000_000
    parsed = Page(page)
    assert not [a for _, attrs in parsed.elements for a in attrs if a in ("src", "href", "srcset")]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML", source)
    policy = next(a["content"] for _, a in parsed.elements if a.get("http-equiv"))
    assert policy is not None and "default-src 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_page_spans_hold_what_the_stream_holds(page: Path, stream: Path):
    """Buttons point at the data; text comes back from its pieces; sound is FLAC at 16 kHz."""
    parsed = Page(page)
    data = json.loads(parsed.scripts[0])
    places = [a["data-at"] for name, a in parsed.elements if name == "button" and "data-at" in a]
    parts = [
        data["rows"][r][d]["parts"][p] for r, d, p in (map(int, x.split()) for x in places if x)
    ]
    assert len(parts) == sum(len(d["parts"]) for row in data["rows"] for d in row) > 10
    assert {part["modality"] for part in parts} == {"text", "speech", "bytes"}
    sounds = [part for part in parts if part["kind"] == "audio"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0]["src"].partition(",")[2])))
    assert (rate, samples.ndim) == (16_000, 1) and len(samples) > 3_000
    assert max(sounds[0]["peaks"]) > 0.05
    keys = {Stream(stream).document(i).key: i for i in range(Stream(stream).documents)}
    assert {d["key"] for row in data["rows"] for d in row} <= {readable(key) for key in keys}


def test_media_budget_is_kept(stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_view, "MEDIA_BYTES", 10)
    assert cli.main(["inspect", str(stream), "--html", str(tmp_path / "p.html")]) == 0
    data = json.loads(Page(tmp_path / "p.html").scripts[0])
    notes = [
        p["text"] for row in data["rows"] for d in row for p in d["parts"] if p["kind"] == "note"
    ]
    assert "left out to keep this page small" in notes


def test_stream_without_its_tokenizers_still_has_a_page(tmp_path: Path):
    random_stream(tmp_path / "s", documents=30)
    assert cli.main(["inspect", str(tmp_path / "s"), "--html", str(tmp_path / "p.html")]) == 0
    data = json.loads(Page(tmp_path / "p.html").scripts[0])
    parts = [p for row in data["rows"] for d in row for p in d["parts"]]
    assert parts and all(p["kind"] == "note" and "cannot be decoded" in p["text"] for p in parts)


def test_text_pieces_keep_characters_of_several_tokens_whole(tokenizers: list[Path]):
    tokenizer = text.Text.from_files(
        {}, {f.name: f.read_bytes() for f in tokenizers[0].iterdir() if f.suffix == ".model"}
    )
    sample = "a \u65e5\u672c \U0001f600 end"
    encoded = tokenizer.encode_batch([sample])[0]
    shown = token_pieces.text_pieces(tokenizer, encoded)
    assert "".join(shown.pieces) == sample
    assert len(shown.pieces) < len(encoded.ids)
    assert [i for ids in shown.ids for i in ids] == encoded.ids.tolist()


def test_byte_pieces_follow_the_patches():
    tokenizer = byte_patch.fit([b""], byte_patch.FitOptions())
    starts = np.array([True, False, False, True, False])
    encoded = Encoded(ids=np.frombuffer(b"ab\xffcd", np.uint8), patch_starts=starts)
    found = token_pieces.byte_pieces(tokenizer, encoded)
    assert (found.pieces, found.bits, found.limit) == (["ab\\xff", "cd"], [], None)
    assert token_pieces.piece_sizes(tokenizer, encoded) == [3, 2]


def test_patches_have_the_entropies_that_made_them():
    """Also those of a span that was cut: what comes before it is known to the model."""
    data = b"the cat sat on the mat; the dog sat on the log; " * 40
    tokenizer = byte_patch.fit([data], byte_patch.FitOptions(method="entropy", max_patch=0))
    encoded = tokenizer.encode_batch([data])[0]
    assert encoded.patch_starts is not None
    rest = Encoded(ids=encoded.ids[100:], patch_starts=encoded.patch_starts[100:])
    found = token_pieces.byte_pieces(tokenizer, rest, encoded.ids[:100])
    assert found.limit == pytest.approx(tokenizer.options.threshold, abs=1e-3)
    assert len(found.bits) == len(found.pieces) > 20
    assert found.limit is not None and min(found.bits[1:]) > found.limit - 0.01
    alone = token_pieces.byte_pieces(tokenizer, rest)
    assert alone.bits[0] != found.bits[0] and alone.bits[4:] == found.bits[4:]


def test_pieces_are_bounded():
    class Long:
        modality = "text"

        def decode(self, encoded: Encoded) -> str:
            return "\u05d0" * 1_000_000

    encoded = Encoded(ids=np.arange(700))
    found = token_pieces.text_pieces(Long(), encoded)  # pyright: ignore
    assert len(found.pieces) == 600 and found.note == "100 more tokens are not shown"
    assert all(p.endswith("(... 999,600 more characters)") and len(p) < 500 for p in found.pieces)


def test_varied_rows_show_what_is_rare():
    modality = np.zeros((50, 16), np.uint8)
    modality[37, :8] = 2
    kept = np.ones_like(modality, bool)
    chosen = batch_view.varied_rows(modality, kept, 4)
    assert 37 in chosen and len(set(chosen)) == 4 and chosen == sorted(chosen)
    assert batch_view.varied_rows(modality[:2], kept[:2], 8) == [0, 1]


def test_pictures_become_png():
    class Pictures:
        modality = "image"

        def decode(self, encoded: Encoded) -> Image.Image:
            return Image.new("RGB", (400, 300), "red")

    shown = content.decode(Pictures(), Encoded(ids=np.zeros(4, np.int64)))  # pyright: ignore
    picture = Image.open(io.BytesIO(base64.b64decode(str(shown["src"]).partition(",")[2])))
    assert picture.size == (256, 192) and picture.getpixel((0, 0)) == (255, 0, 0)


def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    found = inspect_json(run, capsys)
    assert found.pop("figures")["loss/image"] == 3.0
    assert found == {
        "preset": "mot",
        "step": 40,
        "parameters": {"total": 1000, "active": {"text": 600, "image": 500}},
        "loss": {
            "train": {"all": 2.5, "text": 2.0, "image": 3.0},
            "validation": {"all": 2.75, "text": 2.25},
        },
        "tokens": {"text": 4000, "image": 800},
        "resumed": [20],
        "skipped": [],
        "alerts": ["Packed rows are only 50.0% filled; the rest is padding."],
    }
    assert cli.main(["inspect", str(run), "--html", str(tmp_path / "run.html")]) == 0
    shown = capsys.readouterr().out
    assert "2.2500" in shown and "resumed at step 20" in shown
    names = [name for name, _ in Page(tmp_path / "run.html").elements]
    assert names.count("svg") == 2 and names.count("path") > 6


def write_run(run: Path) -> Path:
    run.mkdir()
    (run / "config.toml").write_text('preset = "mot"\n')
    environment = {
        "preset": "mot",
        "parameters": {"total": 1000, "active": {"text": 600, "image": 500}},
        "versions": {"torch": "2.14"},
        "git_commit": "abc",
    }
    (run / "environment.json").write_text(json.dumps(environment))
    lines = [
        {"step": 10 * i, "loss": 4 - i / 2 + 0.5, "loss/text": 4 - i / 2, "loss/image": 5 - i / 2}
        | {"tokens/text": 1000 * i, "tokens/image": 200 * i, "fill": 0.5}
        for i in range(1, 5)
    ]
    lines[1] |= {"validation/loss": 3.0, "validation/loss/text": 2.5}
    lines.append({"step": 40, "validation/loss": 2.75, "validation/loss/text": 2.25})
    text_ = "\n".join(map(json.dumps, lines))
    (run / "metrics.jsonl").write_text(text_ + '\n{"step": 50, "lo')
    (run / "resumed.jsonl").write_text('{"step": 20, "time": 0}\n')
    return run


def test_run_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.toml").write_text("")
    facts = inspect_json(tmp_path, capsys)
    assert (facts["step"], facts["loss"]) == (0, {"train": {}, "validation": {}})
    assert cli.main(["inspect", str(tmp_path), "--html", str(tmp_path / "p.html")]) == 0
    assert "Nothing to draw yet." in (tmp_path / "p.html").read_text()


def test_damaged_metrics_name_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    assert cli.main(["inspect", str(run)]) == 2
    assert "metrics.jsonl, line 2" in capsys.readouterr().err


def test_tokenizer(tokenizers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    facts = inspect_json(tokenizers[0], capsys)
    assert (facts["kind"], facts["modality"], facts["vocab_size"]) == ("text:Text", "text", 400)
    assert re.fullmatch("[0-9a-f]{32}", facts["fingerprint"])
    assert cli.main(["inspect", str(tokenizers[0]), "--html", str(tmp_path / "t.html")]) == 0
    assert facts["fingerprint"] in capsys.readouterr().out
    assert facts["fingerprint"] in (tmp_path / "t.html").read_text()


def test_unfinished_stream_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "job").mkdir()
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "not finished; repeat its `plait shard` command" in capsys.readouterr().err


def test_counting_imports_no_torch(tmp_path: Path):
    random_stream(tmp_path, documents=3, shards=1)
    script = (
        "import sys; from plait.pipeline.inspect import command; command.main([sys.argv[1]]); "
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_folder_of_nothing_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "neither a stream, a run nor a tokenizer" in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_markup_escapes():
    assert tag("p", "<b>", tag("i", "x"), title='"') == '<p title="&quot;">&lt;b&gt;<i>x</i></p>'
    assert json.loads(script_json({"a": HOSTILE})) == {"a": HOSTILE}
    assert not set("<>&\u2028") & set(script_json({"a": HOSTILE}))
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json(float("nan"))


@pytest.mark.slow
def test_page_in_a_browser(page: Path, tmp_path: Path):
    """The script fills the panel with the chosen document, and hostile content has not run."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium here")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path}"
    command = [browser, *flags.split(), "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    panel = done.stdout.partition('id="panel"')[2].partition("<h2>")[0]
    assert 'class="part of-audio here"' in panel and "<audio" in panel
    assert done.stdout.partition("<title>")[2].startswith("Stream &lt;script")
    assert "Refused to" not in done.stderr
