"""`plait fit pretrained FOLDER`: a tokenizer from a published codec; nothing is trained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from plait.pipeline.fit_page import empty_folder
from plait.tokenizers.base import Tokenizer
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.pretrained import KINDS, read_folder
from plait.tokenizers.pretrained_image import PretrainedImage
from plait.tokenizers.pretrained_speech import PretrainedSpeech, levels_of

USUAL_CODEBOOKS = 8


@dataclass(frozen=True, kw_only=True)
class PretrainedJob:
    """Which codec, and where the tokenizer goes."""

    folder: tyro.conf.Positional[Path]
    """A Hugging Face model's folder with config.json and safetensors; nothing is downloaded."""
    out: Path
    """Folder for the tokenizer; it holds the codec's weights, and needs FOLDER no more."""
    codebooks: int | None = None
    """Speech: the first so many levels are kept; 8 or all there are when left out, 0 for all."""
    size: int = 0
    """Pictures: pixels a side; 0 for the model's own (512 for Emu3, which takes any)."""
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
    tokenizer = make(job.folder, job.codebooks, job.size)
    empty_folder(job.out)
    import transformers

    report: dict[str, object] = {
        "kind": tokenizer.modality,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "metrics": {},
        "notes": [f"a published codec, loaded with transformers {transformers.__version__}"],
    }
    tokenizer.save(job.out)
    (job.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


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
