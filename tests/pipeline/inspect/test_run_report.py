"""A run's page and tables: what is drawn is what was logged, and bounded whatever the run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from plait.pipeline import cli
from plait.pipeline.inspect.heat import LEVELS, expert_maps, expert_rows, expert_shares
from plait.pipeline.inspect.run_charts import MOST_POINTS, thinned
from plait.pipeline.inspect.run_tables import sparkline
from plait.pipeline.run_folder import RunFolder

LOADS = {("text", 0): [0.5, 0.25, 0.25], ("text", 2): [0.0, 1.0, 0.0], ("image", 0): [0.04, 0.96]}


def write_run(folder: Path, lines: list[dict], skipped: list[dict] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text('preset = "moma"\nsteps = 5\n[model]\ndim = 32\n')
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    if skipped:
        (folder / "skipped.jsonl").write_text("\n".join(map(json.dumps, skipped)) + "\n")
    return folder


def figures() -> dict[str, float]:
    return {
        f"experts/share/block_{block}/{modality}/{e}": share
        for (modality, block), shares in LOADS.items()
        for e, share in enumerate(shares)
    }


def test_heat_map_has_each_experts_share():
    maps = expert_shares({**figures(), "loss": 1.0, "experts/share/odd": 3.0})
    assert {m.modality: dict(m.blocks) for m in maps} == {
        modality: {
            block: dict(enumerate(shares)) for (m, block), shares in LOADS.items() if m == modality
        }
        for modality in ("text", "image")
    }
    drawn = "".join(expert_maps(maps))
    cells = re.findall(r'<td class="heat h(\d)">([\d.]+)%</td>', drawn)
    wanted = [share for shares in LOADS.values() for share in shares]
    assert [float(percent) for _, percent in cells] == [100 * share for share in wanted]
    assert [int(step) for step, _ in cells] == [int(LEVELS * s + 0.5) for s in wanted]
    assert 'aria-label="Share of text&#x27;s load by block and expert"' in drawn
    header, rows = expert_rows(maps)
    assert header == ["Experts of", "Block", "0", "1", "2"]
    assert rows[0] == ["text", "0", "50% ▒", "25% ░", "25% ░"]
    assert rows[2] == ["image", "0", "4.0%  ", "96% █", ""]


def test_page_of_a_run_shows_all_that_it_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [
        {"step": i, "loss": 5.0 - i, "loss/text": 5.0 - i, "lr": 1e-3, "tokens_per_s": 100.0 * i}
        | {"mfu": 0.25, "data_wait": 0.0, "peak_memory_bytes": 3 << 30, "grad_norm": 1.0}
        | {"memory_slots_hit": 0.5, "memory_slots_ever_read": 0.75, "epoch/s": 0.5, "skipped": 1}
        | figures()
        for i in range(1, 5)
    ]
    bad = "</script><script>\x1b[31m\u202e" + "x" * 100_000
    documents = [{"key": f"{bad}{i}", "shard": "s"} for i in range(7)]
    skipped = [{"step": 3, "reason": "the loss of text is nan", "documents": documents}]
    run = write_run(tmp_path / "run", lines, skipped)
    assert cli.main(["inspect", str(run), "--html", str(tmp_path / "run.html")]) == 0
    terminal, shown = capsys.readouterr().out, (tmp_path / "run.html").read_text()
    titles = re.findall(r"<figure class=\"wide\"><h3>([^<]+)</h3>", shown)
    assert titles == [
        *("Training", "Validation", "Learning rate", "Gradient norm", "Throughput"),
        "Of the device&#x27;s peak, and waiting",
        *("Memory held at most", "Memory slots read", "Epochs"),
    ]
    assert "<dt>GiB held at most</dt><dd>3.00</dd>" in shown
    assert "the loss of text is nan" in shown and "and 2 more" in shown
    assert shown.count("<script") == 2 and len(shown) < 60_000
    assert "the loss of text is nan" in terminal and "█▆▃▁" in terminal
    assert not {"\x1b", "\u202e"} & set(shown + terminal)
    assert cli.main(["inspect", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["skipped"] == [
        {"step": 3, "reason": "the loss of text is nan", "documents": [d["key"] for d in documents]}
    ]


def test_page_of_a_very_large_run_is_bounded(tmp_path: Path):
    rng = np.random.default_rng(0)
    names = [f"odd{i}" for i in range(300)]
    lines = [{"step": i, "loss": float(x)} for i, x in enumerate(rng.random(20_000))]
    lines[7000]["loss"] = 77.0
    wide = {
        f"experts/share/block_{b}/{n}/{e}": 0.01
        for b in range(40)
        for n in names[:12]
        for e in range(40)
    }
    lines[-1] |= {f"loss/{n}": 1.0 for n in names} | {f"grad_norm/{n}": 1.0 for n in names} | wide
    skipped = [{"step": i, "reason": "r", "documents": []} for i in range(1000)]
    run = write_run(tmp_path / "run", lines, skipped)
    assert cli.main(["inspect", str(run), "--html", str(tmp_path / "run.html")]) == 0
    shown = (tmp_path / "run.html").read_text()
    assert len(shown) < 1_000_000
    assert "Not drawn: 8 more experts, 8 more blocks." in shown
    assert "Skipped batches (the last 20 of 1,000)" in shown


def test_thinned_curves_keep_their_extremes():
    y = np.random.default_rng(0).normal(size=10_000)
    y[1234], y[4321] = 50.0, -50.0
    x, kept = thinned(np.arange(len(y)), y)
    assert len(kept) <= MOST_POINTS and (np.diff(x) > 0).all()
    assert (kept == y[x]).all() and {0, 1234, 4321, 9999} <= set(x.tolist())
    assert thinned(np.arange(3), y[:3])[1].tolist() == y[:3].tolist()


def test_sparkline_goes_from_low_to_high(tmp_path: Path):
    lines = [{"step": i, "loss": float(i % 3), "loss/text": 2.0} for i in range(3)]
    run = RunFolder.read(write_run(tmp_path / "run", lines))
    assert sparkline(run, "all") == "▁▅█" and sparkline(run, "text") == "▁▁▁"
    assert sparkline(run, "image") == ""
