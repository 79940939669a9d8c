"""A run's page: held-out rows by loss, against the model's losses taken one by one."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from plait.models.evaluation.token_losses import HeldOut
from plait.pipeline import cli
from plait.pipeline.inspect.loss_view import LossView

STEPS = 8


class Strips(HTMLParser):
    """Of each row by loss, the step of the ramp at every position; -1 is hatched."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.rows: list[list[int]] = []
        self._inside = False
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "div" and "row" in str(found.get("class")).split():
            self._inside = found["class"] == "row losses"
            self.rows += [[]] if self._inside else []
        self._inside &= found.get("id") != "panel"
        if self._inside and tag == "svg":
            self._start = len(self.rows[-1])
            self.rows[-1] += [-1] * int(str(found["viewbox"]).split()[2])
        if self._inside and tag == "path":
            for first, n in re.findall(r"M(\d+) 0h(\d+)v1h-\2z", str(found["d"])):
                for at in range(int(first), int(first) + int(n)):
                    assert self.rows[-1][self._start + at] == -1, "drawn twice"
                    self.rows[-1][self._start + at] = int(str(found["class"])[1:])


@pytest.fixture(scope="module")
def view(sample_run: Path) -> LossView:
    return LossView(HeldOut.open(sample_run))


@pytest.fixture(scope="module")
def page(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "run.html"
    assert cli.main(["inspect", str(sample_run), "--html", str(file)]) == 0
    return file.read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_each_position_has_the_colour_of_its_loss(view: LossView, page: str, sample_run: Path):
    drawn = Strips(page).rows
    held_out = HeldOut.open(sample_run)
    assert len(drawn) == len(view.view.numbers) == 4
    assert f"{view.top:.0f} nats a token and more" in page
    scored = 0
    for steps, number in zip(drawn, view.view.numbers, strict=True):
        row = held_out.rows[number]
        batch = held_out.rows.batch([number])
        nats = held_out.model.nats(batch)[0].tolist()
        assert len(steps) == len(row.tokens)
        for at, step in enumerate(steps):
            if at == 0 or not row.loss_mask[at - 1]:
                assert step == -1
                continue
            scored += 1
            wanted = min(STEPS, STEPS * nats[at - 1] / view.top)
            assert abs(step - wanted) <= 0.5 + 1e-3
        assert row.document[0] == 0 and steps[0] == -1, "<bos> is no target"
    assert scored > 500
    assert len({step for row in drawn for step in row}) > 4


def test_spans_carry_the_losses_of_their_pieces(view: LossView, page: str):
    nats = np.concatenate([view.nats[n] for n in view.view.numbers])
    rows = data_of(page)["rows"]
    parts = [part for row in rows for document in row for part in document["parts"]]
    texts = [part for part in parts if "levels" in part]
    assert {part["modality"] for part in texts} >= {"text"}
    for part in texts:
        assert len(part["levels"]) == len(part["losses"]) <= len(part["pieces"])
        for level, loss in zip(part["levels"], part["losses"], strict=True):
            assert level == "-" or int(level) == int(min(STEPS, STEPS * loss / view.top + 0.5))
    named = [part for part in parts if "loss" in part]
    assert {part["modality"] for part in named} == {"text", "image", "speech", "bytes"}
    highest = max(float(x) for part in named for x in re.findall(r" (\d+\.\d\d)", part["loss"]))
    assert highest == pytest.approx(np.nanmax(nats), abs=0.01) or highest < np.nanmax(nats)


def test_table_is_the_mean_and_median_of_each_modality(view: LossView):
    sums: dict[str, list[float]] = {}
    for number in view.view.numbers:
        for id_, loss in zip(view.rows[number].tokens.tolist(), view.nats[number], strict=True):
            name = view.rows.vocabulary.modalities[view.rows.vocabulary.modality_table[id_]]
            if loss == loss:
                sums.setdefault(name, []).append(float(loss))
    wanted = {
        name: (f"{len(v):,}", f"{sum(v) / len(v):.4f}", f"{np.median(v):.4f}")
        for name, v in sums.items()
    }
    assert {name: tuple(rest) for name, *rest in view.summary()} == wanted
    for name, words in view.highest():
        top = sorted(sums[name], reverse=True)[:5]
        shown = [float(x) for x in re.findall(r" (\d+\.\d\d) \(", words)]
        assert shown == pytest.approx(top, abs=0.006)


def test_page_is_small_and_says_why_there_are_no_losses(
    page: str, sample_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert len(page) < 2_000_000 and page.count('role="img"') > 10
    file = tmp_path / "page.html"
    assert cli.main(["inspect", str(sample_run), "--no-losses", "--html", str(file)]) == 0
    assert "by loss" not in file.read_text(encoding="utf-8")
    run = tmp_path / "run"
    shutil.copytree(sample_run, run, ignore=shutil.ignore_patterns("checkpoints"))
    assert cli.main(["inspect", str(run), "--html", str(file)]) == 0
    shown = file.read_text(encoding="utf-8")
    assert "Not drawn: there is no checkpoint yet." in shown
