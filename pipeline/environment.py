"""Where a run was made: versions, commit, machine and command, for its `environment.json`."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "plait",
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "sentencepiece",
    "tiktoken",
    "tokenizers",
    "triton",
)


def describe_environment() -> dict[str, object]:
    """JSON values: command, Python, platform, threads, package versions and the git commit."""
    import torch

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _git_commit() -> str | None:
    """The commit of plait's own checkout; None when it is installed from a wheel."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
