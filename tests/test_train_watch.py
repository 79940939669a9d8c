"""What is seen of a run, and the guard: nothing of a bad batch stays, its documents are named."""

import contextlib
import dataclasses
import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from plait.models.checkpoint import newest_checkpoint
from plait.models.training.guard import Guard, GuardConfig
from plait.models.training.norms import norms
from plait.models.training.run_config import PRESETS, RunConfig, read_config
from plait.pipeline import cli
from plait.pipeline.meters import progress_line, time_of_day
from plait.pipeline.rows import Rows
from plait.pipeline.stream import Stream
from plait.tokenizers.errors import ConfigError, PlaitError
from plait.train import Run

from .runs import lines, read_lines

NAMES = sorted(p.stem for p in PRESETS.glob("*.toml"))
SMALL = [
    *("--model.dim", "32", "--model.n-heads", "2", "--rows.seq-len", "128"),
    *("--rows.batch-size", "2", "--steps", "4", "--log.every", "1", "--validation.share", "0"),
    *("--device", "cpu", "--checkpoint.keep", "0"),
]


def config(preset: str, stream: Path, out: Path, *more: str) -> RunConfig:
    return read_config([preset, "--data", str(stream), "--out", str(out), *SMALL, *more])


def state(run: Run) -> dict[str, torch.Tensor]:
    found = {**run.model.state_dict(), **run.optimizer.state_tensors()}
    return {name: tensor.clone() for name, tensor in found.items()}


@pytest.fixture
def poison(monkeypatch):
    """Have the embeddings be NaN, or the loss so many times larger, in some training batches."""

    def put(batches: range, times: float | None = None) -> None:
        plain = Run._losses

        def losses(self, batch, plan, *, leaking=False):
            bad = self.model.training and batch.step in batches
            kept = self.model.embedding.data
            if bad and times is None:
                self.model.embedding.data = torch.full_like(kept, torch.nan)
            found = plain(self, batch, plan, leaking=leaking)
            self.model.embedding.data = kept
            if bad and times is not None:
                return dataclasses.replace(found, sum_M=found.sum_M * times)
            return found

        monkeypatch.setattr(Run, "_losses", losses)

    return put


@pytest.mark.parametrize("preset", NAMES)
def test_nothing_stays_of_a_batch_that_is_not_finite(preset, sample_stream, tmp_path, poison):
    poison(range(1, 2))
    run = Run(config(preset, sample_stream, tmp_path))
    with contextlib.closing(iter(run.loader)) as batches:
        run._train_step(batches)
        before = state(run)
        run._train_step(batches)
        after = state(run)
        run._train_step(batches)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    moved = state(run)
    assert not torch.equal(moved["head"], after["head"])
    assert all(tensor.isfinite().all() for tensor in moved.values())
    (line,) = read_lines(tmp_path / "skipped.jsonl")
    assert line["step"] == 2
    assert line["reason"].startswith("the loss of ")
    assert run.step == 3


def test_a_skipped_batch_names_its_documents(sample_stream, tmp_path, poison, capsys):
    """Of two micro-batches the one at fault, with the keys of its own documents alone."""
    poison(range(3, 4))
    run = Run(config("dense", sample_stream, tmp_path, "--rows.accumulate", "2"))
    run.train()
    (line,) = read_lines(tmp_path / "skipped.jsonl")
    assert (line["step"], line["micro_batches"]) == (2, [1])
    stream = Stream(sample_stream)
    expected = [
        stream.document(d).key for row in (6, 7) for _, d in run.loader.rows.documents_of(row)
    ]
    assert [d["key"] for d in line["documents"]] == expected
    assert {d["shard"] for d in line["documents"]} <= {s.name for s in stream.shards}
    out = capsys.readouterr().out
    assert "step 2: skipped, the loss of" in out
    assert "  skipped 1  " in out.splitlines()[-3]
    skipped = lines(tmp_path)[1]
    assert (skipped["loss"], skipped["grad_norm"], skipped["skipped"]) == (None, None, 1)
    assert lines(tmp_path)[-1]["skipped"] == 1


def test_bad_batches_in_a_row_end_the_run(sample_stream, tmp_path, poison, capsys):
    poison(range(2, 99))
    words = ["--steps", "30", "--checkpoint.every", "2", "--guard.in-a-row", "3"]
    run = Run(config("dense", sample_stream, tmp_path, *words))
    with pytest.raises(PlaitError, match="step 5: 3 batches in a row were skipped") as error:
        run.train()
    found = read_lines(tmp_path / "skipped.jsonl")
    assert [line["step"] for line in found] == [3, 4, 5]
    assert found[-1]["documents"][0]["key"] in str(error.value)
    assert "lower --optimizer.lr" in str(error.value)
    assert cli.main(["train", *_words(sample_stream, tmp_path, words)]) != 0
    assert [line["step"] for line in read_lines(tmp_path / "skipped.jsonl")] == [3, 4, 5]
    assert "3 batches in a row" in capsys.readouterr().err


def _words(stream: Path, out: Path, more: list[str]) -> list[str]:
    return ["dense", "--data", str(stream), "--out", str(out), *SMALL, *more]


def test_a_spike_is_skipped_and_a_resumed_run_judges_alike(sample_stream, tmp_path, poison):
    """Resumed inside the guard's window, and inside one of metrics, before and after a skip."""
    poison(range(9, 10), times=99.0)
    words = ["--steps", "12", "--checkpoint.every", "1", "--guard.window", "8", "--log.every", "5"]
    words += ["--guard.deviations", "100"]
    whole = tmp_path / "whole"
    Run(config("moma", sample_stream, whole, *words)).train()
    (line,) = read_lines(whole / "skipped.jsonl")
    assert line["step"] == 10
    assert "deviations over its median" in line["reason"]
    assert {d["row"] for d in line["documents"]} == {18, 19}
    for at in (7, 11):
        cut = tmp_path / f"cut-{at}"
        shutil.copytree(whole, cut)
        for step in range(at + 1, 13):
            shutil.rmtree(cut / "checkpoints" / f"step-{step}")
        Run(config("moma", sample_stream, cut, *words)).train()
        assert lines(cut) == lines(whole)
        assert read_lines(cut / "skipped.jsonl") == [line]
        assert _saved(cut).keys() == _saved(whole).keys()
        assert all(torch.equal(tensor, _saved(cut)[k]) for k, tensor in _saved(whole).items())


def _saved(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(run)
    assert newest is not None
    return load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")


def judge(guard: Guard, loss: float, norm: float = 1.0, *, image: float = 2.0, n: int = 100):
    return guard.judge([[100 * loss, n * image]], [[100, n]], norm)


def taught(steps: int = 64, **config: float) -> Guard:
    guard = Guard(GuardConfig(**config), ("text", "image"))
    noise = torch.randn(steps, 3, generator=torch.Generator().manual_seed(0))
    for a, b, c in noise.tolist():
        assert (
            judge(guard, 3 + 0.1 * a, float(torch.tensor(0.2 * b).exp()), image=2 + 0.1 * c) is None
        )
    return guard


def test_what_is_a_spike():
    assert "loss of text 9" in judge(taught(), 9.0).reason
    assert judge(taught(deviations=0.0), 9.0) is None
    assert judge(taught(63), 9.0) is None  # the window is too short to judge by
    assert judge(taught(), 3.3, 2.0) is None
    assert judge(taught(), 3.0, 40.0).reason.startswith("the gradient norm 40 is")
    assert judge(taught(), 0.1, 1e-3) is None  # only what is too large
    assert judge(taught(), 3.0, image=3.9).reason.startswith("the loss of image 3.9 is")
    rare = taught()
    rare.window["gradient norm"][5] = (float(torch.tensor(30.0).log()), 1.0)
    assert judge(rare, 3.0, 40.0) is None  # such norms there were
    assert judge(taught(), 3.0, image=3.9, n=4) is None  # a mean of few targets may be far off
    assert judge(taught(), 3.0, float("inf")).reason == "the gradient norm is inf"


def test_the_micro_batch_at_fault_is_told():
    sums, counts = [[300.0, 200.0], [300.0, 900.0]], [[100, 100], [100, 100]]
    assert taught().judge(sums, counts, 1.0).batches == (1,)
    assert taught().judge([sums[0], sums[0]], counts, 99.0).batches == (0, 1)
    sums[0][1] = float("nan")
    fault = taught().judge(sums, counts, 1.0)
    assert (fault.batches, fault.reason) == ((0,), "the loss of image is nan")


def test_a_guard_that_was_saved_is_the_same():
    guard = taught(70)
    guard.skip(70)
    again = Guard(guard.config, guard.modalities, **json.loads(json.dumps(guard.state())))
    for loss, norm in ((3.1, 1.0), (4.1, 1.0), (4.3, 1.0), (4.6, 1.0), (3.0, 12.0), (3.0, 9.0)):
        assert judge(guard, loss, norm) == judge(again, loss, norm)
    assert json.dumps(guard.state()) == json.dumps(again.state())


def test_too_many_of_a_hundred_end_a_run():
    guard = Guard(GuardConfig(in_a_row=0, of_100=3), ("text",))
    assert [guard.skip(step) for step in (1, 50, 101, 150)] == [None] * 4
    assert guard.skip(151) == "3 batches of 100 were skipped"
    assert guard.total == 5


def test_norms_by_part_add_up(sample_stream, tmp_path):
    run = Run(config("mot", sample_stream, tmp_path))
    run.train()
    logged = lines(tmp_path)
    parts = ("embedding", "head", "norm", "attention", "ffn")
    for line in logged:
        whole = sum(line[f"grad_norm/{part}"] ** 2 for part in parts) ** 0.5
        assert whole == pytest.approx(line["grad_norm"], rel=1e-4)
        for part in ("attention", "ffn"):  # untied throughout
            slices = [line[f"weight_norm/{part}/{m}"] for m in run.vocabulary.modalities]
            assert line[f"weight_norm/{part}"] == pytest.approx(sum(x**2 for x in slices) ** 0.5)
    weights = sum(float(p.detach().square().sum()) for p in run.model.parameters())
    last = {name: float(norm) for name, norm in norms(run.model).items()}
    found = sum(last[f"weight_norm/{part}"] ** 2 for part in parts)
    assert found == pytest.approx(weights, rel=1e-5)
    assert all(logged[-1][f"rms/block_{i}"] > 0 for i in range(4))


def test_loads_of_experts_and_depth(sample_stream, tmp_path):
    run = Run(config("moma_depth", sample_stream, tmp_path, "--log.every", "2"))
    run.train()
    last = lines(tmp_path)[-1]
    present = [m for m in run.vocabulary.modalities if f"experts/load/{m}" in last]
    assert "text" in present
    for m in present:
        shares = [v for k, v in last.items() if k.startswith(f"experts/share/block_1/{m}/")]
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(1)
        assert 0 < last[f"experts/balance/{m}"] <= 1
        assert 0 <= last[f"experts/dropped/{m}"] < 1
        assert 0 <= last[f"depth/passed/{m}"] <= 1
    assert 0 < sum(last[f"depth/passed/{m}"] for m in present) < len(present)
    assert not any(k.startswith("experts/share") for k in run.watch.line(1.0, experts=False))


def test_tokens_and_epochs_of_each_stream(sample_stream, tmp_path):
    rows = Rows(
        [Stream(sample_stream)] * 2, seq_len=128, weights=[3, 1], validation=0.2, split="train"
    )
    one = Rows(Stream(sample_stream), seq_len=128, validation=0.2, split="train")
    batch = one.batch(range(len(one)))
    assert one.epoch_tokens == (int((~batch.padding_BT).sum()),)
    assert rows.epoch_tokens[0] == one.epoch_tokens[0]
    assert rows.names == ("stream_0", "stream_1")
    concat = Rows(Stream(sample_stream), seq_len=128, packing="concat")
    assert concat.epoch_tokens == (int((~concat.batch(range(len(concat))).padding_BT).sum()),)
    words = ("--data", str(sample_stream), str(sample_stream), "--mixture.weights", "3", "1")
    run = Run(config("memory", sample_stream, tmp_path, *words))
    run.train()
    last = lines(tmp_path)[-1]
    first, second = (last[f"epoch/stream_{i}"] for i in (0, 1))
    assert first == pytest.approx(3 * second) == pytest.approx(6 / run.loader.rows._plans[0].rows)
    assert last["stream_tokens/stream_0"] == round(first * run.loader.rows.epoch_tokens[0])
    assert 0 < last["memory_slots_hit"] < last["memory_slots_ever_read"] <= 1
    assert last["lr/values"] == pytest.approx(last["lr"] * 1e-2 / 3e-3)
    batch = run.loader.batch(3)
    places = [
        int(batch.position_BT[row, start])
        for row, start, _, _, document in batch.spans()
        if document >= 0 and (start == 0 or document != batch.document_BT[row, start - 1])
    ]
    assert last["cut"] == sum(place > 0 for place in places) / len(places)


class FakeTracker(SimpleNamespace):
    """The calls that wandb and trackio share, and what they got."""

    def init(self, *, project, name, config, resume, **options):
        self.began.append((project, name, resume, options))
        self.config = config
        return SimpleNamespace(log=self.take, finish=lambda: self.ended.append(name))

    def take(self, figures, *, step):
        assert all(isinstance(v, int | float) for v in figures.values())
        self.lines.append((step, figures))


def test_trackers_get_the_same_figures_once(sample_stream, tmp_path, monkeypatch):
    """Over a resumption from an older checkpoint, and the run there is the same one."""
    fakes = {name: FakeTracker(began=[], lines=[], ended=[]) for name in ("wandb", "trackio")}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    words = ["--log.wandb", "offline", "--log.trackio", "--log.tensorboard", "--log.project", "p"]
    words += ["--checkpoint.every", "2"]
    Run(config("dense", sample_stream, tmp_path / "run", *words)).train()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    Run(config("dense", sample_stream, tmp_path / "run", *words, "--steps", "5")).train()
    found = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    for fake in fakes.values():
        (project, name, resume, options), again = fake.began
        assert (project, name, resume, options) == again
        assert (project, resume, len(fake.ended)) == ("p", "allow", 2)
        assert [step for step, _ in fake.lines] == [1, 2, 3, 4, 5]
        assert fake.config["model"]["dim"] == 32
        for line, (_, figures) in zip(found, fake.lines, strict=True):
            assert figures["loss"] == pytest.approx(line["loss"], rel=1e-3)
            assert figures.keys() == {k for k, v in line.items() if v is not None} - {"step"}
    assert fakes["wandb"].began[0][3]["mode"] == "offline"
    board = _board(tmp_path / "run" / "tensorboard")
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert set(board.Tags()["scalars"]) == {k for _, f in fakes["wandb"].lines for k in f}


def _board(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(name, sample_stream, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    words = ["--log.wandb", "online"] if name == "wandb" else ["--log.trackio"]
    with pytest.raises(ConfigError, match=rf"log\.{name} needs `pip install 'plait\[{name}\]'`"):
        Run(config("dense", sample_stream, tmp_path / "run", *words)).train()


def test_a_tracker_that_cannot_be_reached_is_named(sample_stream, tmp_path, monkeypatch):
    def init(**options):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    run = Run(config("dense", sample_stream, tmp_path / "run", "--log.wandb", "online"))
    with pytest.raises(ConfigError, match=r"log\.wandb: .* no route to host; log in, work offline"):
        run.train()


def test_the_end_is_a_time_of_day():
    now = datetime(2026, 11, 30, 22, 10)
    assert time_of_day(3600, now) == "23:10"
    assert time_of_day(7200, now) == "Tue 1 Dec 00:10"
    line = {"step": 3, "loss": None, "loss/text": None, "lr": 1e-3, "grad_norm": None}
    line |= {"tokens_per_s": 10.0, "data_wait": 0.0, "left_s": 65.0, "skipped": 2, "mfu": 0.5}
    text = progress_line(line, ("text",), 100)
    assert "skipped 2" in text
    assert "left 1 min 05 s, to " in text
    assert "\n" not in text
    assert len(text) < 140


def test_inspect_shows_the_figures(sample_stream, tmp_path, poison, capsys):
    poison(range(1, 2))
    Run(config("moma_depth", sample_stream, tmp_path / "run")).train()
    capsys.readouterr()
    page = tmp_path / "run.html"
    assert cli.main(["inspect", str(tmp_path / "run"), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    for words in ("Epochs", "Gradient norm", "Experts a token", "Passed depth", "attention"):
        assert words in shown
        assert words in page.read_text()
    assert "look: Batches skipped: 1; skipped.jsonl" in shown
    assert cli.main(["inspect", str(tmp_path / "run"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert {k: v for k, v in last.items() if v is not None}.items() <= figures.items()
