"""Fit both image tokenizers on the same pictures and compare them at equal bits.

    python benchmarks/image_tokenizer.py FOLDER... --checkpoints 0 300 1500

Held-out pictures are chosen by key, so both methods and every row see the same ones. A checkpoint
is a whole fit of that many steps, as the learning rate's schedule depends on their number. Exit
code 1 if `fsq`, after the most steps, is not better in PSNR.
"""

import math
import sys
import time
from dataclasses import dataclass, replace

import tyro
from PIL.Image import Image

from plait.pipeline.fit_samples import find_samples
from plait.pipeline.tables import make_console, print_table
from plait.tokenizers.image import FitOptions, evaluate, fit

COLUMNS = ("psnr", "ssim", "codes_used", "perplexity", "bits_per_image")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the image tokenizers."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Files or folders with pictures."""
    checkpoints: tuple[int, ...] = (0, 300, 1500)
    """Training steps of `fsq`, a row each."""
    size: int = 64
    """Pixels a side."""
    stride: int = 8
    """Pixels a side of a code's patch."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """The FSQ grid."""
    max_samples: int = 10_000
    """Most pictures to use."""
    held_out: float = 0.1
    """Share of the pictures that is kept for the evaluation."""
    seed: int = 0
    """Seed of every random choice."""


def main(options: Options) -> int:
    """Print the table."""
    samples = find_samples(
        "image",
        options.sources,
        source_kind=None,
        max_samples=options.max_samples,
        held_out=options.held_out,
        seed=options.seed,
    )
    pictures = [x for x in samples.load(samples.fit) if isinstance(x, Image)]
    held_out = [x for x in samples.load(samples.held_out) if isinstance(x, Image)]
    base = FitOptions(size=options.size, stride=options.stride, levels=options.levels)
    jobs = [replace(base, method="patches")]
    jobs += [replace(base, steps=steps) for steps in sorted(options.checkpoints)]
    rows, quality = [], []
    for job in jobs:
        began_cpu, began = time.process_time(), time.monotonic()
        tokenizer = fit(pictures, job, seed=options.seed)
        cost = [f"{time.process_time() - began_cpu:.0f}", f"{time.monotonic() - began:.0f}"]
        report = evaluate(tokenizer, held_out)
        quality.append(report["psnr"])
        name = job.method if job.method == "patches" else f"fsq, {job.steps} steps"
        rows.append([name, *(f"{report[c]:.2f}" for c in COLUMNS), *cost])
    title = f"{len(pictures):,} pictures, {len(held_out):,} held out"
    console = make_console()
    console.print(
        f"{title}, {(options.size // options.stride) ** 2} tokens of "
        f"{math.prod(options.levels)} codes"
    )
    print_table(console, ["method", *COLUMNS, "CPU s", "wall s"], rows)
    return 0 if quality[-1] > quality[0] else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
