"""Training on two gloo processes is training on one: losses to 1e-5 over 50 steps, by modality."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from plait.models.ranks import ALONE, Ranks
from plait.models.training import parallel
from plait.models.training.run_config import PRESETS, read_config
from plait.train import Run

from .runs import lines

NAMES = sorted(p.stem for p in PRESETS.glob("*.toml"))
SMALL = [
    *("--model.dim", "32", "--model.n-heads", "2", "--model.n-layers", "2"),
    *("--model.hidden-dim", "32", "--model.memory-keys", "16", "--model.state-dim", "4"),
    *("--rows.seq-len", "80", "--rows.batch-size", "4", "--steps", "50", "--log.every", "1"),
    *("--validation.every", "25", "--validation.batches", "3", "--device", "cpu"),
]


class Unsaved(Run):
    """A run without checkpoints, which have tests of their own."""

    def _save(self, *_) -> None:
        pass


def train(preset: str, stream: str, out: str, more: list[str], ranks: Ranks = ALONE) -> None:
    words = [preset, "--data", stream, "--out", out, *SMALL, *more]
    Unsaved(read_config(words), ranks).train()


def worker(rank: int, size: int, port: int, runs: list[tuple[str, str, str, list[str]]]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    with parallel.processes() as ranks:
        for run in runs:
            train(*run, ranks=ranks)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_same_curves(one: Path, other: Path) -> None:
    expected, found = lines(one), lines(other)
    assert len(found) == len(expected) > 0
    for a, b in zip(expected, found, strict=True):
        assert {k for k, v in a.items() if v is None} == {k for k, v in b.items() if v is None}
        known = [k for k, v in a.items() if v is not None]
        close = {k: abs(a[k] - b[k]) < 1e-5 for k in known}
        assert all(close.values()), (other.name, a, b)


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(sample_stream, tmp_path, monkeypatch):
    """Each preset, as replicas and in shards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = []
    for name in NAMES:
        train(name, str(sample_stream), str(tmp_path / name), [])
        for kind in ("replicate", "shard"):
            more = ["--parallel.kind", kind]
            runs.append((name, str(sample_stream), str(tmp_path / f"{name}-{kind}"), more))
    mp.spawn(worker, (2, free_port(), runs), nprocs=2)
    assert len(lines(tmp_path / NAMES[0])) == 50
    for name in NAMES:
        for kind in ("replicate", "shard"):
            assert_same_curves(tmp_path / name, tmp_path / f"{name}-{kind}")


def test_four_processes_with_accumulation_and_a_last_part_batch(
    sample_stream, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = ["--rows.accumulate", "2", "--model.router-noise", "1", "--model.n-layers", "1"]
    more += ["--steps", "4", "--validation.every", "4", "--rows.batch-size", "8"]
    more += ["--validation.share", "0.005", "--validation.batches", "1000"]
    words = ["moma", "--data", str(sample_stream), "--out", str(tmp_path / "one"), *SMALL, *more]
    one = Unsaved(read_config(words))
    assert len(one._rows("validation")) % 8
    one.train()
    hybrid = ["--parallel.kind", "hybrid", "--parallel.shard-size", "2"]
    runs = [("moma", str(sample_stream), str(tmp_path / "four"), [*more, *hybrid])]
    mp.spawn(worker, (4, free_port(), runs), nprocs=4)
    assert "validation/loss" in lines(tmp_path / "one")[-1]
    assert_same_curves(tmp_path / "one", tmp_path / "four")


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    start = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, "-m", *start, "-m", "plait.pipeline.cli", "train", *words]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=300)


def test_an_error_is_said_once_under_torchrun(sample_stream, tmp_path):
    words = ["dense", "--data", str(sample_stream), "--out", str(tmp_path / "run"), *SMALL]
    done = torchrun(*words, "--rows.batch-size", "3")
    assert done.returncode != 0
    assert done.stderr.count("multiple of the world size 2") == 1
    assert "Traceback" not in done.stderr.partition("ChildFailedError")[0].partition("failed (")[0]
