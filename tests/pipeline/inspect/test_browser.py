"""The page of a real stream in headless Chromium: what a reader does with it, and sees.

Every visit asserts that the page fetched nothing but itself and that the console stayed empty.
Screenshots at 1280 and 400 pixels, light, dark and printed, go to the folder that PLAIT_SCREENSHOTS
names, else to pytest's temporary folder. Without a browser these tests are skipped; with CI set,
they fail.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from plait.pipeline import cli
from plait.pipeline.stream import Stream

from .browser import assert_named, assert_readable, find_browser, table_of, visit
from .test_inspect import write_run

Facts = dict


@pytest.fixture(scope="module")
def page_and_facts(
    small_stream: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Facts]:
    """The stream's page, and what `--json` says."""
    file = tmp_path_factory.mktemp("page") / "stream.html"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert cli.main(["inspect", str(small_stream), "--html", str(file), "--json"]) == 0
    return file, json.loads(shown.getvalue())


@pytest.fixture(scope="module")
def file(page_and_facts: tuple[Path, Facts]) -> Path:
    return page_and_facts[0]


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("PLAIT_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_numbers_are_those_of_json(browser: Browser, page_and_facts: tuple[Path, Facts]):
    file, facts = page_and_facts
    with visit(browser, file) as seen:
        totals = seen.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll("dl.facts div")].map(
                 pair => [...pair.children].map(part => part.textContent)))"""
        )
        header, *rows = table_of(seen.page, "Modality", "Tokens", "Spans", "Codes used")
        alerts = seen.page.locator(".alerts li").all_inner_texts()
    for name in ("documents", "rejected", "shards", "tokens", "bytes"):
        assert totals[name] == f"{facts[name]:,}"
    assert [row[0] for row in rows] == list(facts["modalities"])
    for row, wanted in zip(rows, facts["modalities"].values(), strict=True):
        cells = dict(zip(header, row, strict=True))
        for name in ("tokens", "spans", "documents"):
            assert cells[name.capitalize()] == f"{wanted[name]:,}"
        assert cells["Codes used"] == f"{wanted['codes_used']:,} of {wanted['vocab_size']:,}"
        assert float(cells["Perplexity"].replace(",", "")) == pytest.approx(
            wanted["perplexity"], abs=0.051
        )
        assert cells["max"] == f"{wanted['length']['max']:,}"
    assert [a.removeprefix("Look: ") for a in alerts] == (
        facts["alerts"] or ["Nothing stands out."]
    )


def test_keyboard_reaches_everything(browser: Browser, file: Path):
    """Tab stops at every control once, arrows at every span, and each stop shows its focus."""
    with visit(browser, file) as seen:
        page = seen.page
        stops = list(tab_stops(page))
        assert [s["name"] for s in stops if not s["ring"]] == []
        wanted = page.evaluate(
            """[...document.querySelectorAll("button:not(.span), a, input, select, audio, summary")]
               .filter(e => e.checkVisibility()).map(e => e.tagName + e.id)"""
        )
        names = [s["name"] for s in stops]
        assert set(wanted) <= set(names)
        page.locator('.span[tabindex="0"]').focus()
        spans = page.locator(".span").count()
        press_often(page, "ArrowLeft", spans)
        places = []
        for _ in range(spans):
            places.append(page.evaluate("document.activeElement.dataset.at"))
            assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
            assert page.locator(".part.here").count() == 1
            page.keyboard.press("ArrowRight")
        assert places == page.evaluate(
            "[...document.querySelectorAll('.span')].map(s => s.dataset.at)"
        )
        row = page.evaluate("document.activeElement.dataset.at.split(' ')[0]")
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.activeElement.dataset.at.split(' ')[0]") == str(int(row) - 1)


def tab_stops(page: Page, most: int = 300) -> Iterator[dict]:
    """What Tab goes through, from the page's start to its end."""
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => { const e = document.activeElement, style = getComputedStyle(e);
                 return {name: e.tagName + e.id, body: e === document.body,
                         ring: style.outlineStyle !== "none" && e.matches(":focus-visible")}; }"""
        )
        if stop["body"]:
            return
        yield stop
    raise AssertionError(f"more than {most} stops")


def press_often(page: Page, key: str, times: int) -> None:
    for _ in range(times):
        page.keyboard.press(key)


def test_click_shows_the_document(
    browser: Browser, file: Path, small_stream: Path, sample_data: Path
):
    """A clicked picture is shown with the caption that the sample data gives it."""
    captions = {}
    for folder, name in (("images", "caption"), ("speech", "text")):
        for line in (sample_data / folder / "metadata.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            captions[Path(row["file_name"]).stem] = row[name]
    with visit(browser, file) as seen:
        page, found = seen.page, 0
        for span in page.locator(".span[aria-label*=image]").all()[:6]:
            span.click()
            key = page.locator("#panel h3").first.inner_text()
            caption = next(text for stem, text in captions.items() if stem in key)
            assert caption in page.locator("#panel").inner_text()
            picture = page.locator("#panel img").first
            assert picture.evaluate("async e => { await e.decode(); return e.naturalWidth; }") > 8
            assert span.get_attribute("aria-pressed") == "true"
            found += 1
        assert found == 6
        assert page.locator('.span[aria-pressed="true"]').count() == 1
        assert page.locator("#panel").get_attribute("aria-live") == "polite"
    stream = Stream(small_stream)
    assert key in {stream.document(i).key for i in range(stream.documents)}


def test_sound_plays(browser: Browser, file: Path):
    with visit(browser, file) as seen:
        page = seen.page
        page.locator(".span[aria-label*=speech]").first.click()
        sound = page.locator("#panel audio").first
        sound.evaluate("e => e.readyState || new Promise(r => e.onloadedmetadata = () => r(1))")
        assert 0.3 < sound.evaluate("e => e.duration") < 60
        sound.focus()
        page.keyboard.press("Space")
        sound.evaluate("e => new Promise(r => e.ontimeupdate = () => e.currentTime > 0.05 && r(1))")
        assert not sound.evaluate("e => e.error || e.paused")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_changes_the_colours(browser: Browser, file: Path, scheme: str):
    def shades(page: Page) -> list[str]:
        return page.evaluate(
            """[document.body, document.querySelector("figure"), document.querySelector("h1")].map(
                 e => getComputedStyle(e).backgroundColor + getComputedStyle(e).color)"""
        )

    with visit(browser, file, scheme=scheme) as seen:
        page = seen.page
        before = shades(page)
        page.get_by_role("button", name="Light or dark").click()
        after = shades(page)
        assert not set(before) & set(after)
        page.locator("#theme").focus()
        page.keyboard.press("Enter")
        assert shades(page) == before
    with visit(browser, file, scheme="dark" if scheme == "light" else "light") as other:
        assert shades(other.page) == after


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400, 320])
def test_readable_at_every_width(
    browser: Browser, file: Path, screenshots: Path, width: int, scheme: str
):
    with visit(browser, file, width=width, scheme=scheme) as seen:
        page = seen.page
        for modality in ("text", "image", "speech", "bytes"):
            page.locator(f".span[aria-label*={modality}]").first.click()
            assert_readable(page)
        page.screenshot(path=screenshots / f"stream-{width}-{scheme}.png", full_page=True)


def test_prints_light_and_whole(browser: Browser, file: Path, screenshots: Path):
    """On paper there is no dark ground, nothing to press, and nothing is cut at the right."""
    with visit(browser, file, width=680, scheme="dark") as seen:
        page = seen.page
        page.get_by_role("button", name="Light or dark").click()
        page.get_by_role("button", name="Light or dark").click()
        page.emulate_media(media="print")
        assert_readable(page)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) > 240
        assert not page.locator("#theme").is_visible()
        cut = "[...document.querySelectorAll('*')].filter(e => e.checkVisibility()"
        cut += (
            " && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible')"
        )
        cut += ".map(e => e.outerHTML.slice(0, 80))"
        assert not page.locator("audio").first.is_visible()
        assert page.evaluate(cut) == []
        page.screenshot(path=screenshots / "stream-print.png", full_page=True)
        assert page.pdf(path=screenshots / "stream.pdf").startswith(b"%PDF")


def test_screen_reader_finds_its_way(browser: Browser, file: Path):
    with visit(browser, file) as seen:
        page = seen.page
        for modality in ("text", "image", "speech", "bytes"):
            page.locator(f".span[aria-label*={modality}]").first.click()
            assert_named(page)
        levels = page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))"
        )
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.evaluate("document.querySelectorAll('th:not([scope])').length") == 0


def test_reads_without_scripts(browser: Browser, page_and_facts: tuple[Path, Facts]):
    file, facts = page_and_facts
    with visit(browser, file, scripts=False) as seen:
        assert len(table_of(seen.page, "Modality", "Spans")) == 1 + len(facts["modalities"])
        assert not seen.page.locator("#theme").is_visible()
        assert_readable(seen.page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_run_and_tokenizers(
    browser: Browser, four_tokenizers: list[Path], tmp_path: Path, screenshots: Path, scheme: str
):
    """Their pages are readable and named too; the run's losses are those of its metrics."""
    run = write_run(tmp_path / "run")
    for folder in (run, *four_tokenizers):
        file = tmp_path / f"{folder.name}.html"
        assert cli.main(["inspect", str(folder), "--html", str(file)]) == 0
        with visit(browser, file, width=400, scheme=scheme) as seen:
            assert_readable(seen.page)
            assert_named(seen.page)
            seen.page.screenshot(path=screenshots / f"{folder.name}-{scheme}.png", full_page=True)
            if folder == run:
                header, *rows = table_of(seen.page, "Modality", "Training loss")
                losses = {row[0]: row[header.index("Training loss")] for row in rows}
                assert losses == {"all": "2.5000", "text": "2.0000", "image": "3.0000"}


def test_a_visit_notices(browser: Browser, tmp_path: Path):
    """The harness itself: a fetch, an error, a message and a pale word do not go unseen."""
    file = tmp_path / "page.html"
    for content in (
        "<img src='http://example.invalid/x.png'>",
        "<script>fetch('http://example.invalid/')</script>",
        "<link rel=stylesheet href=other.css>",
        "<script>console.log(1)</script>",
        "<script>none()</script>",
        "<script>alert(1)</script>",
    ):
        file.write_text(f"<!doctype html><title>x</title>{content}")
        with pytest.raises(AssertionError), visit(browser, file):
            pass
    for content in ("<p style='color:#999'>pale</p>", "<p style='width:2000px'>wide</p>"):
        file.write_text(f"<!doctype html><title>x</title>{content}")
        with visit(browser, file) as seen, pytest.raises(AssertionError):
            assert_readable(seen.page)


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PLAIT_BROWSER", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        find_browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find_browser()
