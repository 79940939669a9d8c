"""benchmarks/kernels.py: what it refuses, its arithmetic, and its cases on another device."""

import dataclasses
import importlib
import logging
import sys
from pathlib import Path

import pytest
import torch

META_LACKS = ("loop", "boolean masks", "products in place", "nearest_code", "buckets")
"""Paths that ask a device for values or autocast, which meta has not; the loop is long."""


@pytest.fixture
def bench(monkeypatch):
    folder = Path(__file__).parents[2] / "benchmarks"
    for name in ("kernels", "kernel_cases"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    threads, log = torch.get_num_threads(), logging.getLogger("plait.kernels")
    module = importlib.import_module("kernels")
    assert Path(module.__file__).parent == folder
    yield module
    torch.set_num_threads(threads)
    log.setLevel(logging.NOTSET)
    for name in ("kernels", "kernel_cases"):
        del sys.modules[name]


def test_a_ratio_is_refused_without_parity(bench, capsys):
    paths = {"definition": lambda x: x * 2, "right": lambda x: x + x, "wrong": lambda x: x * 2.01}
    case = bench.Case("double", "3 x 4", paths, [torch.randn(3, 4)])
    limits = bench.Limits(bytes_per_ms=1.0, flops_per_ms=1.0)
    assert not bench._print(case, bench.timer_of("cpu", 2, 1), limits)
    right, wrong = capsys.readouterr().out.splitlines()[-2:]
    assert "ms" in right
    assert "wrong" in wrong
    assert "ms" not in wrong
    assert "differs from the definition" in wrong


def test_the_limit_is_of_bytes_or_of_operations(bench):
    x = torch.randn(3, 4)
    case = bench.Case("double", "3 x 4", {}, [x], flops=2e9)
    limits = bench.Limits(bytes_per_ms=48.0, flops_per_ms=1e9)
    assert limits.times(case, [x]) == (2, 6)  # the backward takes twice as many operations
    case = dataclasses.replace(case, flops=0)
    assert limits.times(case, [x]) == (2, 5)  # x and y; then x, dy and dx
    assert limits.times(dataclasses.replace(case, read=96), [x]) == (3, 7)


def test_cases_are_made_on_their_device(bench):
    """As on a GPU, by a device that knows shapes only: tensors of two devices do not mix."""
    for make in bench.CASES:
        case = make("meta")
        assert {x.device.type for x in case.inputs} == {"meta"}
        for path in (path for name, path in case.paths.items() if name not in META_LACKS):
            assert {x.device.type for x in bench._run(case, path)} == {"meta"}


def test_a_case_on_this_machine(bench, capsys, monkeypatch):
    monkeypatch.setattr(bench, "CASES", [c for c in bench.CASES if c.__name__ == "slots"])
    monkeypatch.setattr(sys, "argv", ["kernels.py", "product", "--device", "cpu", "--repeats", "1"])
    assert bench.main() == 0
    output = capsys.readouterr().out
    assert output.startswith("cpu: copies ")
    assert "\n  product_key_topk " in output
