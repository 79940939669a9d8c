"""The page of a fitted tokenizer: what was measured, use of codes, samples before and after.

Written by `plait fit` as `report.html` beside `report.json`, in the template of `plait inspect`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from plait.pipeline.inspect import page
from plait.pipeline.inspect.charts import Line, colour, line_chart
from plait.pipeline.inspect.examples import examples
from plait.pipeline.inspect.markup import Markup, tag
from plait.tokenizers.base import Encoded, Raw, Tokenizer
from plait.tokenizers.errors import SampleError

SAMPLES, SHOWN = 64, 6
"""Held-out samples whose codes are counted, and how many of them are shown."""


def write_fit_page(
    path: Path, tokenizer: Tokenizer, report: Mapping[str, object], held_out: Iterable[Raw]
) -> None:
    """Write the page of a tokenizer, its report and some samples that it was not fitted on."""
    pairs = list(_encoded(tokenizer, islice(held_out, SAMPLES)))
    metrics = {n.replace("_", " "): v for n, v in _table(report, "metrics").items()}
    numbers = {n: _number(v) for n, v in metrics.items() if isinstance(v, (int, float))}
    body = [page.facts(numbers)]
    if curves := _table(report, "curves"):
        body += [page.section("While it was fitted", ""), _curves(curves, tokenizer.modality)]
    if pairs:
        body += [
            page.section("Before and after", "Held-out samples, and what their tokens decode to.")
        ]
        body += [examples(tokenizer, pairs[:SHOWN])]
        body += _latents(pairs) if pairs[0][1].latents is not None else _codes(tokenizer, pairs)
    body += [page.section("Options", "The same options, seed and samples give the same weights.")]
    rows = [[name, json.dumps(value)] for name, value in _table(report, "options").items()]
    rows += [["fingerprint", tokenizer.fingerprint]]
    body += [page.table(["Option", "Value"], rows, class_="words")]
    notes = report.get("notes")
    alerts = [str(note) for note in notes] if isinstance(notes, list) else []
    title = f"Tokenizer {path.parent.resolve().name}"
    path.write_text(page.render(title, body, alerts=alerts), encoding="utf-8")


def _encoded(tokenizer: Tokenizer, raws: Iterable[Raw]) -> Iterable[tuple[Raw, Encoded]]:
    for raw in raws:
        try:
            yield raw, tokenizer.encode_batch([raw])[0]
        except SampleError:
            continue


def _codes(tokenizer: Tokenizer, pairs: Sequence[tuple[Raw, Encoded]]) -> list[Markup]:
    counts = _counts(tokenizer, [encoded for _, encoded in pairs])
    words = f"{np.count_nonzero(counts):,} of {len(counts):,} codes occur in {len(pairs)} "
    words += "held-out samples; how often, the most used first."
    return [page.section("Code use", words), _code_use(counts, tokenizer.modality)]


def _latents(pairs: Sequence[tuple[Raw, Encoded]]) -> list[Markup]:
    found = [encoded.latents for _, encoded in pairs if encoded.latents is not None]
    latents_nD = np.concatenate(found).astype(np.float64)
    columns = zip(latents_nD.mean(0), latents_nD.std(0), np.abs(latents_nD).max(0), strict=True)
    rows = [[str(d), *(f"{value:.3f}" for value in column)] for d, column in enumerate(columns)]
    words = f"Of {len(pairs)} held-out samples; over those it was fitted on, 0 and 1."
    table = page.table(["Channel", "Mean", "Deviation", "Largest"], rows)
    return [page.section("Latents", words), table]


def _counts(tokenizer: Tokenizer, encoded: Sequence[Encoded]) -> np.ndarray:
    ids = np.concatenate([e.ids for e in encoded])
    return np.sort(np.bincount(ids, minlength=tokenizer.vocab_size))[::-1]


def _code_use(counts: np.ndarray, modality: str) -> Markup:
    at = np.unique(np.linspace(0, len(counts) - 1, 200).astype(int))
    line = Line(name="", x=100 * (at + 1) / len(counts), y=counts[at], colour=colour(modality))
    label = "share of the vocabulary, %"
    chart = line_chart([line], x_label=label, y_label="times used", log_y=True)
    return tag("figure", chart, class_="wide")


def _curves(curves: Mapping[str, Sequence[Sequence[float]]], modality: str) -> Markup:
    figures = []
    for name, points in curves.items():
        x, y = np.array(points, float).T
        line = Line(name="", x=100 * x, y=y, colour=colour(modality))
        chart = line_chart([line], x_label="share of the fit, %", y_label=name)
        figures.append(tag("figure", tag("h3", name), chart, class_="wide"))
    return tag("div", *figures, class_="large")


def _table(report: Mapping[str, object], key: str) -> Mapping[str, Any]:
    found = report.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
