"""Step matching: how many steps a sparse model needs for each of a dense model's losses.

    python benchmarks/step_matching.py --dense RUNS/dense-* --sparse RUNS/mot-* --out mot.svg

For each step s of the dense model with validation loss l, t(s) is the first step at which the
sparse model reaches l, by interpolation on smoothed curves that never rise. The headline is the
slope of t against s through the origin, as in arXiv:2411.04996: 0.3 means that the sparse model
needs 30 % of the steps and, at equal FLOPs a step, of the FLOPs. Beside it, t / s at the dense
model's last loss (there the dense model has ended its schedule and the sparse one has not, so this
is on the safe side), and the same in seconds, by each model's median seconds a step.

The figure is that of the seeds' mean curves, the band the least and the most of all pairs of a
dense and a sparse run that held out the same documents (runs of one seed, or of any seeds with
--validation.data). Steps whose loss the sparse model had before its first validation, or never has,
are left out and counted. Runs should differ in nothing else but the model; a warning is printed
where FLOPs a step differ by over 2 %.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from plait.models.decoder import Decoder
from plait.models.flops import flops_per_token
from plait.models.training.run_config import RunConfig
from plait.pipeline import config as toml
from plait.pipeline.inspect import charts
from plait.pipeline.inspect.markup import Markup
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.errors import ConfigError, PlaitError

ALL = "all"
SLACK = 0.02
"""By how much FLOPs a step may differ."""
SMOOTH = 3
STYLE = """<style>text { font: 11.5px sans-serif; fill: #555 } .name { fill: var(--c) }
.grid { stroke: #ddd; fill: none } .line { stroke: var(--c); stroke-width: 2; fill: none }
.dot { fill: var(--c) }</style>"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare runs of a dense and of a sparse model, several seeds of each."""

    dense: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]
    """Folders of the dense model's runs."""
    sparse: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]
    """Folders of the sparse model's runs."""
    prefix: str = "validation/"
    """Which losses: `validation/`, or an empty word for those of training."""
    smooth: int = SMOOTH
    """Points of the moving mean over a curve."""
    out: Path | None = None
    """Also draw t(s) into this SVG file."""
    json: bool = False
    """Print the facts as JSON instead of a table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What step matching needs of a run."""

    path: Path
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    """Steps and losses by modality, and of `all`."""
    flops_per_step: float
    s_per_step: float
    """Median seconds of a step."""
    held_out: str
    """Names the documents that it was validated on; the same for runs that can be compared."""

    @classmethod
    def read(cls, path: Path, prefix: str = "validation/") -> "Run":
        """From a run's folder; ConfigError where it has no such losses."""
        folder = RunFolder.read(path)
        config = toml.build(RunConfig, toml.read_toml(path / "config.toml"), str(path))
        curves = {}
        for name in folder.losses(prefix):
            key = f"{prefix}loss" if name == ALL else f"{prefix}loss/{name}"
            curves[name] = folder.curve(key)
        if not curves:
            raise ConfigError(f"{path}: metrics.jsonl has no {prefix}loss")
        return cls(
            path=path,
            curves=curves,
            flops_per_step=flops_per_step(path, config, folder),
            s_per_step=_s_per_step(folder),
            held_out=_held_out(config),
        )


def flops_per_step(path: Path, config: RunConfig, folder: RunFolder) -> float:
    """Mean over the run's steps: each modality's tokens times its FLOPs a token."""
    text = (path / "vocabulary.json").read_text(encoding="utf-8")
    with torch.device("meta"):
        model = Decoder(config.model, Vocabulary.from_json(text))
    per_token = flops_per_token(model, config.rows.seq_len)
    tokens = folder.tokens()
    return sum(per_token[name] * n for name, n in tokens.items()) / max(1, folder.step)


def _held_out(config: RunConfig) -> str:
    v = config.validation
    chosen = [v.data] if v.data else [config.data, v.share, config.seed]
    return str([*chosen, config.rows.seq_len, v.batches])


def _s_per_step(folder: RunFolder) -> float:
    """From tokens and tokens a second between two lines."""
    steps, tokens = folder.curve("tokens")
    speeds = folder.curve("tokens_per_s")[1]
    each = np.diff(tokens, prepend=0) / speeds / np.diff(steps, prepend=0)
    return statistics.median(each.tolist())


@dataclass(frozen=True, kw_only=True)
class Match:
    """One comparison of two curves."""

    slope: float | None
    """Of t against s through the origin; None if no step could be matched."""
    final: float | None
    """t / s at the dense model's last loss; None if the sparse model never has it."""
    matched: int
    """Steps of the dense model for which t was found."""
    steps: int


def match(
    dense: tuple[np.ndarray, np.ndarray], sparse: tuple[np.ndarray, np.ndarray], smooth: int = 1
) -> tuple[Match, np.ndarray, np.ndarray]:
    """The comparison, and the matched s and t.

    >>> steps, loss = np.array([10.0, 20, 30, 40]), np.array([4.0, 3, 2, 1])
    >>> found, s, t = match((steps, loss), (steps / 2, loss))
    >>> found.slope, found.final, t.tolist()
    (0.5, 0.5, [5.0, 10.0, 15.0, 20.0])
    """
    s_all, losses = dense[0], falling(dense[1], smooth)
    steps, reached = sparse[0], falling(sparse[1], smooth)
    t_all = np.array([_first_step(steps, reached, loss) for loss in losses])
    there = np.isfinite(t_all)
    s, t = s_all[there], t_all[there]
    slope = float(s @ t / (s @ s)) if len(s) else None
    final = float(t_all[-1] / s_all[-1]) if there[-1] else None
    return Match(slope=slope, final=final, matched=len(s), steps=len(s_all)), s, t


def falling(losses: np.ndarray, smooth: int) -> np.ndarray:
    """A moving mean over so many points (fewer at the ends), and of it the least so far."""
    half = smooth // 2
    mean = [losses[max(0, i - half) : i + half + 1].mean() for i in range(len(losses))]
    return np.minimum.accumulate(np.array(mean))


def _first_step(steps: np.ndarray, losses: np.ndarray, wanted: float) -> float:
    """Where a falling curve first has a loss; NaN if it never has, or had it before it began."""
    at = int(np.argmax(losses <= wanted))
    if losses[at] > wanted or (at == 0 and losses[0] < wanted):
        return np.nan
    if at == 0:
        return float(steps[0])
    share = (losses[at - 1] - wanted) / (losses[at - 1] - losses[at])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


@dataclass(frozen=True, kw_only=True)
class Result:
    """Step matching of one modality."""

    modality: str
    slope: float | None
    slope_band: tuple[float, float] | None
    final: float | None
    final_band: tuple[float, float] | None
    slower: float
    """Median seconds of the sparse model's steps over the dense one's: slope and final times this
    are ratios of seconds."""
    dense_loss: float
    sparse_loss: float
    """Last losses, means of the seeds."""
    matched: int
    steps: int


def compare(dense: Sequence[Run], sparse: Sequence[Run], smooth: int = SMOOTH) -> list[Result]:
    """Every modality that all runs have; `all` comes first. Runs are as `comparable` gives them."""
    names = [n for n in dense[0].curves if all(n in run.curves for run in (*dense, *sparse))]
    slower = _median_s(sparse) / _median_s(dense)
    results = []
    for name in names:
        one, two = mean_curve(dense, name), mean_curve(sparse, name)
        whole = match(one, two, smooth)[0]
        pairs = [
            match(d.curves[name], s.curves[name], smooth)[0]
            for d in dense
            for s in sparse
            if d.held_out == s.held_out
        ]
        results.append(
            Result(
                modality=name,
                slope=whole.slope,
                slope_band=_band([pair.slope for pair in pairs]),
                final=whole.final,
                final_band=_band([pair.final for pair in pairs]),
                slower=slower,
                dense_loss=float(one[1][-1]),
                sparse_loss=float(two[1][-1]),
                matched=whole.matched,
                steps=whole.steps,
            )
        )
    return results


def comparable(
    dense: Sequence[Run], sparse: Sequence[Run]
) -> tuple[list[Run], list[Run], list[str]]:
    """The runs that were validated on documents on which both models were, and a warning if some
    were not: a run's seed chooses what it holds out, so both models need the same seeds."""
    both = {run.held_out for run in dense} & {run.held_out for run in sparse}
    kept = [[run for run in runs if run.held_out in both] for runs in (dense, sparse)]
    left = [run.path.name for run in (*dense, *sparse) if run.held_out not in both]
    if not both:
        raise ConfigError(
            "no two runs were validated on the same documents: give both models the same --seed, or"
            " the same --validation.data"
        )
    found = [f"left out, as no run of the other model held out the same: {', '.join(left)}"]
    return kept[0], kept[1], found if left else []


def mean_curve(runs: Sequence[Run], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of the seeds at the steps that all of them have."""
    steps = runs[0].curves[name][0]
    for run in runs[1:]:
        steps = np.intersect1d(steps, run.curves[name][0])
    if not len(steps):
        raise ConfigError(f"{name}: the runs have no step in common at which it was measured")
    columns = [run.curves[name][1][np.isin(run.curves[name][0], steps)] for run in runs]
    return steps, np.mean(columns, 0)


def warnings(dense: Sequence[Run], sparse: Sequence[Run]) -> list[str]:
    """What makes the comparison an unequal one."""
    costs = [run.flops_per_step for run in (*dense, *sparse)]
    spread = max(costs) / min(costs) - 1
    if spread <= SLACK:
        return []
    named = [f"{run.path.name} {run.flops_per_step:.4g}" for run in (*dense, *sparse)]
    return [f"FLOPs a step differ by {spread:.1%}: {', '.join(named)}"]


def draw(dense: Sequence[Run], sparse: Sequence[Run], smooth: int) -> str:
    """An SVG file of t(s), and of t = s."""
    lines = []
    for name in (result.modality for result in compare(dense, sparse, smooth)):
        _, s, t = match(mean_curve(dense, name), mean_curve(sparse, name), smooth)
        if len(s):
            dash, colour = charts.DASHES.get(name), charts.colour(name)
            ends = np.concatenate([[0.0], s]), np.concatenate([[0.0], t])
            colour = "#222222" if name == ALL else colour
            lines.append(charts.Line(name=name, x=ends[0], y=ends[1], colour=colour, dash=dash))
    last = max((line.x[-1] for line in lines), default=1.0)
    ends = np.array([0.0, last])
    lines.append(charts.Line(name="t = s", x=ends, y=ends, colour="#999999", dash="1 3"))
    chart = charts.line_chart(
        lines, x_label="steps of the dense model", y_label="of the sparse one"
    )
    start, _, rest = chart.partition(">")
    size = 'xmlns="http://www.w3.org/2000/svg" style="background:#fff"'
    return Markup(f"{start.replace('<svg', f'<svg {size}', 1)}>{STYLE}{rest}\n")


def table(results: Sequence[Result]) -> str:
    """A table in Markdown."""
    header = ["", "slope", "seeds", "in seconds", "at the last loss", "seeds", "in seconds"]
    rows = [[*header, "dense loss", "sparse loss", "matched"]]
    for r in results:
        slope = [_number(r.slope), _span(r.slope_band), _number(r.slope, r.slower)]
        final = [_number(r.final), _span(r.final_band), _number(r.final, r.slower)]
        losses = [f"{r.dense_loss:.4f}", f"{r.sparse_loss:.4f}"]
        rows.append([r.modality, *slope, *final, *losses, f"{r.matched}/{r.steps}"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main(options: Options) -> int:
    """Print the table; 1 where the runs do not quite compare."""
    dense = [Run.read(path, options.prefix) for path in options.dense]
    sparse = [Run.read(path, options.prefix) for path in options.sparse]
    dense, sparse, found = comparable(dense, sparse)
    results, found = compare(dense, sparse, options.smooth), found + warnings(dense, sparse)
    costs = [statistics.mean(run.flops_per_step for run in runs) for runs in (dense, sparse)]
    speeds = [_median_s(dense), _median_s(sparse)]
    if options.json:
        facts = {"results": [asdict(r) for r in results], "warnings": found}
        print(json.dumps({**facts, "flops_per_step": costs, "s_per_step": speeds}, indent=2))
    else:
        print(table(results))
        print(f"\nFLOPs a step: dense {costs[0]:.4g}, sparse {costs[1]:.4g}", end="; ")
        print(f"seconds (medians): dense {speeds[0]:.3f}, sparse {speeds[1]:.3f}", end="; ")
        print(f"seeds: {len(dense)} and {len(sparse)}")
    if options.out is not None:
        options.out.write_text(draw(dense, sparse, options.smooth), encoding="utf-8")
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    return int(bool(found))


def _median_s(runs: Sequence[Run]) -> float:
    return statistics.median(run.s_per_step for run in runs)


def _band(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The least and the most; None where a pair could not be matched or there is but one."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if len(known) == len(values) > 1 else None


def _number(value: float | None, times: float = 1.0) -> str:
    """A dash for what was not reached."""
    return "-" if value is None else f"{value * times:.3f}"


def _span(band: tuple[float, float] | None) -> str:
    return "-" if band is None else f"{band[0]:.3f} to {band[1]:.3f}"


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except PlaitError as error:
        sys.exit(f"step_matching: {error}")
