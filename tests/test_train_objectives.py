"""Runs with weights, masks, groups, frozen parts and a beginning: as a user would start them."""

import json
import shutil

import pytest
import torch

from plait.models.training.names import modality_rows
from plait.models.training.run_config import read_config
from plait.pipeline import cli
from plait.tokenizers.errors import ConfigError
from plait.train import Run

from .runs import lines, weights

SMALL = [
    *("--model.dim", "32", "--model.n-heads", "2", "--rows.seq-len", "256", "--device", "cpu"),
    *("--rows.batch-size", "2", "--steps", "6", "--log.every", "1", "--checkpoint.every", "2"),
    *("--validation.batches", "2", "--checkpoint.keep", "0"),
]


@pytest.fixture
def run_file(sample_run, sample_stream, tmp_path) -> str:
    """A text model kept fixed while all else goes on from it, by less than the whole loss."""
    (tmp_path / "run.toml").write_text(
        f"""
        data = ["{sample_stream}"]
        [init]
        source = "{sample_run}"
        skip = ["blocks.3.*"]
        [model]
        untie = ["qkv", "o", "ffn", "norm"]
        z_loss = 1e-5
        [objective]
        weights = {{ image = 0.5 }}
        mask = ["bytes"]
        [optimizer]
        freeze = ["modality:text", "blocks.0.*"]
        schedule = "constant"
        cooldown = 0.5
        warmup = 1
        [[optimizer.groups]]
        match = ["norm"]
        lr = 1e-3
        weight_decay = 0.01
        """
    )
    return str(tmp_path / "run.toml")


def test_all_of_it_at_once_is_resumed_bit_equal(run_file, sample_run, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main(["train", run_file, "--out", str(whole), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "loaded (whole): " in said and "drawn (in init.skip): " in said
    shutil.copytree(whole, cut)
    for name in ("step-4", "step-6"):
        shutil.rmtree(cut / "checkpoints" / name)
    assert cli.main(["train", run_file, "--out", str(cut), *SMALL]) == 0
    assert lines(cut) == lines(whole)
    for name in ("model", "optimizer"):
        one, other = weights(whole, name), weights(cut, name)
        assert all(torch.equal(one[n], other[n]) for n in one)
    run = Run(read_config([run_file, "--out", str(whole), *SMALL]))
    seed, now = weights(sample_run, "model"), weights(whole, "model")
    for name, owner in modality_rows(run.model).items():
        if not name.startswith(("blocks.3.", "blocks.0.")) and name != "prior_V":
            assert torch.equal(seed[name][owner == 0], now[name][owner == 0]), name
            assert not torch.equal(seed[name][owner == 1], now[name][owner == 1]), name
    fixed = [n for n in now if n.startswith("blocks.0.")]
    assert fixed and all(torch.equal(seed[n], now[n]) for n in fixed)
    assert not {n for n in weights(whole, "optimizer") if n.startswith("blocks.0.")}
    assert [line["lr"] / 3e-3 for line in lines(whole)][:4] == pytest.approx([1, 1, 1, 1])
    assert all(line["lr/norm"] == pytest.approx(line["lr"] / 3) for line in lines(whole))
    assert all(line["loss/bytes"] is None for line in lines(whole))
    assert any(line["loss/text"] for line in lines(whole))
    about = json.loads((whole / "environment.json").read_text())["init"]
    assert about["loaded"]["embedding"] == "whole"
    assert about["drawn"]["blocks.3.mixer.o.weight"] == "in init.skip"


def test_weights_change_what_is_learned_and_not_what_is_logged(sample_stream, tmp_path):
    found = {}
    for weight in ("1", "0"):
        out = tmp_path / weight
        words = ["mot", "--data", str(sample_stream), "--out", str(out), *SMALL]
        more = ["--steps", "2", "--objective.weights", "text", weight]
        assert cli.main(["train", *words, *more]) == 0
        found[weight] = lines(out)
    first = [found[weight][0] for weight in ("1", "0")]
    assert first[0]["loss"] == first[1]["loss"] and first[0]["loss/text"] and first[0]["loss/bytes"]
    assert first[0]["grad_norm"] != first[1]["grad_norm"]
    assert found["1"][1]["loss/text"] < found["0"][1]["loss/text"]


def test_a_constant_rate_is_cooled_down_when_the_time_comes(sample_stream, tmp_path):
    words = ["train", "dense", "--data", str(sample_stream), "--out", str(tmp_path / "run"), *SMALL]
    words += ["--optimizer.schedule", "constant", "--optimizer.warmup", "2", "--optimizer.lr", "1"]
    assert cli.main([*words, "--steps", "4", "--optimizer.clip", "1e-9"]) == 0
    words += ["--optimizer.clip", "1e-9", "--optimizer.min-lr", "0.1"]
    more = ["--optimizer.cooldown", "0.5", "--optimizer.cooldown-shape", "linear"]
    assert cli.main([*words, "--steps", "8", *more]) == 0
    rates = [line["lr"] for line in lines(tmp_path / "run")]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.775, 0.55, 0.325])


def test_dry_run_prints_the_groups(run_file, tmp_path, capsys):
    words = [run_file, "--out", str(tmp_path / "run"), *SMALL, "--dry-run"]
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "lr 3.0e-03, weight decay 0.1: " in said and "lr 1.0e-03, weight decay 0.01: " in said
    assert "frozen: " in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective.weights", "vidio", "2"], "objective.weights: the data has no modality"),
        (["--objective.learn", "roles"], "'roles': .* has no such column"),
        (["--optimizer.freeze", "blocks.9"], "optimizer.freeze: no parameter has blocks.9"),
    ],
)
def test_wrong_use_says_what_to_do(words, message, sample_stream, tmp_path):
    base = ["mot", "--data", str(sample_stream), "--out", str(tmp_path / "run"), *SMALL]
    with pytest.raises(ConfigError, match=message):
        Run(read_config([*base, *words]))


def test_a_dense_run_grows_by_a_preset(sample_stream, tmp_path):
    """The same validation loss before the first step, then it trains."""
    seed = tmp_path / "dense"
    words = ["train", "dense", "--data", str(sample_stream), "--out", str(seed), *SMALL]
    assert cli.main([*words, "--steps", "2"]) == 0
    wanted = lines(seed)[-1]["validation/loss"]
    for preset in ("mot", "memory"):
        out = tmp_path / preset
        assert cli.main(["upcycle", str(seed), "--out", str(out), "--preset", preset]) == 0
        run = Run(read_config([str(out / "config.toml")]))
        run._open_folder()
        assert run.validate()["validation/loss"] == pytest.approx(wanted, abs=1e-5)
        assert run.config.preset == preset
    assert cli.main(["train", str(out / "config.toml")]) == 0
