import doctest
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plait.kernels import choose as choose_module
from plait.kernels import compile_c
from plait.kernels.attention import AttentionLayout, attention
from plait.kernels.causal_conv import causal_conv
from plait.kernels.choose import choose
from plait.kernels.grouped_linear import grouped_linear
from plait.kernels.nearest_code import nearest_code
from plait.kernels.product_key_lookup import product_key_lookup
from plait.kernels.product_keys import product_key_topk
from plait.kernels.rms_norm import rms_norm
from plait.kernels.scan import selective_scan
from plait.kernels.step_size import step_size
from plait.kernels.value_table import weighted_bag

ROOT = Path(__file__).parents[2]
MODULES = sorted(p.stem for p in (ROOT / "kernels").glob("*.py") if not p.stem.endswith("_triton"))


def x(*shape):
    return torch.rand(*shape)


documents = torch.tensor([[0, 0, 1, -1]])
OPS = {
    "attention": lambda: attention(*(x(1, 4, 1, 2) for _ in range(3)), LAYOUT),
    "causal_conv": lambda: causal_conv(x(1, 4, 2), x(2, 3), x(2), documents),
    "grouped_linear": lambda: grouped_linear(x(3, 2), x(2, 2, 2), (1, 2)),
    "nearest_code": lambda: nearest_code(x(3, 2), x(4, 2)),
    "product_key_lookup": lambda: product_key_lookup(x(1, 1, 2, 3), x(1, 2, 4, 3), 2),
    "product_keys": lambda: product_key_topk(x(1, 1, 4), x(1, 1, 4), 2),
    "rms_norm": lambda: rms_norm(x(3, 2), x(2, 2), (1, 2), 1e-5),
    "step_size": lambda: step_size(x(3, 2), x(2, 2), (1, 2)),
    "scan": lambda: selective_scan(x(1, 4, 2), x(1, 4, 2), -x(2, 2), x(1, 4, 2), x(1, 4, 2), x(2)),
    "value_table": lambda: weighted_bag(x(4, 2), torch.zeros(2, 2).long(), x(2, 2)),
}
LAYOUT = AttentionLayout.of(documents)


@pytest.mark.parametrize("op", OPS)
def test_every_op_obeys_the_environment(op, monkeypatch):
    module = importlib.import_module(f"plait.kernels.{op}")
    calls = []
    definition = module.reference
    monkeypatch.setattr(module, "reference", lambda *a: calls.append(a) or definition(*a))
    monkeypatch.delenv("PLAIT_KERNELS", raising=False)
    OPS[op]()
    assert not calls
    monkeypatch.setenv("PLAIT_KERNELS", "reference")
    OPS[op]()
    assert len(calls) == 1


def test_the_choice_is_logged_once(caplog, monkeypatch):
    choose_module._log_once.cache_clear()
    monkeypatch.delenv("PLAIT_KERNELS", raising=False)
    with caplog.at_level(logging.INFO, "plait.kernels"):
        assert [choose("some_op", "fast"), choose("some_op", "fast")] == ["fast", "fast"]
    assert caplog.messages == ["some_op: fast"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"plait.kernels.{name}")).failed == 0


def test_importing_compiles_and_writes_nothing(tmp_path):
    imports = "; ".join(f"import plait.kernels.{name}" for name in MODULES)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / ".package"),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    code = f"{imports}; import sys; assert not {{'triton', 'torch._dynamo'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_loading_c_leaves_denormals_alone():
    for name in ("scan", "causal_conv", "value_table"):
        assert compile_c.library(name) is not None
    assert 1e-310 * 0.5 > 0
    assert float((torch.full((64,), 1e-40) * 0.5).min()) > 0


def test_a_library_is_built_once_and_again_when_its_source_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, header = tmp_path / "answer.c", tmp_path / "numbers.h"
    source.write_text("int answer(void) { return 42; }")
    compiler = compile_c._compiler()
    assert compile_c._built(source, compiler).answer() == 42
    (library,) = (tmp_path / "cache/plait/kernels").iterdir()
    first = library.stat().st_mtime_ns
    compile_c._built(source, compiler)
    assert library.stat().st_mtime_ns == first
    source.write_text("int answer(void) { return 43; }")
    assert compile_c._built(source, compiler).answer() == 43
    header.write_text("enum { NUMBER = 44 };")
    source.write_text('#include "numbers.h"\nint answer(void) { return NUMBER; }')
    assert compile_c._built(source, compiler).answer() == 44
    header.write_text("enum { NUMBER = 45 };")
    assert compile_c._built(source, compiler).answer() == 45
    assert len(list(library.parent.iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }")
    assert compile_c._built(source, compile_c._compiler()).answer() == 42
