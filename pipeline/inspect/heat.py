"""Which experts take which tokens: a heat map of one hue for each modality, with its figures.

The figures stand in the cells, so neither the map nor its colours are needed to read them. Colours
go from none to the highest share of all maps. What is drawn is bounded, and what is not is told.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from plait.pipeline.inspect.charts import swatch
from plait.pipeline.inspect.markup import Markup, join, tag

KEY = re.compile(r"experts/share/block_(\d+)/(\w+)/(\d+)")
LEVELS = 8
"""Steps of the ramp above the first one, which is nothing."""
MOST_BLOCKS, MOST_EXPERTS, MOST_MODALITIES = 32, 32, 8
SHADES = " ░▒▓█"


@dataclass(frozen=True, kw_only=True)
class Experts:
    """One modality's experts in each block."""

    modality: str
    blocks: dict[int, dict[int, float]]
    """Share of the modality's load by block and by expert, both rising."""

    @property
    def experts(self) -> list[int]:
        """Numbers of the experts of any block."""
        return sorted({e for shares in self.blocks.values() for e in shares})


def expert_shares(figures: Mapping[str, float]) -> list[Experts]:
    """The experts' shares among a run's last figures, by modality."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    for key, value in figures.items():
        if match := KEY.fullmatch(key):
            blocks = found.setdefault(match[2], {})
            blocks.setdefault(int(match[1]), {})[int(match[3])] = value
    return [
        Experts(modality=m, blocks={b: dict(sorted(blocks[b].items())) for b in sorted(blocks)})
        for m, blocks in found.items()
    ]


def expert_maps(maps: list[Experts]) -> list[Markup]:
    """A figure for each modality, and the ramp."""
    top = max(s for m in maps for shares in m.blocks.values() for s in shares.values()) or 1.0
    figures = [_figure(experts, top) for experts in maps[:MOST_MODALITIES]]
    return [ramp("0 %", f"{top:.0%} of a modality's load"), tag("div", *figures, class_="large")]


def expert_rows(maps: list[Experts], most: int = 12) -> tuple[list[str], list[list[str]]]:
    """The same for the terminal, with a shade behind each figure; header and rows."""
    top = max(s for m in maps for shares in m.blocks.values() for s in shares.values()) or 1.0
    numbers = sorted({e for m in maps for e in m.experts})[:most]
    rows = []
    for m in maps[:MOST_MODALITIES]:
        for block, shares in list(m.blocks.items())[:MOST_BLOCKS]:
            cells = [_shaded(shares[e], top) if e in shares else "" for e in numbers]
            left = len(shares) - most
            rows.append([m.modality, str(block), *cells, f"{left} more" if left > 0 else ""])
    header = ["Experts of", "Block", *(f"{e}" for e in numbers), ""]
    return (header, rows) if any(r[-1] for r in rows) else (header[:-1], [r[:-1] for r in rows])


def ramp(low: str, high: str) -> Markup:
    """The ramp's legend: its steps between the words for its ends."""
    steps = [tag("i", class_=f"heat h{i}", aria_hidden="true") for i in range(LEVELS + 1)]
    return tag("p", f"{low} ", tag("span", *steps, class_="ramp"), f" {high}", class_="quiet")


def level(value: float, top: float) -> int:
    """The step of the ramp: 0 for nothing, the last for the top and what is above it."""
    return min(LEVELS, max(0, int(LEVELS * value / top + 0.5)))


def _figure(m: Experts, top: float) -> Markup:
    numbers = m.experts[:MOST_EXPERTS]
    blocks = list(m.blocks.items())[:MOST_BLOCKS]
    head = tag("tr", *(tag("th", word, scope="col") for word in ("Block", *map(str, numbers))))
    rows = []
    for block, shares in blocks:
        cells = [_cell(shares.get(e), top) for e in numbers]
        rows.append(tag("tr", tag("th", str(block), scope="row"), *cells))
    label = f"Share of {m.modality}'s load by block and expert"
    whole = tag("table", tag("thead", head), tag("tbody", *rows), class_="map", aria_label=label)
    hidden = [
        f"{n} more {what}"
        for n, what in (
            (len(m.experts) - len(numbers), "experts"),
            (len(m.blocks) - len(blocks), "blocks"),
        )
        if n
    ]
    note = tag("figcaption", f"Not drawn: {', '.join(hidden)}.") if hidden else join()
    title = tag("h3", swatch(m.modality), m.modality)
    return tag("figure", title, tag("div", whole, class_="scroll"), note)


def _cell(share: float | None, top: float) -> Markup:
    if share is None:
        return tag("td")
    return tag("td", _percent(share), class_=f"heat h{level(share, top)}")


def _shaded(share: float, top: float) -> str:
    return f"{_percent(share)} {SHADES[round(share / top * (len(SHADES) - 1))]}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 or not share else f"{share:.1%}"
