"""`plait inspect A B ...`: streams, runs or tokenizers side by side, with what differs from A.

What is compared are the facts that `--json` prints of each, by name; a difference is told of
numbers, absolute and as a share of A's. Each is one letter in tables and charts, A first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

from rich.console import Console
from rich.text import Text

from plait.pipeline.inspect import page
from plait.pipeline.inspect.charts import Line, colour, histogram, line_chart, stacked_bar
from plait.pipeline.inspect.markup import Markup, tag
from plait.pipeline.inspect.run_charts import DASHED, MOST_LINES, columns, loss_line
from plait.pipeline.inspect.statistics import ModalityStatistics
from plait.pipeline.run_folder import RunFolder
from plait.pipeline.tables import print_table, printable
from plait.tokenizers.errors import ConfigError

Facts = dict[str, object]
Value = str | int | float | bool | None
MOST = 5
MOST_FACTS = 400
"""Rows of all tables together."""
NOT_COMPARED = ("format", "alerts")
LEFT_OUT = re.compile(
    r"figures\.(experts/share/.*|(validation/)?loss.*|tokens(/.*)?|step|left_s)"
    r"|modalities\..*\.lengths\..*",
    re.DOTALL,
)
"""What stands in other tables and charts, and figures of single experts: JSON has them."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of those that are compared; of a run the facts hold its configuration too."""

    path: str
    facts: Facts
    run: RunFolder | None = None
    statistics: Mapping[str, ModalityStatistics] = field(default_factory=dict)
    alerts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fact of all sides, None where one has it not."""

    name: str
    values: tuple[Value, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        """The others' less A's, of numbers."""
        first, *others = map(_number, self.values)
        return tuple(None if first is None or v is None else v - first for v in others)

    @property
    def shares(self) -> tuple[float | None, ...]:
        """The differences as shares of A's value; None where that is 0."""
        first = _number(self.values[0])
        return tuple(None if d is None or not first else d / abs(first) for d in self.differences)


def check(paths: Sequence[str], kinds: Sequence[str]) -> None:
    """ConfigError if they are of different kinds, or too many."""
    if len(set(kinds)) > 1:
        found = ", ".join(f"{p} is a {kind}" for p, kind in zip(paths, kinds, strict=True))
        raise ConfigError(f"only like can be compared with like: {found}; inspect each by itself")
    if len(paths) > MOST:
        raise ConfigError(f"{len(paths)} to compare; at most {MOST} stand side by side")


def rows_of(sides: Sequence[Side]) -> list[Row]:
    """All facts that are one value, in the order of the first side that has them."""
    flat = [dict(_flat(side.facts)) for side in sides]
    names = dict.fromkeys(name for found in flat for name in found if name not in NOT_COMPARED)
    return [Row(name=name, values=tuple(found.get(name) for found in flat)) for name in names]


def alerts(sides: Sequence[Side]) -> list[str]:
    """What stands out, by side."""
    lettered = zip(ascii_uppercase, sides, strict=False)
    return [f"{letter}: {alert}" for letter, side in lettered for alert in side.alerts]


def to_json(kind: str, sides: Sequence[Side]) -> Facts:
    """The facts of each, and every fact that differs."""
    differing = {
        row.name: {"values": row.values, "difference": row.differences, "share": row.shares}
        for row in rows_of(sides)
        if len(set(map(repr, row.values))) > 1
    }
    compared = {letter: side.path for letter, side in zip(ascii_uppercase, sides, strict=False)}
    facts = [side.facts for side in sides]
    return {"format": 1, "kind": kind, "compared": compared, "facts": facts, "differs": differing}


def show(console: Console, kind: str, sides: Sequence[Side]) -> None:
    """Tables in the terminal."""
    for letter, side in zip(ascii_uppercase, sides, strict=False):
        console.print(Text(f"{letter}  {kind} {side.path}", style="bold"))
    for title, header, rows in tables(sides):
        console.print(Text(f"\n{title}", style="bold"))
        print_table(console, header, rows)


def sections(sides: Sequence[Side]) -> list[Markup]:
    """The sections of a page."""
    paths = [[letter, side.path] for letter, side in zip(ascii_uppercase, sides, strict=False)]
    body = [page.table(["", "Compared"], paths, class_="words")]
    body += _run_sections(sides) + _stream_sections(sides)
    for title, header, rows in tables(sides):
        body += [page.section(title, ""), page.table(header, rows)]
    return body


def tables(sides: Sequence[Side]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table of each group of facts: a column for each side, then what differs from A."""
    letters = ascii_uppercase[: len(sides)]
    header = ["Fact", *letters]
    for letter in letters[1:]:
        header += [f"{letter} - A", "of A"]
    kept = [
        row
        for row in rows_of(sides)
        if any(v is not None for v in row.values) and not LEFT_OUT.fullmatch(row.name)
    ]
    found: dict[str, list[list[str]]] = {}
    for row in kept[:MOST_FACTS]:
        title, name = _named(row.name)
        if title != "Configuration" or len(set(map(repr, row.values))) > 1:
            found.setdefault(title, []).append([printable(name), *_cells(row)])
    return [(title, header, cells) for title, cells in found.items()]


def _run_sections(sides: Sequence[Side]) -> list[Markup]:
    """Losses by modality, each of all runs."""
    runs = [side.run for side in sides if side.run is not None]
    figures = []
    for words, prefix, dots in (("validation", "validation/", True), ("training", "", False)):
        names = dict.fromkeys(name for run in runs for name in run.losses(prefix))
        for name in list(names)[:MOST_LINES]:
            lines = [
                loss_line(run, prefix, name, dots=dots, label=letter, dash=dash)
                for run, letter, dash in zip(runs, ascii_uppercase, _dashes(), strict=False)
            ]
            chart = line_chart(lines, x_label="step", y_label=f"{words} loss, nats")
            figures.append(
                tag("figure", tag("h3", f"{printable(name)}, {words}"), chart, class_="wide")
            )
    if not figures:
        return []
    words = "Mean cross-entropy in nats a target: A solid, the others dashed."
    return [page.section("Loss", words), columns(figures)]


def _stream_sections(sides: Sequence[Side]) -> list[Markup]:
    """Shares, lengths and code use of all streams."""
    names = dict.fromkeys(n for s in sides for n, found in s.statistics.items() if found.tokens)
    if not names:
        return []
    body = [page.section("Shares of the tokens", "")]
    for letter, side in zip(ascii_uppercase, sides, strict=False):
        parts = [(name, found.tokens) for name, found in side.statistics.items() if found.tokens]
        body += [tag("h3", letter), stacked_bar(parts)]
    body += [page.section("Lengths", "Tokens in a span.")]
    body += [_by_modality(sides, names, _lengths, "small")]
    body += [page.section("Code use", "How often each id occurs, the most used first.")]
    figures = [tag("figure", tag("h3", n), _code_use(sides, n), class_="wide") for n in names]
    return [*body, columns(figures)]


def _by_modality(
    sides: Sequence[Side],
    names: Sequence[str] | dict[str, None],
    draw: Callable[[str, ModalityStatistics], Markup],
    class_: str,
) -> Markup:
    figures = []
    for name in names:
        for letter, side in zip(ascii_uppercase, sides, strict=False):
            found = side.statistics.get(name)
            if found is not None and found.tokens:
                title = tag("h3", f"{name}, {letter}")
                figures.append(tag("figure", title, draw(name, found)))
    return tag("div", *figures, class_=class_)


def _lengths(name: str, s: ModalityStatistics) -> Markup:
    return histogram(*s.length_histogram(), colour=colour(name), unit="tokens")


def _code_use(sides: Sequence[Side], name: str) -> Markup:
    lines = []
    for letter, side, dash in zip(ascii_uppercase, sides, _dashes(), strict=False):
        s = side.statistics.get(name)
        if s is None or not s.tokens:
            continue
        x, y = s.use_curve()
        y = 100 * (y / s.tokens)
        lines.append(Line(name=letter, x=x, y=y, colour=colour(name), dash=dash))
    label = "share of the vocabulary, %"
    return line_chart(lines, x_label=label, y_label="% of the tokens", log_y=True)


def _dashes() -> list[str | None]:
    return [*DASHED, "4 2"]


def _flat(facts: Mapping[str, object], prefix: str = "") -> list[tuple[str, Value]]:
    """Nested facts as a dotted name and a value; lists are left out but for those of words."""
    found: list[tuple[str, Value]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            if value and all(isinstance(v, str | int | float) for v in value):
                found.append((f"{prefix}{name}", ", ".join(map(str, value))))
        elif value is None or isinstance(value, str | int | float):
            found.append((f"{prefix}{name}", value))
    return found


def _named(name: str) -> tuple[str, str]:
    """The table that a fact stands in, and its name there: `modalities.text.tokens`."""
    first, *rest = name.split(".")
    if first == "modalities" and len(rest) > 1:
        return printable(rest[0]).capitalize(), " ".join(rest[1:])
    if first == "config":
        return "Configuration", ".".join(rest)
    return (
        (printable(first.replace("_", " ")).capitalize(), " ".join(rest))
        if rest
        else ("All", first)
    )


def _number(value: Value) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cells(row: Row) -> list[str]:
    cells = [*map(_shown, row.values)]
    for difference, share in zip(row.differences, row.shares, strict=True):
        cells.append("" if difference is None else _signed(difference))
        cells.append("" if share is None else f"{share:+.1%}" if share else "0%")
    return cells


def _shown(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if _number(value) is not None else printable(str(value), 40)


def _signed(value: float) -> str:
    if not value:
        return "0"
    whole = isinstance(value, int) or 1e4 <= abs(value) < 1e9
    return f"{value:+,.0f}" if whole else f"{value:+,.4g}"
