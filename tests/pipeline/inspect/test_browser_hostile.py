"""Hostile content in headless Chromium: it cannot run, fetch, or break the page, and can be read.

The pages are opened without their content security policy, so that escaping alone has to hold.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from plait.pipeline import cli
from plait.pipeline.shard import shard

from .browser import assert_named, assert_readable, table_of, visit
from .test_inspect import write_run

SMALL = {
    "script": '<script>window.owned = 1; document.title = "owned"</script>',
    "ends": "</script></style></title></textarea>--><script>window.owned = 1</script>",
    "handler": "<img src=x onerror='window.owned = 1'><svg onload=window.owned=1>\"' onfocus=x",
    "address": "javascript:window.owned=1 <a href='javascript:window.owned=1'>x</a>",
    "frame": "<iframe src=https://example.invalid></iframe><base href=https://example.invalid/>",
    "template": "{{data}} {{script}} ${window.owned = 1} \\1 &lt;b&gt;",
    "override": "\u202etxt.exe\u202c \u2066isolated\u2069 \u200f",
    "arabic": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "hebrew": "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "invisible": "a\u200bb\u200dc\ufeffd\u00ade\u2028f",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85",
}
LARGE = {"word": "w" * 1_000_000, "marks": "Z" + "\u0301" * 10_000, "wide": "\ufdfd" * 3_000}
UNSEEN = "\u202e\u202c\u2066\u2069\u200f\u200b\u200d\ufeff\u00ad\u2028\x00\x1b\x7f\x85"
FILE_NAME = "quote\"s' and\nlines <b>&amp;.png"
SVG = (
    "<svg xmlns='http://www.w3.org/2000/svg' onload='window.owned=1'>"
    "<script>window.owned=1</script></svg>"
)


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Each text twice: once with a harmless key, once as its own key."""
    folder.mkdir(parents=True)
    rows = [{"id": f"{name} {text}", "text": text} for name, text in texts.items()]
    rows += [{"id": name, "text": text} for name, text in texts.items()]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_pictures(folder: Path) -> None:
    """A picture with a hostile name and caption, and two files that only claim to be pictures."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / FILE_NAME)
    (folder / "drawing.svg").write_text(SVG)
    (folder / "claims.png").write_text(SVG)
    rows = [
        {"file_name": name, "caption": SMALL["script"]}
        for name in (FILE_NAME, "drawing.svg", "claims.png")
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def make_stream(folder: Path, tokenizers: list[Path], *sources: str | Path) -> Path:
    out = folder / "<img src=x onerror=window.owned=1>\u202e\n'\""
    shard([folder / "data", *sources], out, tokenizers, workers=1, bytes_share=0.4)
    return out


def write_page(what: Path, file: Path, *options: str) -> Path:
    assert cli.main(["inspect", str(what), "--html", str(file), *options]) == 0
    assert file.stat().st_size < 2_000_000
    return file


def assert_unharmed(page: Page, title: str) -> None:
    assert page.title().startswith(title)
    assert page.evaluate("window.owned") is None
    assert page.locator("script").count() == 2
    assert page.locator("iframe, object, embed, base, link, form, a, foreignObject").count() == 0
    sources = "[...document.querySelectorAll('[src]')].map(e => e.getAttribute('src').slice(0, 5))"
    assert set(page.evaluate(sources)) <= {"data:"}
    on = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert [name for name in page.evaluate(on) if name.startswith("on")] == []
    assert [c for c in page.locator("body").inner_text() if c in UNSEEN] == []


def panels(page: Page) -> list[str]:
    """What the panel says of each document, and whether the page stays whole meanwhile."""
    found = []
    for place in page.evaluate("[...document.querySelectorAll('.span')].map(s => s.dataset.at)"):
        page.evaluate("at => document.querySelector(`[data-at='${at}']`).click()", place)
        found.append(page.locator("#panel").inner_text())
        assert page.locator("#panel").bounding_box()["height"] < 4_000
    return found


def test_texts_keys_and_names(browser: Browser, four_tokenizers: list[Path], tmp_path: Path):
    write_texts(tmp_path / "data" / "texts", SMALL)
    write_pictures(tmp_path / "data" / "images")
    drawing = shutil.copy(tmp_path / "data" / "images" / "drawing.svg", tmp_path / "drawing.svg")
    stream = make_stream(tmp_path, four_tokenizers, f"bytes:{drawing}")
    file = write_page(stream, tmp_path / "page.html", "--seq-len", "2048")
    with visit(browser, file, width=400, policy=False) as seen:
        page = seen.page
        shown = panels(page)
        assert_unharmed(page, "Stream <img src=x")
        assert_readable(page)
        assert_named(page)
        for text in (SMALL["script"], SMALL["ends"], SMALL["arabic"], SMALL["hebrew"], SVG[:60]):
            assert any(text in words for words in shown), text
        for named in (
            "\\u202etxt.exe\\u202c",
            "a\\u200bb\\u200dc\\ufeffd\\u00ade\\u2028f",
            "\\u0000",
        ):
            assert any(named in words for words in shown), named
        rejected = table_of(page, "Rejected because")
        assert ["not a picture in a format that can be read", "2"] in rejected


def test_endless_words_and_marks(browser: Browser, four_tokenizers: list[Path], tmp_path: Path):
    write_texts(tmp_path / "data" / "texts", LARGE)
    file = write_page(make_stream(tmp_path, four_tokenizers), tmp_path / "page.html")
    with visit(browser, file, width=400, policy=False) as seen:
        shown = panels(seen.page)
        assert_unharmed(seen.page, "Stream <img src=x")
        assert_readable(seen.page)
        assert max(map(len, shown)) < 100_000
        assert any("wwww" in words for words in shown)


def test_very_many_documents_stay_a_small_page(tmp_path: Path, four_tokenizers: list[Path]):
    rows = [{"id": f"{i} {SMALL['arabic']}", "text": "ab"} for i in range(6_000)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = make_stream(tmp_path, four_tokenizers)
    write_page(stream, tmp_path / "page.html", "--seq-len", "8192")


def test_edited_manifest(
    browser: Browser,
    small_stream: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """A hand-edited stream.json is refused in words, or its names are text on the page."""
    stream = tmp_path / "stream"
    shutil.copytree(small_stream, stream)
    whole = json.loads((stream / "stream.json").read_text())

    def edit(**fields: object) -> None:
        edited = json.loads(json.dumps(whole))
        edited["tokenizers"][0] |= fields
        (stream / "stream.json").write_text(json.dumps(edited))

    for name, values in {
        "name": [SMALL["script"], "../text", "", 5, None, ["a"]],
        "vocab_size": ["<b>", -1, 0, 1.5, True, None, 10**30],
        "modality": [7, None, "", LARGE["word"]],
        "fingerprint": [7, {"a": 1}],
    }.items():
        for value in values:
            edit(**{name: value})
            assert cli.main(["inspect", str(stream), "--html", str(tmp_path / "p.html")]) == 2
            assert "stream.json" in capsys.readouterr().err
    for value in (SMALL["handler"], SMALL["override"], SMALL["controls"], "w" * 256):
        edit(modality=value, fingerprint=value)
        file = write_page(stream, tmp_path / "page.html")
        with visit(browser, file, width=400, policy=False) as seen:
            panels(seen.page)
            assert_unharmed(seen.page, "Stream stream")
            assert_readable(seen.page)


@pytest.mark.parametrize(
    "value", [SMALL["script"], SMALL["handler"], SMALL["override"], "w" * 5000]
)
def test_run_and_tokenizer(
    browser: Browser, four_tokenizers: list[Path], tmp_path: Path, value: str
):
    run = write_run(tmp_path / "run")
    environment = json.loads((run / "environment.json").read_text())
    environment |= {"preset": value, "versions": {value: value}, "git_commit": value}
    (run / "environment.json").write_text(json.dumps(environment))
    line = {"step": 50, f"loss/{value}": 2.0, f"tokens/{value}": 9, f"epoch/{value}": 1.0}
    lines = (run / "metrics.jsonl").read_text().splitlines()[:-1]
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(line)]))
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(four_tokenizers[0], tokenizer)
    (tokenizer / "report.json").write_text(json.dumps({value: value, "metrics": {value: 1.5}}))
    for folder, title in ((run, "Run run"), (tokenizer, "Tokenizer tokenizer")):
        file = write_page(folder, tmp_path / "page.html")
        with visit(browser, file, width=400, policy=False) as seen:
            assert_unharmed(seen.page, title)
            assert_readable(seen.page)
