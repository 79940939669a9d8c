"""Fit image tokenizers on the same pictures and compare them at equal bits.

    python benchmarks/image_tokenizer.py FOLDER... --checkpoints 0 300 1500
    python benchmarks/image_tokenizer.py FOLDER... --quantizers vq simvq lfq --preset small
    python benchmarks/image_tokenizer.py FOLDER... --checkpoints 0 --steps 300 --preset tiny
        --max-samples 500 --held-out 0.2 --levels 8 8 8 --latents
        --quantizers vq --perceptual 0.1 --adversarial 0.1
    python benchmarks/image_tokenizer.py FOLDER... --checkpoints 0 --steps 800 --max-samples 1500
        --quantizers vq bsq rvq --gradients rotation

On emoji the last one gave, in dB above patch k-means: VQ 0.85, turned -0.03, BSQ -2.28, residual VQ
(four times the bits) 4.73 with turned gradients.

Held-out pictures are chosen by key, so all methods and every row see the same ones. A checkpoint
is a whole fit of that many steps, as the learning rate's schedule depends on their number; rows of
--quantizers and --latents are trained for --steps, or the most of them. The further rows, of one
loss or gradient each, are of the first quantizer. `gain` is the PSNR above that of patch k-means.
Exit code 1 if `fsq`, after the most steps, is not better in PSNR.
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
from plait.tokenizers.image_options import Gradient, PresetName, QuantizerName

COLUMNS = ("psnr", "ssim", "frechet_texture", "codes_used", "perplexity", "bits_per_image")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the image tokenizers."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Files or folders with pictures."""
    checkpoints: tuple[int, ...] = (0, 300, 1500)
    """Training steps of `fsq`, a row each."""
    quantizers: tuple[QuantizerName, ...] = ()
    """Autoencoders trained end to end to measure too; all but `rvq` have about as many bits."""
    latents: bool = False
    """Measure the autoencoder of continuous latents too."""
    perceptual: tuple[float, ...] = ()
    """Weights of the perceptual loss, a row each."""
    adversarial: tuple[float, ...] = ()
    """Weights of the adversarial loss, a row each."""
    gradients: tuple[Gradient, ...] = ()
    """How gradients pass codes, a row each."""
    steps: int = 0
    """Training steps of all these rows; 0 for the most of --checkpoints."""
    preset: PresetName = "small"
    """Their size."""
    threads: int = 1
    """Threads of a fit."""
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
    base = FitOptions(
        size=options.size,
        stride=options.stride,
        levels=options.levels,
        codes=2 ** round(math.log2(math.prod(options.levels))),
        threads=options.threads,
        preset=options.preset,
    )
    jobs = [replace(base, method="patches")]
    jobs += [replace(base, steps=steps) for steps in sorted(options.checkpoints)]
    jobs += end_to_end(options, replace(base, steps=options.steps or max(options.checkpoints)))
    rows, quality = [], []
    for job in jobs:
        began_cpu, began = time.process_time(), time.monotonic()
        tokenizer = fit(pictures, job, seed=options.seed)
        cost = [f"{time.process_time() - began_cpu:.0f}", f"{time.monotonic() - began:.0f}"]
        report = evaluate(tokenizer, held_out)
        quality.append(report["psnr"])
        name = label(job)
        gain = f"{report['psnr'] - quality[0]:+.2f}"
        rows.append(
            [name, *(f"{report[c]:.4g}" if c in report else "-" for c in COLUMNS), gain, *cost]
        )
        print(*rows[-1], file=sys.stderr, flush=True)
    title = f"{len(pictures):,} pictures, {len(held_out):,} held out"
    console = make_console()
    console.print(
        f"{title}, {(options.size // options.stride) ** 2} tokens of "
        f"{math.prod(options.levels)} codes"
    )
    print_table(console, ["method", *COLUMNS, "gain dB", "CPU s", "wall s"], rows)
    return 0 if quality[len(options.checkpoints)] > quality[0] else 1


def end_to_end(options: Options, base: FitOptions) -> list[FitOptions]:
    """The rows that are trained end to end."""
    jobs = [replace(base, quantizer=name) for name in options.quantizers]
    if jobs:
        jobs += [
            replace(jobs[0], gradient=way) for way in options.gradients if way != base.gradient
        ]
        jobs += [replace(jobs[0], perceptual=weight) for weight in options.perceptual]
        jobs += [replace(jobs[0], adversarial=weight) for weight in options.adversarial]
    return jobs + ([replace(base, method="kl")] if options.latents else [])


def label(job: FitOptions) -> str:
    """A row's name."""
    if job.method == "patches":
        return "patches"
    name = job.quantizer or job.method
    name += f", {job.preset}" if job.quantizer or job.method == "kl" else ""
    for part in ("perceptual", "adversarial"):
        name += f", {part} {getattr(job, part):g}" if getattr(job, part) else ""
    name += "" if job.gradient == "straight" else f", {job.gradient}"
    return f"{name}, {job.steps} steps"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
