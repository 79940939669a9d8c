"""What a run's figures show as tables: losses, streams, parts, spread over experts, skipped steps.

Each table is (title, header, rows), for the terminal and the page alike; one without rows is left
out. Names and reasons come from files, so they are clipped, and rows are bounded.
"""

from plait.pipeline.run_folder import RunFolder
from plait.pipeline.tables import printable

Table = tuple[str, list[str], list[list[str]]]
MOST_ROWS = 200
MOST_SKIPPED = 20
NAMED = 5
"""Documents of a skipped batch that are named."""
LOSSES = {
    "Training loss": "",
    "Validation loss": "validation/",
    "Leaking validation loss": "leaking_validation/",
}
"""Prefixes of their keys; the leaking one lets experts choose among later tokens too."""
BARS = "▁▂▃▄▅▆▇█"


def loss_table(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Last losses by modality, header and rows."""
    losses = {title: run.losses(prefix) for title, prefix in LOSSES.items()}
    losses = {title: found for title, found in losses.items() if found or "Leaking" not in title}
    tokens = run.tokens()
    tokens["all"] = sum(tokens.values())
    rows = []
    for name in dict.fromkeys(["all", *(name for found in losses.values() for name in found)]):
        cells = [f"{found[name]:.4f}" if name in found else "" for found in losses.values()]
        counts = [f"{x[name]:,}" if name in x else "" for x in (tokens, run.active)]
        rows.append([printable(name), *cells, *counts])
    return ["Modality", *losses, "Tokens seen", "Active parameters"], rows[:MOST_ROWS]


def figure_tables(run: RunFolder) -> list[Table]:
    """The last figures of each kind that the run logged."""
    streams = {"Epochs": ("epoch", "{:.2f}"), "Tokens": ("stream_tokens", "{:,.0f}")}
    parts = {
        "Weight norm": ("weight_norm", "{:.3g}"),
        "Gradient norm": ("grad_norm", "{:.3g}"),
    }
    spread = {
        "Experts a token": ("experts/load", "{:.2f}"),
        "Balance": ("experts/balance", "{:.1%}"),
        "Without expert": ("experts/dropped", "{:.1%}"),
        "Passed depth": ("depth/passed", "{:.1%}"),
    }
    memory = {
        "Read by a batch": ("memory_slots_hit", "{:.1%}"),
        "Read so far": ("memory_slots_ever_read", "{:.1%}"),
        "From even, nats": ("memory_kl_uniform", "{:.3f}"),
    }
    tables = [
        _table(run, "Streams", "Stream", streams),
        _table(run, "Parts", "Part", parts),
        _table(run, "Spread of tokens", "Modality", spread),
    ]
    found = {name: (run.last(key), form) for name, (key, form) in memory.items()}
    rows = [[name, form.format(v)] for name, (v, form) in found.items() if v is not None]
    tables.append(("Memory", ["Slots", "Last"], rows))
    tables.append(_skipped(run))
    return [table for table in tables if table[2]]


def last_figures(run: RunFolder) -> dict[str, float]:
    """The last value of every key."""
    return {k: v for line in run.lines for k, v in line.items() if v is not None}


def sparkline(run: RunFolder, name: str, width: int = 24) -> str:
    """A modality's training loss over steps, from its lowest to its highest bar."""
    _, y = run.curve("loss" if name == "all" else f"loss/{name}")
    if len(y) < 2:
        return ""
    at = [round(i * (len(y) - 1) / (width - 1)) for i in range(width)] if len(y) > width else None
    values = y.tolist() if at is None else y[at].tolist()
    low, high = min(values), max(values)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] for value in values)


def _skipped(run: RunFolder) -> Table:
    """The last steps whose batch was not learned, and what it held."""
    rows = []
    for step in run.skipped[-MOST_SKIPPED:]:
        named = ", ".join(printable(key, 40) for key in step.documents[:NAMED])
        more = len(step.documents) - NAMED
        held = f"{named} and {more:,} more" if more > 0 else named
        rows.append([f"{step.step:,}", printable(step.reason, 160), held])
    n = len(run.skipped)
    title = f"Skipped batches (the last {len(rows)} of {n:,})" if n > len(rows) else ""
    return title or "Skipped batches", ["Step", "Because", "Documents"], rows


def _table(run: RunFolder, title: str, first: str, columns: dict[str, tuple[str, str]]) -> Table:
    """Figures named `<prefix>/<row>`, a column for each prefix that there is."""
    figures = last_figures(run)
    kept = {
        name: (prefix, form)
        for name, (prefix, form) in columns.items()
        if any(key.startswith(f"{prefix}/") for key in figures)
    }
    prefixes = [prefix for prefix, _ in kept.values()]
    names = dict.fromkeys(
        key.removeprefix(f"{prefix}/")
        for key in figures
        for prefix in prefixes
        if key.startswith(f"{prefix}/")
    )
    rows = []
    for name in list(names)[:MOST_ROWS]:
        cells = [(figures.get(f"{prefix}/{name}"), form) for prefix, form in kept.values()]
        rows.append([printable(name), *("" if v is None else form.format(v) for v, form in cells)])
    return title, [first, *kept], rows
