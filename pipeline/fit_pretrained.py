"""`plait fit pretrained FOLDER [SOURCE...]`: a tokenizer from a published codec.

Nothing is trained. Where there are sources, all of their samples, or `max_samples` of them, are
what `plait fit` holds out: the report has the same metrics and the same page.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import tyro

from plait.pipeline.fields import parse_fields
from plait.pipeline.fit_page import write_fit_page
from plait.pipeline.fit_report import PAGE, finite, print_report, save_fit
from plait.pipeline.fit_samples import FitSamples, find_samples, first_or_error
from plait.pipeline.progress import Progress
from plait.tokenizers import image_report, speech_report
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.image_grid import PictureTokenizer
from plait.tokenizers.pretrained import KINDS, read_folder
from plait.tokenizers.pretrained_image import PretrainedImage
from plait.tokenizers.pretrained_speech import PretrainedSpeech, levels_of
from plait.tokenizers.quantize import CodeUse

USUAL_CODEBOOKS = 8


@dataclass(frozen=True, kw_only=True)
class PretrainedJob:
    """Which codec, and where the tokenizer goes."""

    folder: tyro.conf.Positional[Path]
    """A Hugging Face model's folder with config.json and safetensors; nothing is downloaded."""
    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files or folders to measure the codec on; `KIND:PATH` forces a kind of source."""
    out: Path
    """Folder for the tokenizer; it holds the codec's weights, and needs FOLDER no more."""
    codebooks: int | None = None
    """Speech: the first so many levels are kept; 8 or all there are when left out, 0 for all."""
    size: int = 0
    """Pictures: pixels a side; 0 for the model's own (512 for Emu3, which takes any)."""
    source: str | None = None
    """Kind of all sources, where it should not be recognised."""
    field: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """ROLE=COLUMN: which column of rows holds the picture or sound, as in `plait shard`."""
    max_samples: int = 200
    """Most samples to measure on, chosen by seed and key; 0 for all."""
    seed: int = 0
    """Seed of that choice."""
    overwrite: bool = False
    """Replace a tokenizer that is there already."""
    json: bool = False
    """Print the report as JSON."""


def main(argv: Sequence[str]) -> int:
    """`plait fit pretrained`."""
    description = f"A tokenizer from a published codec ({', '.join(KINDS)})."
    job = tyro.cli(
        PretrainedJob, args=list(argv), prog="plait fit pretrained", description=description
    )
    report = run(job)
    if job.json:
        print(json.dumps(report, indent=2))
    elif job.sources:
        print_report(report, job.out)
    else:
        print(f"{report['kind']} tokenizer in {job.out}: vocabulary {report['vocab_size']:,}")
    return 0


def run(job: PretrainedJob) -> dict[str, object]:
    """Make it and save it; returns what report.json holds."""
    if job.out.exists() and not job.out.is_dir():
        raise ConfigError(f"{job.out}: a file is there, and should be a folder")
    if job.out.resolve() == job.folder.resolve():
        raise ConfigError(f"{job.out}: --out should be another folder than the codec's")
    if (job.out / "config.json").exists() and not job.overwrite:
        raise ConfigError(f"{job.out}: a tokenizer is there already; --overwrite replaces it")
    if job.max_samples < 0:
        raise ConfigError(f"--max-samples is {job.max_samples}: should be 0 or more")
    tokenizer = make(job.folder, job.codebooks, job.size)
    samples = _samples(tokenizer.modality, job)
    began = time.monotonic()
    metrics = _evaluate(tokenizer, samples) if job.sources else {}
    import transformers

    report: dict[str, object] = {
        "kind": tokenizer.modality,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "metrics": finite(metrics),
        "notes": [f"a published codec, loaded with transformers {transformers.__version__}"],
    }
    if job.sources:
        counts = samples.counts()
        report |= {
            "samples": {**counts, "fit": 0, "held_out": counts["fit"]},
            "seconds": {"fit": 0, "evaluate": round(time.monotonic() - began, 2)},
            "options": {"codebooks": job.codebooks, "size": job.size, "seed": job.seed},
            "sources": list(job.sources),
        }
    save_fit(tokenizer, report, samples, job.out)
    if job.sources:
        write_fit_page(job.out / PAGE, tokenizer, report, samples.load(samples.fit))
    return report


def _samples(kind: str, job: PretrainedJob) -> FitSamples:
    """What to measure on, in `fit`; ConfigError if a source holds nothing of the kind."""
    return find_samples(
        kind,
        job.sources,
        source_kind=job.source,
        fields=parse_fields(job.field),
        max_samples=job.max_samples,
        held_out=0,
        seed=job.seed,
    )


def _evaluate(tokenizer: Tokenizer, samples: FitSamples) -> dict[str, float]:
    with Progress("measuring", total=samples.counts()["fit"], unit="samples") as bar:
        raws = _counted(first_or_error(samples), bar)
        if isinstance(tokenizer, PretrainedImage):
            if not tokenizer.decodes:
                return _code_use(tokenizer, raws)
            return image_report.evaluate(cast(PictureTokenizer, tokenizer), raws)
        assert isinstance(tokenizer, PretrainedSpeech)
        rate_hz, levels = tokenizer.sample_rate_hz, tokenizer.codebooks
        return speech_report.measure(tokenizer, raws, rate_hz, codebooks=levels)


def _code_use(tokenizer: Tokenizer, raws: Iterable) -> dict[str, float]:
    """All that can be said of a codec of which the library has the encoder alone."""
    ids = [tokenizer.encode_batch([raw])[0].ids for raw in raws]
    use = CodeUse.of(torch.from_numpy(np.concatenate(ids).astype(np.int64)), tokenizer.vocab_size)
    return {
        "images": len(ids),
        "codes_used": use.codes_used,
        "codes_dead": use.codes_dead,
        "perplexity": use.perplexity,
        "bits_per_token": math.log2(tokenizer.vocab_size),
    }


def _counted(raws: Iterable, bar: Progress) -> Iterator:
    for raw in raws:
        yield raw
        bar.advance(1)


def make(folder: Path, codebooks: int | None = None, size: int = 0) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; ConfigError if it holds no codec that is known."""
    network, processor = read_folder(folder)
    if KINDS[network.kind].modality == "image":
        if codebooks is not None:
            raise ConfigError(f"--codebooks is for speech; {folder} is a picture codec")
        return PretrainedImage.from_network(network, processor, size)
    if size:
        raise ConfigError(f"--size is for pictures; {folder} is a sound codec")
    if codebooks is None:
        codebooks = min(USUAL_CODEBOOKS, levels_of(network))
    return PretrainedSpeech.from_network(network, codebooks)
