"""What all tests share: quiet threads, so that results and times repeat, and the sample data."""

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
