"""What a reader should look at first: rejected samples, unused codes, rows with much padding."""

from collections.abc import Mapping

from plait.pipeline.inspect.statistics import ModalityStatistics

REJECTED = 0.01
UNUSED = 0.1
FILL = 0.9


def stream_alerts(
    documents: int,
    rejected: Mapping[str, int],
    statistics: Mapping[str, ModalityStatistics],
    fill: float | None = None,
) -> list[str]:
    """Sentences, the most pressing first; none if nothing stands out.

    Bytes are left out of unused codes, for their vocabulary is not learned; samples that were
    filtered, of those rejected.
    """
    found = []
    lost = sum(n for reason, n in rejected.items() if not reason.startswith("filtered"))
    samples = documents + sum(rejected.values())
    if lost > REJECTED * samples:
        found.append(f"{lost:,} of {samples:,} samples ({lost / samples:.1%}) were rejected.")
    for name, s in statistics.items():
        unused = 1 - s.codes_used / s.vocab_size
        if not s.tokens:
            found.append(f"{name}: a tokenizer is there, but no token of it.")
        elif unused > UNUSED and name != "bytes":
            found.append(f"{name}: {unused:.0%} of {s.vocab_size:,} codes are never used.")
    if fill is not None and fill < FILL:
        found.append(f"Packed rows are only {fill:.1%} filled; the rest is padding.")
    return found


def run_alerts(
    train: Mapping[str, float],
    validation: Mapping[str, float],
    fill: float | None,
    skipped: float | None = None,
) -> list[str]:
    """The same for a run: losses that are not numbers, batches skipped, rows with much padding."""
    found = [
        f"{where} loss of {name} is {value}."
        for where, losses in (("training", train), ("validation", validation))
        for name, value in losses.items()
        if not abs(value) < float("inf")
    ]
    if skipped:
        found.append(f"Batches skipped: {skipped:,.0f}; skipped.jsonl names their documents.")
    if fill is not None and fill < FILL:
        found.append(f"Packed rows are only {fill:.1%} filled; the rest is padding.")
    return found
