import json
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch

from plait.models.checkpoint import newest_checkpoint
from plait.models.training.run_config import PRESETS, RunConfig, read_config
from plait.pipeline import cli
from plait.pipeline.config import to_toml
from plait.tokenizers.errors import ConfigError, ResumeError
from plait.train import Run

from .runs import lines, weights

NAMES = sorted(p.stem for p in PRESETS.glob("*.toml"))
SMALL = [
    *("--model.dim", "32", "--model.n-heads", "2", "--rows.seq-len", "128"),
    *("--rows.batch-size", "2", "--steps", "6", "--log.every", "2", "--checkpoint.every", "2"),
    *("--validation.every", "3", "--validation.batches", "2", "--device", "cpu"),
]


def config(preset: str, stream: Path, out: Path, *more: str) -> RunConfig:
    return read_config([preset, "--data", str(stream), "--out", str(out), *SMALL, *more])


def scheduled(preset: str, folder: Path) -> str:
    """A run file: the preset, and two streams whose weights change before and after step 4."""
    table = tomllib.loads((PRESETS / f"{preset}.toml").read_text())
    weights = {0: [1, 2], 3: [3, 1], 5: [1, 1]}
    schedule = [{"step": step, "weights": found} for step, found in weights.items()]
    path = folder / f"{preset}.toml"
    path.write_text(tomli_w.dumps({**table, "mixture": {"schedule": schedule}}))
    return str(path)


@pytest.mark.parametrize("preset", NAMES)
def test_resumed_run_is_bit_equal(preset, sample_stream, tmp_path):
    """With accumulation, a schedule of the mixture, and noise on routers, if there are any."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--checkpoint.keep", "0", "--rows.accumulate", "2", "--data", *[str(sample_stream)] * 2]
    if "moma" in preset:
        more += ["--model.router-noise", "1.0"]
    preset = scheduled(preset, tmp_path)
    Run(config(preset, sample_stream, whole, *more)).train()
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-6")
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')  # as a killed run leaves it
    Run(config(preset, sample_stream, cut, *more)).train()
    assert json.loads((cut / "resumed.jsonl").read_text())["step"] == 4
    assert [line["step"] for line in lines(whole)] == [2, 3, 4, 6]
    assert lines(cut) == lines(whole)
    expected, found = weights(whole), weights(cut)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_accumulated_micro_batches_equal_one_batch(sample_stream, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    Run(config("dense", sample_stream, one, "--rows.batch-size", "4")).train()
    Run(config("dense", sample_stream, two, "--rows.accumulate", "2")).train()
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["tokens"] == b["tokens"]


def test_a_run_that_was_not_checkpointed_starts_anew(sample_stream, tmp_path):
    run = tmp_path / "run"
    Run(config("dense", sample_stream, run)).train()
    expected = lines(run)
    shutil.rmtree(run / "checkpoints")
    Run(config("dense", sample_stream, run)).train()
    assert lines(run) == expected


def test_a_resumed_run_may_be_given_other_weights(sample_stream, tmp_path):
    out, twice = tmp_path / "run", ("--data", str(sample_stream), str(sample_stream))
    Run(
        config("dense", sample_stream, out, *twice, "--mixture.weights", "3", "1", "--steps", "4")
    ).train()
    Run(config("dense", sample_stream, out, *twice, "--mixture.weights", "1", "3")).train()
    state = json.loads((newest_checkpoint(out) / "state.json").read_text())
    fingerprint = json.loads(state["loader"]["fingerprint"])
    assert fingerprint["weights"] == [[0, [3.0, 1.0]], [8, [1.0, 3.0]]]


def test_a_schedule_and_shares_in_the_run_file(sample_stream, tmp_path):
    path = tmp_path / "run.toml"
    table = {
        "data": [str(sample_stream)] * 2,
        "mixture": {
            "schedule": [
                {"step": 0, "weights": [1, 0]},
                {"step": 3, "weights": [1, 2]},
            ]
        },
    }
    path.write_text(tomli_w.dumps(table))
    rows = Run(read_config([str(path), "--out", str(tmp_path / "out")])).loader.rows
    assert rows.epochs(3 * 8)[1] == 0 < rows.epochs(4 * 8)[1]
    again = tmp_path / "again.toml"
    again.write_text(to_toml(read_config([str(path), "--out", "x"])))
    assert read_config([str(again)]).mixture == read_config([str(path)]).mixture
    again.write_text("")
    wanted = [
        "--data",
        str(sample_stream),
        "--out",
        "x",
        "--mixture.shares",
        "text",
        "0.5",
        "image",
        "0.2",
        "speech",
        "0.2",
        "bytes",
        "0.1",
    ]
    with pytest.raises(ConfigError, match="cannot be mixed from these streams"):
        Run(read_config([str(again), *wanted]))


def test_a_run_ends_where_a_stream_is_exhausted(sample_stream, tmp_path, capsys):
    stop = ("--mixture.exhausted", "stop", "--rows.seq-len", "2048", "--rows.batch-size", "4")
    run = Run(config("dense", sample_stream, tmp_path / "run", *stop, "--steps", "1000"))
    rows = len(run.loader.rows)
    run.train()
    assert run.step == rows // 4 < 1000
    assert f"ends at step {rows // 4} of 1000" in capsys.readouterr().out


def test_another_configuration_is_refused(sample_stream, tmp_path):
    Run(config("dense", sample_stream, tmp_path / "run")).train()
    with pytest.raises(ResumeError, match=r"optimizer\.lr was .* now 0\.5"):
        Run(config("dense", sample_stream, tmp_path / "run", "--optimizer.lr", "0.5")).train()


def test_a_finished_run_can_be_trained_further(sample_stream, tmp_path):
    run = tmp_path / "run"
    Run(config("dense", sample_stream, run)).train()
    Run(config("dense", sample_stream, run, "--steps", "8")).train()
    assert [line["step"] for line in lines(run)][-1] == 8


def test_validation_on_a_stream_of_its_own(sample_stream, tmp_path):
    """All documents of the data are trained on, all of the other stream are validated on."""
    one = Run(config("dense", sample_stream, tmp_path / "run", "--validation.share", "0"))
    words = ["--validation.data", str(sample_stream)]
    both = Run(config("dense", sample_stream, tmp_path / "run", *words))
    assert both.loader.rows.fingerprint == one.loader.rows.fingerprint
    assert both._rows("validation").fingerprint == one.loader.rows.fingerprint
    both.train()
    assert sum("validation/loss" in line for line in lines(tmp_path / "run")) == 2


def test_metrics_have_the_promised_keys(sample_stream, tmp_path):
    Run(config("mot", sample_stream, tmp_path / "run", "--log.tensorboard")).train()
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    promised = {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "data_wait", "fill"}
    promised |= {"flops_per_s", "mfu"}
    by_modality = {f"loss/{m}" for m in ("text", "image", "speech", "bytes")}
    assert promised | by_modality | {"validation/loss"} <= set(last)
    assert 0 < last["fill"] <= 1
    assert 0 < last["mfu"] < 2
    assert any((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dense"], "no data"),
        (["dence", "--data", "x"], "the presets are dense"),
        (["dense", "--data", "STREAM"], "no output"),
        (["dense", "--data", "nowhere", "--out", "run"], "nowhere"),
        (["dense", "--data", "STREAM", "--out", "run", "--steps", "0"], "steps: should be at"),
        (["dense", "--data", "STREAM", "--out", "run", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_use_says_what_to_do(words, message, sample_stream, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(sample_stream) if w == "STREAM" else w for w in words]
    assert cli.main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_unknown_key_in_a_file_names_the_nearest(tmp_path):
    (tmp_path / "run.toml").write_text("[optimizer]\nlearning_rat = 1.0\nclipp = 2.0\n")
    with pytest.raises(ConfigError, match=r"optimizer: unknown key 'learning_rat'"):
        read_config([str(tmp_path / "run.toml")])


def test_dry_run_prints_sizes_and_writes_nothing(sample_stream, tmp_path, capsys):
    words = ["mot", "--data", str(sample_stream), "--out", str(tmp_path / "run"), "--dry-run"]
    assert cli.main(["train", *words]) == 0
    assert "FLOPs a token" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
