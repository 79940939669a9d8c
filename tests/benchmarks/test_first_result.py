import importlib.util
import os
import subprocess
import sys

import pytest

from plait.models.training.run_config import read_config


@pytest.fixture(scope="module")
def bench(repository):
    folder = repository / "benchmarks"
    spec = importlib.util.spec_from_file_location("first_result", folder / "first_result.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["first_result"] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def test_models_cost_what_their_dense_one_costs(bench, sample_stream, tmp_path):
    options = bench.Options(data=(str(sample_stream),), out=tmp_path, tokens=41_000)
    assert options.steps == 10
    configs = {m: read_config(bench.words(options, m, 3)) for m in bench.MODELS}
    assert all(c.seed == 3 and c.steps == 10 for c in configs.values())
    assert configs["dense_mamba"].model.untie == ()
    assert configs["dense_mamba"].model.mixers == configs["mixture_of_mamba"].model.mixers
    costs = {m: bench.flops_per_step(options, m) for m in bench.MODELS}
    for sparse, dense in bench.BASE.items():
        assert costs[sparse] == pytest.approx(costs[dense], rel=0.02)


@pytest.mark.slow
def test_a_tiny_result_and_again_what_was_there(sample_stream, repository, tmp_path):
    words = ["--data", str(sample_stream), "--out", str(tmp_path / "out"), "--tokens", "3000"]
    words += ["--models", "dense", "mot", "--seeds", "0", "--parallel", "2", "--seq-len", "128"]
    words += ["--batch-size", "2", "--extra=--model.dim=32", "--extra=--validation.batches=2"]
    command = [sys.executable, str(repository / "benchmarks" / "first_result.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(repository / ".package")}
    first, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "## mot against dense" in text and "| text |" in text
    assert (tmp_path / "out" / "mot.svg").stat().st_size > 500
    assert again.returncode == 0
    assert again.stdout.count("finished already") == 2
    assert (tmp_path / "out" / "RESULTS.md").read_text() == text
