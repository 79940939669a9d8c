"""What a run's figures show beside its losses: streams, parts of the model, spread over experts.

Each table is (title, header, rows), for the terminal and the page alike; one without rows is left
out.
"""

from plait.pipeline.run_folder import RunFolder

Table = tuple[str, list[str], list[list[str]]]


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
    return [table for table in tables if table[2]]


def last_figures(run: RunFolder) -> dict[str, float]:
    """The last value of every key."""
    return {k: v for line in run.lines for k, v in line.items() if v is not None}


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
    for name in names:
        cells = [(figures.get(f"{prefix}/{name}"), form) for prefix, form in kept.values()]
        rows.append([name, *("" if v is None else form.format(v) for v, form in cells)])
    return title, [first, *kept], rows
