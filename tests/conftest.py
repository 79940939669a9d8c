"""What all tests share: quiet threads, so that results repeat; sample data, a stream and a run."""

import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The sample data of the repository: folders images, speech, text and interleaved."""
    return REPOSITORY / "pipeline" / "sample_data"


SMALL_FITS = {
    "text": ["--vocab-size", "512"],
    "image": ["--method", "patches", "--levels", "4", "4", "4"],
    "speech": ["--codebooks", "2", "--codebook-size", "64"],
    "bytes": [],
}
"""Tokenizers that are fitted in seconds; what they are like is tested elsewhere."""


@pytest.fixture(scope="session")
def sample_tokenizers(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small tokenizers of the sample data: text, image, speech and bytes."""
    from plait.pipeline import cli

    folder = tmp_path_factory.mktemp("tokenizers")
    for kind, options in SMALL_FITS.items():
        source = sample_data / {"image": "images", "speech": "speech"}.get(kind, "text")
        assert cli.main(["fit", kind, str(source), "--out", str(folder / kind), *options]) == 0
    return folder


@pytest.fixture(scope="session")
def sample_stream(
    sample_data: Path, sample_tokenizers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stream of the sample data, in all four modalities."""
    from plait.pipeline import cli

    stream = tmp_path_factory.mktemp("data") / "stream"
    using = [word for kind in SMALL_FITS for word in ("--tokenizer", str(sample_tokenizers / kind))]
    assert cli.main(["shard", str(sample_data), "--out", str(stream), *using]) == 0
    return stream


@pytest.fixture(scope="session")
def sample_run(sample_stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps."""
    from plait.pipeline import cli

    run = tmp_path_factory.mktemp("runs") / "mot"
    words = ["--data", str(sample_stream), "--out", str(run), "--steps", "8", "--device", "cpu"]
    small = ["--model.dim", "32", "--model.n-heads", "2", "--rows.seq-len", "256"]
    assert cli.main(["train", "mot", *words, *small, "--validation.share", "0.2"]) == 0
    return run
