"""How a run's figures went over its steps, as charts; one that has no figures is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.pipeline.inspect.charts import DASHES, Line, colour, line_chart
from plait.pipeline.inspect.markup import Markup, tag
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.tables import printable

MOST_POINTS = 400
MOST_LINES = 8
DASHED = (None, "7 3", "2 3", "9 3 2 3")
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Keys of metrics.jsonl over the same axes."""

    title: str
    unit: str
    keys: dict[str, str]
    """The name at a line's end by its key; a key that ends in `/` stands for all that it begins."""
    scale: float = 1.0
    log_y: bool = False


CHARTS = (
    Chart(title="Learning rate", unit="learning rate", keys={"lr": "lr", "lr/values": "values"}),
    Chart(title="Gradient norm", unit="norm", keys={"grad_norm": "gradient"}, log_y=True),
    Chart(title="Throughput", unit="tokens a second", keys={"tokens_per_s": "tokens/s"}),
    Chart(
        title="Of the device's peak, and waiting",
        unit="%",
        keys={"mfu": "MFU", "data_wait": "for data"},
        scale=100,
    ),
    Chart(
        title="Memory held at most",
        unit="GiB",
        keys={"peak_memory_bytes": "peak"},
        scale=2**-30,
    ),
    Chart(
        title="Memory slots read",
        unit="% of the slots",
        keys={"memory_slots_hit": "in a batch", "memory_slots_ever_read": "so far"},
        scale=100,
    ),
    Chart(
        title="Balance of experts",
        unit="% of even",
        keys={"experts/balance/": ""},
        scale=100,
    ),
    Chart(title="Epochs", unit="epochs of the stream", keys={"epoch/": ""}),
)


def loss_charts(run: RunFolder) -> Markup:
    """Training and validation loss by modality."""
    figures = []
    for title, prefix, dots in (("Training", "", False), ("Validation", "validation/", True)):
        names = list(run.losses(prefix) or ["all"])[:MOST_LINES]
        lines = [loss_line(run, prefix, name, dots=dots) for name in names]
        chart = line_chart(lines, x_label="step", y_label=f"{title.lower()} loss, nats")
        figures.append(tag("figure", tag("h3", title), chart, class_="wide"))
    return columns(figures)


def loss_line(
    run: RunFolder,
    prefix: str,
    name: str,
    *,
    dots: bool,
    label: str | None = None,
    dash: str | None = None,
) -> Line:
    """A loss over steps in its modality's colour; `label` and `dash` in place of the modality's."""
    x, y = thinned(*run.curve(f"{prefix}loss" if name == "all" else f"{prefix}loss/{name}"))
    shade = "var(--quiet)" if name == "all" else colour(name)
    dash = DASHES.get(name) if label is None else dash
    return Line(name=label or printable(name, 16), x=x, y=y, colour=shade, dash=dash, dots=dots)


def figure_charts(run: RunFolder) -> list[Markup]:
    """A figure for each of CHARTS that has something to draw."""
    figures = []
    for chart in CHARTS:
        lines = [
            _line(run, chart, key, name, number)
            for number, (key, name) in enumerate(_found(run, chart.keys)[:MOST_LINES])
        ]
        if any(np.isfinite(line.y).any() for line in lines):
            drawn = line_chart(lines, x_label="step", y_label=chart.unit, log_y=chart.log_y)
            figures.append(tag("figure", tag("h3", chart.title), drawn, class_="wide"))
    return figures


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points: the lowest and the highest of each stretch, so no spike is lost."""
    if len(y) <= most:
        return x, y
    kept = [0, len(y) - 1]
    for part in np.array_split(np.arange(len(y)), most // 2 - 1):
        kept += [int(part[y[part].argmin()]), int(part[y[part].argmax()])]
    at = np.unique(kept)
    return x[at], y[at]


def _found(run: RunFolder, keys: dict[str, str]) -> list[tuple[str, str]]:
    there = dict.fromkeys(key for line in run.lines for key in line)
    found: list[tuple[str, str]] = []
    for wanted, name in keys.items():
        if wanted.endswith("/"):
            found += [(k, k.removeprefix(wanted)) for k in there if k.startswith(wanted)]
        elif wanted in there:
            found.append((wanted, name))
    return found


def _line(run: RunFolder, chart: Chart, key: str, name: str, number: int) -> Line:
    x, y = thinned(*run.curve(key))
    modality = name in DASHES
    shade = colour(name) if modality else SHADES[number % len(SHADES)]
    dash = DASHES[name] if modality else DASHED[number % len(DASHED)]
    return Line(name=printable(name, 12), x=x, y=chart.scale * y, colour=shade, dash=dash)


def columns(figures: Sequence[Markup]) -> Markup:
    """Figures side by side."""
    return tag("div", *figures, class_="large")
