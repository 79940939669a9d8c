"""How a training run went: its facts, the sections of its page, and its tables in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import page
from plait.pipeline.inspect.alerts import run_alerts
from plait.pipeline.inspect.heat import expert_maps, expert_rows, expert_shares
from plait.pipeline.inspect.markup import Markup, tag
from plait.pipeline.inspect.run_charts import columns, figure_charts, loss_charts
from plait.pipeline.inspect.run_tables import figure_tables, last_figures, loss_table, sparkline
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.tables import print_table

Facts = dict[str, object]


def facts(run: RunFolder) -> Facts:
    """As JSON values; `figures` are the last of every key that was logged."""
    return {
        "preset": run.preset,
        "step": run.step,
        "parameters": {"total": run.parameters, "active": run.active},
        "loss": {"train": run.losses(), "validation": run.losses("validation/")},
        "tokens": run.tokens(),
        "figures": last_figures(run),
        "resumed": run.resumed,
        "skipped": [
            {"step": s.step, "reason": s.reason, "documents": s.documents} for s in run.skipped
        ],
    }


def alerts(run: RunFolder) -> list[str]:
    """What should be looked at."""
    train, validation = run.losses(), run.losses("validation/")
    return run_alerts(train, validation, run.last("fill"), run.last("skipped"))


def sections(run: RunFolder, more: Sequence[Markup] = ()) -> list[Markup]:
    """The sections of a run's page, with `more` behind its losses."""
    body = [page.facts(_totals(run)), page.section("Loss", "Mean cross-entropy in nats a target.")]
    body += [page.table(*loss_table(run), swatches=True)]
    if run.resumed:
        body += [tag("p", f"Resumed at step {_steps(run)}.")]
    body += [loss_charts(run), *more]
    if charts := figure_charts(run):
        body += [page.section("Over steps", "As logged; long runs are thinned, spikes stay.")]
        body += [columns(charts)]
    if maps := expert_shares(last_figures(run)):
        words = "Each modality has experts of its own: their shares of its tokens, as last logged."
        body += [page.section("Experts by modality", words), *expert_maps(maps)]
    for title, header, rows in figure_tables(run):
        class_ = "words" if title.startswith("Skipped") else ""
        body += [page.section(title, ""), page.table(header, rows, class_=class_)]
    versions = [[name, version] for name, version in run.versions.items()]
    versions += [["git commit", run.git_commit]] if run.git_commit else []
    made = page.table(["Package", "Version"], versions, class_="words")
    return [*body, page.section("Made with", ""), made]


def show(console: Console, run: RunFolder) -> None:
    """The same as tables in the terminal."""
    console.print(Text(f"run {run.path}: {run.preset or 'no preset'}", style="bold"))
    console.print(f"step {run.step:,}  parameters {run.parameters:,}")
    header, rows = loss_table(run)
    curves = [sparkline(run, row[0]) for row in rows]
    if any(curves):
        header = [*header, "Training, over steps"]
        rows = [[*row, curve] for row, curve in zip(rows, curves, strict=True)]
    print_table(console, header, rows)
    if maps := expert_shares(last_figures(run)):
        print_table(console, *expert_rows(maps))
    for title, header, rows in figure_tables(run):
        if title.startswith("Skipped"):
            console.print(Text(f"\n{title}"))
        print_table(console, header, rows)
    if run.resumed:
        console.print(f"\nresumed at step {_steps(run)}")


def _totals(run: RunFolder) -> dict[str, str]:
    totals = {"step": f"{run.step:,}", "parameters": f"{run.parameters:,}"}
    totals["tokens seen"] = f"{sum(run.tokens().values()):,}"
    optional = {
        "tokens a second": ("tokens_per_s", "{:,.0f}", 1.0),
        "of the device's peak": ("mfu", "{:.0%}", 1.0),
        "GiB held at most": ("peak_memory_bytes", "{:.2f}", 2**-30),
        "rows filled": ("fill", "{:.1%}", 1.0),
        "batches skipped": ("skipped", "{:,.0f}", 1.0),
    }
    for name, (key, form, scale) in optional.items():
        value = run.last(key)
        if value is not None and (value or key != "skipped"):
            totals[name] = form.format(scale * value)
    return totals


def _steps(run: RunFolder) -> str:
    return ", ".join(f"{s:,}" for s in run.resumed[-20:])
