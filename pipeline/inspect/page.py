"""One self-contained HTML page of a stream, a run or a tokenizer: no network, light and dark.

Figures and charts are in the page as HTML and SVG and read without scripts; the script only shows
what a span of the packed batch holds. A content security policy allows that script by its hash and
data URLs, and nothing else, so content that is not ours can neither run nor fetch.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from plait import __version__
from plait.pipeline.inspect.charts import swatch
from plait.pipeline.inspect.markup import Markup, join, script_json, tag
from plait.pipeline.inspect.row_bar import legend

if TYPE_CHECKING:
    from plait.pipeline.inspect.atlas import Atlas
    from plait.pipeline.inspect.batch_view import BatchView


def render(
    title: str,
    body: Sequence[str],
    *,
    alerts: Sequence[str],
    data: Mapping[str, object] | None = None,
) -> str:
    """The page: heading, alerts, then the body's sections."""
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    button = tag("button", "Light or dark", id="theme", class_="theme", type="button", hidden=True)
    head = tag("header", tag("div", tag("h1", title)), button)
    foot = tag("footer", f"Made by plait {__version__} inspect. Nothing is loaded from elsewhere.")
    values = {
        "title": join(title),
        "policy": join(policy),
        "body": join(head, alert_list(alerts), *body, foot),
        "data": script_json(data or {}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _read("page.html"))


def packed_batch(view: "BatchView") -> Markup:
    """The packed rows, the panel that shows a span's content, and the atlases of codebooks."""
    words = (
        f"Each bar is a row of {view.seq_len:,} tokens as a model gets it. Choose a span with the "
        "mouse, or with Tab and the arrow keys, to see what its tokens decode to. "
        f"{len(view.numbers)} of the first {view.looked_at} rows, chosen to show every modality; "
        f"those are {view.fill:.1%} filled, and {view.learned:.1%} of their tokens are targets. "
        f"{view.originals_words}"
    )
    return join(
        section("A packed batch", words),
        legend(list(view.colours)),
        tag("div", view.markup, class_="scroll"),
        tag("div", id="panel", role="region", aria_live="polite", aria_label="The chosen document"),
        *(atlas_section(atlas) for atlas in view.atlases),
    )


def atlas_section(atlas: "Atlas") -> Markup:
    """A codebook, code by code."""
    return join(section("Codebook atlas", atlas.words), atlas.figure)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    class_: str = "",
    swatches: bool = False,
) -> Markup:
    """A table; with swatches, the first column names modalities."""
    head = tag("tr", *(tag("th", word, scope="col") for word in header))
    body = [
        tag("tr", *(tag("td", _marked(c) if swatches and i == 0 else c) for i, c in enumerate(row)))
        for row in rows
    ]
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_=class_ or None)
    return tag("div", whole, class_="scroll")


def alert_list(alerts: Sequence[str]) -> Markup:
    """What should be looked at, on top."""
    items = [tag("li", tag("b", "Look: "), alert) for alert in alerts]
    fine = tag("li", "Nothing stands out.", class_="fine")
    return tag("ul", *(items or [fine]), class_="alerts")


def facts(values: Mapping[str, str]) -> Markup:
    """Large figures with their names."""
    pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items())
    return tag("dl", *pairs, class_="facts")


def section(title: str, words: str) -> Markup:
    """A heading and a sentence."""
    return join(tag("h2", title), tag("p", words, class_="quiet") if words else "")


def _marked(modality: str) -> Markup:
    return join(swatch(modality), modality) if modality != "all" else join(modality)


def _read(name: str) -> str:
    return files("plait.pipeline.inspect").joinpath(name).read_text(encoding="utf-8")
