"""Runs that are told to stop, killed, or find no space go on as if nothing had been."""

import errno
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch

from plait.models import tensor_files
from plait.models.checkpoint import checkpoints, newest_checkpoint
from plait.models.training.run_config import PRESETS, RunConfig, read_config
from plait.pipeline import cli
from plait.tokenizers.errors import ConfigError
from plait.train import Run

from .runs import lines, weights

SMALL = [
    *(
        "--model.dim",
        "32",
        "--model.n-heads",
        "2",
        "--model.n-layers",
        "2",
        "--rows.seq-len",
        "128",
    ),
    *("--rows.seq-len", "128", "--rows.batch-size", "2", "--log.every", "1", "--device", "cpu"),
    *("--validation.every", "4", "--validation.batches", "2"),
]


def config(preset: str, stream: Path, out: Path, *more: str) -> RunConfig:
    return read_config([preset, "--data", str(stream), "--out", str(out), *SMALL, *more])


def assert_same(run: Path, whole: Path) -> None:
    assert lines(run) == lines(whole)
    found, expected = weights(run), weights(whole)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


STEPS = ("--steps", "8", "--checkpoint.every", "3")


@pytest.fixture(scope="module")
def whole(sample_stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    Run(config("dense", sample_stream, out, *STEPS)).train()
    return out


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def in_a_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step = run.optimizer.step

    def told(share: float) -> None:
        step(share)
        if run.step == 5:
            tell(signal.SIGINT)

    monkeypatch.setattr(run.optimizer, "step", told)


def in_a_validation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = run._losses

    def told(*args, **options):
        if not run.model.training and run.step == 4:
            tell(signal.SIGTERM)
        return losses(*args, **options)

    monkeypatch.setattr(run, "_losses", told)


def in_a_save(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tensor_files.write_synced

    def told(path: Path, text: str) -> str:
        if run.step >= 3:
            tell(signal.SIGTERM)
        return write(path, text)

    monkeypatch.setattr(tensor_files, "write_synced", told)


@pytest.mark.parametrize(
    ("when", "steps"), [(in_a_step, [5]), (in_a_validation, [4]), (in_a_save, [3, 4, 5, 6])]
)
def test_a_signal_saves_and_the_run_goes_on(
    when, steps, whole, sample_stream, tmp_path, monkeypatch, capfd
):
    run = Run(config("dense", sample_stream, tmp_path / "run", *STEPS))
    with monkeypatch.context() as patch:
        when(run, patch)
        run.train()
    out = capfd.readouterr().out
    assert f"stopped at step {run.step} of 8; the same command goes on" in out
    assert run.step in steps
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert newest.name == f"step-{run.step}"
    for _ in range(2):  # a line that a validation still owed is not written twice
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "run", copy)
        again = Run(config("dense", sample_stream, copy, *STEPS))
        again.train()
        assert_same(copy, whole)
        shutil.rmtree(copy)
        shutil.copy(whole / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl")


def test_the_command_exits_with_0(sample_stream, tmp_path, monkeypatch):
    train = Run._train_step

    def told(run: Run, *args):
        tell(signal.SIGTERM)
        return train(run, *args)

    monkeypatch.setattr(Run, "_train_step", told)
    words = ["dense", "--data", str(sample_stream), "--out", str(tmp_path / "run"), *SMALL]
    assert cli.main(["train", *words]) == 0
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-1"]


def full(path: Path, blocks: object) -> str:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_training_survives_a_full_disk(whole, sample_stream, tmp_path, monkeypatch, capfd):
    run = Run(config("dense", sample_stream, tmp_path / "run", *STEPS))
    train, write = run._train_step, tensor_files._write_file

    def step(*args):
        space = run.step < 5 or run.step == 7
        monkeypatch.setattr(tensor_files, "_write_file", write if space else full)
        return train(*args)

    monkeypatch.setattr(run, "_train_step", step)
    run.train()
    assert "step 6 was not written: [Errno 28] No space left" in capfd.readouterr().err
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-3", "step-8"]
    assert_same(tmp_path / "run", whole)


def test_a_full_disk_at_the_end_is_an_error(sample_stream, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensor_files, "_write_file", full)
    words = ["dense", "--data", str(sample_stream), "--out", str(tmp_path / "run"), *SMALL]
    assert cli.main(["train", *words, "--steps", "2"]) == 2
    assert "free space, and the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_damaged_checkpoint_is_not_gone_on_from(whole, sample_stream, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damaged = run / "checkpoints" / "step-8"
    data = (damaged / "optimizer.safetensors").read_bytes()
    (damaged / "optimizer.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"optimizer\.safetensors: damaged.*step-6 is whole: rem"):
        Run(config("dense", sample_stream, run, *STEPS)).train()
    shutil.rmtree(damaged)
    Run(config("dense", sample_stream, run, *STEPS)).train()
    assert_same(run, whole)


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_bit_equal(sample_stream, tmp_path):
    """At random moments: while the folder is made, in steps, validations, saves and removals."""
    table = tomllib.loads((PRESETS / "moma.toml").read_text())
    schedule = [{"step": 0, "weights": [1, 2]}, {"step": 20, "weights": [3, 1]}]
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({**table, "mixture": {"schedule": schedule}}))
    more = ["--data", *[str(sample_stream)] * 2, "--rows.accumulate", "2", "--steps", "140"]
    more += ["--model.router-noise", "1.0", "--checkpoint.every", "3"]
    whole, killed = (config(str(path), sample_stream, tmp_path / n, *more) for n in ("a", "b"))
    assert in_child(whole) == 0
    draw = random.Random(0)
    for life in range(20):
        if life % 4:
            code = in_child(killed, lines=draw.randint(1, 7), wait_s=draw.uniform(0, 0.05))
        else:
            code = in_child(killed, lines=12, seconds=draw.uniform(0.05, 1.5))
        assert code == -signal.SIGKILL
    assert in_child(killed) == 0
    assert_same(tmp_path / "b", tmp_path / "a")
    assert len((tmp_path / "b" / "resumed.jsonl").read_text().splitlines()) > 10


def in_child(
    config: RunConfig, lines: float = math.inf, seconds: float = 300, wait_s: float = 0
) -> int | None:
    """Train in a process of its own; SIGKILL after so many lines, then a wait, or so many seconds.

    Gives its exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["plait.train", "torch._dynamo"])
    metrics = Path(config.out) / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.is_file() else 0
    process = context.Process(target=train, args=(config,))
    process.start()
    first, end = None, time.monotonic() + seconds
    while process.is_alive():
        if metrics.is_file() and metrics.stat().st_mtime_ns != before:
            found = metrics.read_bytes().count(b"\n")
            first = found if first is None else first
            if found - first >= lines:
                time.sleep(wait_s)
                process.kill()
        if time.monotonic() > end:
            process.kill()
        time.sleep(0.002)
    process.join()
    return process.exitcode


def train(config: RunConfig) -> None:
    torch.set_num_threads(1)
    Run(config).train()
