"""The checks find what they are for: kernels with a fault on purpose."""

import dataclasses
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .triton_checks import compiled, fenced, interpreted, run_interpreted

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def copy_kernel(x_ptr, y_ptr, N, read: tl.constexpr, write: tl.constexpr):
    n = tl.arange(0, 32)
    x = tl.load(x_ptr + n, mask=n < N + read, other=0.0)
    tl.store(y_ptr + n, tl.where(n < N, x, 0.0), mask=n < N + write)


@triton.jit
def double_kernel(x_ptr, y_ptr, CONVERT: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, 16))
    if CONVERT:
        x = x.to(tl.float32)
    tl.store(y_ptr + tl.arange(0, 16), (x + x).to(y_ptr.dtype.element_ty))


@triton.jit
def product_kernel(x_ptr, y_ptr):
    n = tl.arange(0, 16)
    x = tl.load(x_ptr + n[:, None] * 16 + n[None, :])
    tl.store(y_ptr + n[:, None] * 16 + n[None, :], tl.dot(x, x).to(tl.bfloat16))


@interpreted
@pytest.mark.parametrize(("read", "write"), [(0, 0), (1, 0), (0, 1)])
def test_a_stray_read_or_write_is_found_even_where_its_value_is_not_used(read, write):
    x, y = fenced(torch.randn(20)), fenced(torch.zeros(20))
    if read or write:
        with pytest.raises(Exception, match="outside of its tensors, 1 lanes"):
            copy_kernel[(1,)](x, y, 20, read, write)
    else:
        copy_kernel[(1,)](x, y, 20, read, write)
        assert torch.equal(x, y)


@interpreted
def test_bfloat16_is_rounded_multiplied_and_never_added_as_bits():
    x = fenced(torch.randn(16, 16).bfloat16())
    y = torch.empty_like(x)
    double_kernel[(1,)](x, y, True)
    assert torch.equal(y[0], x[0] * 2)
    product_kernel[(1,)](x, y)
    torch.testing.assert_close(y.float(), x.float() @ x.float(), rtol=2**-8, atol=1e-6)
    with pytest.raises(Exception, match="convert it first"):
        double_kernel[(1,)](x, y, False)


@compiled
@pytest.mark.slow
def test_every_triton_kernel_in_the_interpreter():
    """The tests of kernels in one process; each file says of its own what it checks."""
    folder = Path(__file__).parent
    output = run_interpreted(*map(str, sorted(folder.glob("test_*triton*.py"))))
    passed = int(re.search(r"(\d+) passed", output)[1])
    assert passed > 20


@compiled
@pytest.mark.slow
def test_every_triton_kernel_ahead_of_time(repository, tmp_path):
    """No spills, shared memory within the chip, tensor cores where a product is."""
    package = str(repository / ".package")
    done = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "kernels_aot.py")],
        env={**os.environ, "PYTHONPATH": package, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = {line[:21].strip() for line in done.stdout.splitlines()[1:]}
    assert len(done.stdout.splitlines()) == 1 + 4 * len(kernels)
    assert "WRONG" not in done.stdout


@pytest.fixture(scope="module")
def table(repository):
    """benchmarks/kernels_aot.py."""
    path = repository / "benchmarks" / "kernels_aot.py"
    spec = importlib.util.spec_from_file_location("kernels_ahead_of_time", path)
    module = sys.modules["kernels_ahead_of_time"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@compiled
def test_no_kernel_is_left_out(repository, table):
    """Every kernel of a `*_triton.py` stands in the table of what is compiled."""
    kernels = set()
    for file in (repository / "kernels").glob("*_triton.py"):
        module = importlib.import_module(f"plait.kernels.{file.stem}")
        kernels |= {value for name, value in vars(module).items() if name.endswith("_kernel")}
    assert kernels == {case.kernel for case in table.cases()}


@compiled
def test_the_table_finds_what_is_wrong(table):
    """A tile beyond the registers; a product without tensor cores; one chip's memory on another."""
    target, limit = table.TARGETS["sm_90"]
    cases = {case.name: case for case in table.linear_cases()}
    half, exact = cases["linear"], cases["linear float32"]
    large = dataclasses.replace(half, constants=half.constants | {"BN": 256, "BO": 256})
    facts = table.compiled(large, target)
    assert "spills" in table.faults(large, facts, limit)[0]
    exact = dataclasses.replace(exact, product=True)
    assert table.faults(exact, table.compiled(exact, target), limit) == ["no tensor cores"]
    facts = table.compiled(half, target)
    assert table.faults(half, facts, limit) == []
    assert "shared memory" in table.faults(half, facts, table.TARGETS["gfx942"][1])[0]
