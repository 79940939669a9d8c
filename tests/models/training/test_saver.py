"""Saving while training goes on, full disks, damaged files, and what is kept."""

import errno
import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plait.models import checkpoint, tensor_files
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.training import run_store, saver
from plait.models.training.optimizer import Optimizer, OptimizerConfig
from plait.models.training.saver import Saver
from plait.tokenizers.errors import ConfigError, PlaitError

Parts = tuple[Decoder, Optimizer]


@pytest.fixture
def parts(new_decoder: Callable[..., Decoder]) -> Parts:
    decoder = new_decoder(ModelConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24))
    return decoder, Optimizer(decoder, OptimizerConfig())


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoint.checkpoints(run)]


def test_training_goes_on_while_it_is_written(parts, tmp_path, monkeypatch):
    go_on, write = threading.Event(), tensor_files._write_file

    def slow(path, blocks):
        assert go_on.wait(60)
        return write(path, blocks)

    monkeypatch.setattr(tensor_files, "_write_file", slow)
    decoder, optimizer = parts
    head = decoder.head.detach().clone()
    with Saver(tmp_path) as writer:
        writer.save(decoder, optimizer, {"step": 1})
        assert checkpoint.newest_checkpoint(tmp_path) is None
        with torch.no_grad():
            decoder.head.zero_()
        threading.Timer(0.1, go_on.set).start()
        writer.save(decoder, optimizer, {"step": 2})  # waits for the first
        assert names(tmp_path)[:1] == ["step-1"]
        writer.wait(last=True)
        assert names(tmp_path) == ["step-1", "step-2"]
    heads = [
        load_file(path / "model.safetensors")["head"] for path in checkpoint.checkpoints(tmp_path)
    ]
    assert torch.equal(heads[0], head)
    assert not heads[1].any()


def test_the_end_of_the_context_waits(parts, tmp_path):
    with Saver(tmp_path) as writer:
        writer.save(*parts, {"step": 1})
    assert names(tmp_path) == ["step-1"]
    assert run_store.load(tmp_path / "checkpoints" / "step-1", *parts) == {"step": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "checksums.json"])
def test_a_full_disk_is_survived(file, number, parts, tmp_path, monkeypatch, capsys):
    write = tensor_files._write_file

    def full(path, blocks):
        if path.name != file:
            return write(path, blocks)
        path.write_bytes(b"half")
        raise OSError(number, "the disk is full", str(path))

    with Saver(tmp_path) as writer:
        writer.save(*parts, {"step": 1})
        writer.wait()
        monkeypatch.setattr(tensor_files, "_write_file", full)
        writer.save(*parts, {"step": 2})
        writer.wait()
        said = capsys.readouterr().err
        assert "warning: the checkpoint of step 2 was not written" in said
        assert "the disk is full" in said and "step-1 stands" in said
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
        with pytest.raises(PlaitError, match=r"step 2 was not written.*free space"):
            writer.wait(last=True)
        monkeypatch.setattr(tensor_files, "_write_file", write)
        writer.save(*parts, {"step": 3})
        writer.wait(last=True)
    assert names(tmp_path) == ["step-1", "step-3"]


def test_any_other_error_is_raised(parts, tmp_path, monkeypatch):
    def wrong(path, blocks):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(tensor_files, "_write_file", wrong)
    with pytest.raises(RuntimeError, match="a fault of ours"), Saver(tmp_path) as writer:
        writer.save(*parts, {"step": 1})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_newest_and_the_best_are_kept(parts, tmp_path):
    losses = [3.0, 1.0, None, 2.0, math.nan, 1.5]
    with Saver(tmp_path, keep=2, best=1) as writer:
        for step, loss in enumerate(losses, 1):
            writer.save(*parts, {"step": step, "validation_loss": loss})
        writer.wait(last=True)
    assert names(tmp_path) == ["step-2", "step-5", "step-6"]
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"checkpoint": "step-2", "validation/loss": 1.0}
    with Saver(tmp_path, keep=1, best=2) as writer:
        writer.save(*parts, {"step": 7, "validation_loss": 0.5})
    assert names(tmp_path) == ["step-2", "step-7"]
    with Saver(tmp_path, keep=1, best=0) as writer:
        writer.save(*parts, {"step": 7})
    assert names(tmp_path) == ["step-7"]


def test_what_a_killed_save_left_is_no_checkpoint(parts, tmp_path):
    with Saver(tmp_path) as writer:
        writer.save(*parts, {"step": 1})
    for name in (".step-2.writing", ".step-0.removed"):
        shutil.copytree(tmp_path / "checkpoints" / "step-1", tmp_path / "checkpoints" / name)
    assert names(tmp_path) == ["step-1"]
    saver.clear(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_named_and_what_is_whole(file, parts, tmp_path):
    with Saver(tmp_path) as writer:
        for step in (8, 9, 10):
            writer.save(*parts, {"step": step})
    folder = tmp_path / "checkpoints"
    (folder / "step-9" / "config.json").unlink()
    damage(folder / "step-10" / file)
    with pytest.raises(ConfigError) as error:
        run_store.load(folder / "step-10", *parts)
    assert f"step-10/{file}: damaged" in str(error.value)
    assert f"step-8 is whole: remove {folder / 'step-10'}" in str(error.value)
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.load(folder / "step-10")
    shutil.rmtree(folder / "step-8")
    with pytest.raises(ConfigError, match="no other checkpoint is whole"):
        run_store.load(folder / "step-10", *parts)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
