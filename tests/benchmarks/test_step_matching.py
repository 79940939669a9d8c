import importlib.util
import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from plait.models.training.run_config import PRESETS
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.tokenizers.errors import ConfigError

VOCABULARY = Vocabulary(
    tuple(
        TokenizerInfo(name=name, modality=name, vocab_size=64, fingerprint=name)
        for name in ("text", "image")
    )
)


@pytest.fixture(scope="module")
def bench(repository):
    path = repository / "benchmarks" / "step_matching.py"
    spec = importlib.util.spec_from_file_location("step_matching", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["step_matching"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder, preset: str, slopes: dict[str, float], seed: int, layers: int = 4):
    """A run whose loss in each modality is 5 / (1 + step / (100 * slope)), with a little noise."""
    folder.mkdir()
    table = (PRESETS / f"{preset}.toml").read_text().replace("n_layers = 4", f"n_layers = {layers}")
    (folder / "config.toml").write_text(f"seed = {seed % 7}\n{table}")
    (folder / "vocabulary.json").write_text(VOCABULARY.to_json())
    noise = np.random.default_rng(seed)
    lines = []
    for step in range(20, 1001, 20):
        line = {"step": step, "tokens_per_s": 1000.0 if preset == "dense" else 500.0}
        line |= {"tokens": 150 * step, "tokens/text": 100 * step, "tokens/image": 50 * step}
        for name, slope in slopes.items():
            loss = 5 / (1 + step / (100 * slope)) + noise.normal(0, 2e-4)
            line["validation/loss" if name == "all" else f"validation/loss/{name}"] = loss
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


SLOPES = {"all": 0.7, "text": 0.9, "image": 0.3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    ones = dict.fromkeys(SLOPES, 1.0)
    dense = [write_run(root / f"dense-{s}", "dense", ones, s) for s in (0, 1)]
    return dense, [write_run(root / f"mot-{s}", "mot", SLOPES, s + 7) for s in (0, 1)]


def test_slopes_of_known_curves(bench, folders):
    dense, sparse = ([bench.Run.read(path) for path in paths] for paths in folders)
    found = {r.modality: r for r in bench.compare(dense, sparse)}
    assert list(found) == ["all", "text", "image"]
    for name, slope in SLOPES.items():
        result = found[name]
        assert result.slope == pytest.approx(slope, rel=0.03)
        assert result.final == pytest.approx(slope, rel=0.03)
        assert result.slope_band[0] <= result.slope <= result.slope_band[1]
        assert result.slope_band[1] - result.slope_band[0] < 0.1 * slope
        assert result.slower == pytest.approx(2), "half the tokens a second"
        assert 0.6 * result.steps < result.matched <= result.steps
    assert bench.warnings(dense, sparse) == []


def test_a_loss_that_is_never_reached_is_not_made_up(bench, folders):
    dense, sparse = ([bench.Run.read(path) for path in paths] for paths in folders)
    found = {r.modality: r for r in bench.compare(sparse, dense)}
    assert found["image"].final is None
    assert "| image | 3.3" in bench.table([found["image"]])
    assert "| - | - | - |" in bench.table([found["image"]])
    assert found["image"].slope == pytest.approx(1 / 0.3, rel=0.03)
    assert found["image"].matched < 0.35 * found["image"].steps


def test_curves_are_smoothed_and_never_rise(bench):
    curve = bench.falling(np.array([5.0, 3.0, 4.0, 2.0]), 1)
    assert curve.tolist() == [5, 3, 3, 2]
    assert bench.falling(np.array([6.0, 3.0, 3.0, 9.0]), 3).tolist() == [4.5, 4, 4, 4]
    assert np.isnan(bench._first_step(np.array([10.0, 20.0]), np.array([3.0, 2.0]), 3.5))
    assert bench._first_step(np.array([10.0, 20.0]), np.array([3.0, 3.0]), 3.0) == 10


def test_command_draws_and_warns(bench, folders, tmp_path, capsys):
    dense, sparse = folders
    options = bench.Options(dense=tuple(dense), sparse=tuple(sparse), out=tmp_path / "a.svg")
    assert bench.main(options) == 0
    out = capsys.readouterr().out
    assert "| image | 0.3" in out and "seeds: 2 and 2" in out
    words = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert "t = s" in words and "image" in words
    more = write_run(tmp_path / "big", "mot", SLOPES, 0, layers=5)
    assert bench.main(bench.Options(dense=tuple(dense), sparse=(more,))) == 1
    assert "FLOPs a step differ by" in capsys.readouterr().err


def test_runs_that_held_out_other_documents_are_left_out(bench, folders, tmp_path):
    dense, sparse = ([bench.Run.read(path) for path in paths] for paths in folders)
    other = bench.Run.read(write_run(tmp_path / "mot-2", "mot", SLOPES, 2))
    kept = bench.comparable(dense, [*sparse, other])
    assert kept[0] == dense and kept[1] == sparse
    assert "mot-2" in kept[2][0]
    assert bench.comparable(dense, sparse)[2] == []
    with pytest.raises(ConfigError, match="the same --seed"):
        bench.comparable(dense, [other])


def test_flops_a_step_are_those_of_the_models(bench, folders):
    (run, *_), _ = folders
    from plait.models.config import ModelConfig
    from plait.models.decoder import Decoder
    from plait.models.flops import flops_per_token

    with torch.device("meta"):
        per_token = flops_per_token(Decoder(ModelConfig(), VOCABULARY), 512)
    wanted = 100 * per_token["text"] + 50 * per_token["image"]
    assert bench.Run.read(run).flops_per_step == pytest.approx(wanted)
