"""What `plait eval` found, as tables for a person and as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.text import Text

from plait.models.evaluation.pairs import Direction
from plait.models.evaluation.perplexity import Tally
from plait.models.evaluation.recall import Recall
from plait.pipeline.tables import make_console, print_table

Facts = dict[str, object]


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamResult:
    """What was found of a stream."""

    held_out: bool
    seen: bool
    """Whether the run was trained on some of these documents."""
    tally: Tally
    pairs: list[Direction]


def is_finite(result: StreamResult | Recall) -> bool:
    """Whether every loss is a number."""
    if isinstance(result, Recall):
        return math.isfinite(result.loss)
    return all(math.isfinite(x) for x in result.tally.losses().values() if x is not None)


def to_facts(result: StreamResult | Recall) -> Facts:
    """As JSON values; losses are nats a token, by modality and over `all`."""
    return _stream_facts(result) if isinstance(result, StreamResult) else _question_facts(result)


def _stream_facts(result: StreamResult) -> Facts:
    """As JSON values; nats a token, by modality and over `all`."""
    tally = result.tally
    losses = tally.losses()
    return {
        "held_out": result.held_out,
        "seen_in_training": result.seen,
        "documents": tally.documents,
        "targets": tally.counts(),
        "loss": {name: _finite(loss) for name, loss in losses.items()},
        "perplexity": {name: _perplexity(loss) for name, loss in losses.items()},
        "bits_per_byte": {name: _finite(x) for name, x in tally.bits_per_byte().items()},
        "bytes": tally.written_bytes,
        "pairs": [
            {
                **asdict(pair),
                "loss": _finite(pair.loss),
                "perplexity": _perplexity(pair.loss),
                "shuffled_loss": _finite(pair.shuffled_loss),
                "gain": _finite(pair.gain),
            }
            for pair in result.pairs
        ],
    }


def _question_facts(recall: Recall) -> Facts:
    """As JSON values."""
    found = {"exact_match": recall.exact_match, "perplexity": _perplexity(recall.loss)}
    return {**asdict(recall), "loss": _finite(recall.loss), **found}


def print_results(checkpoint: str, results: Mapping[str, StreamResult | Recall]) -> None:
    """Print tables."""
    console = make_console()
    console.print(Text(f"run {checkpoint}", style="bold"))
    for name, result in results.items():
        if isinstance(result, Recall):
            line = f"{name}: {result.questions:,} questions, {result.right:,} answered exactly"
            console.print(Text(f"\n{line} ({result.exact_match:.1%})"))
            answers = f"{result.tokens:,} tokens, perplexity {math.exp(result.loss):,.2f}"
            console.print(f"the right answers: {answers}")
            continue
        which = "held-out documents" if result.held_out else "documents"
        console.print(Text(f"\n{name}: {result.tally.documents:,} {which}"))
        print_table(console, *_modality_table(result.tally))
        if result.pairs:
            print_table(console, *_pair_table(result.pairs))
        if result.seen:
            console.print("\nlook: the run was trained on some of this; --held-out leaves that out")


def _modality_table(tally: Tally) -> tuple[list[str], list[list[str]]]:
    rows, counts, bits = [], tally.counts(), tally.bits_per_byte()
    for name, loss in tally.losses().items():
        if loss is not None:
            written = (
                [f"{bits[name]:.4f}", f"{tally.written_bytes[name]:,}"]
                if name in bits
                else ["", ""]
            )
            rows.append(
                [name, f"{counts[name]:,}", f"{loss:.4f}", f"{math.exp(loss):,.2f}", *written]
            )
    return ["Modality", "Targets", "Loss", "Perplexity", "Bits per byte", "Bytes"], rows


def _pair_table(pairs: Sequence[Direction]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            f"{pair.given} -> {pair.asked}",
            f"{pair.pairs:,}",
            f"{pair.tokens:,}",
            f"{pair.loss:.4f}",
            f"{math.exp(pair.loss):,.2f}",
            f"{pair.shuffled_loss:.4f}",
            f"{pair.gain:.4f}",
        ]
        for pair in pairs
    ]
    header = ["Pairs", "Number", "Tokens", "Loss", "Perplexity", "Loss after another's", "Gain"]
    return header, rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _perplexity(loss: float | None) -> float | None:
    return math.exp(loss) if loss is not None and loss < 700 else None
