"""Triton without a GPU: values by its interpreter, machine code by its compiler for sm_90.

The interpreter has to be asked for before triton is imported and spoils compilation in the same
process, so each half runs in a process of its own:
`TRITON_INTERPRET=1 pytest tests/kernels/test_scan_triton.py` is the first by hand.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plait.kernels.scan import reference, scan_op

from .check import check, check_op
from .test_scan import inputs

PLAIT = {"PYTHONPATH": str(Path(__file__).parents[2] / ".package")}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
pytest.importorskip("triton")


@interpreted
@pytest.mark.parametrize("sizes", [(2, 33, 40, 5), (1, 1, 1, 1), (1, 32, 65, 16)])
def test_equals_the_definition(sizes):
    tensors, reset = inputs(*sizes)
    check(lambda *x: scan_op(*x, reset, "triton")[0], lambda *x: reference(*x, reset)[0], tensors)


@interpreted
def test_the_op_holds_together():
    tensors, reset = inputs(1, 5, 3, 2)
    check_op(scan_op, (*(x.requires_grad_() for x in tensors), reset, "triton"))


@interpreted
def test_a_reset_keeps_nan_out_and_the_final_state_is_kept():
    tensors, _ = inputs(1, 40, 6, 3)
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[0, 20] = True
    expected, state = reference(*tensors, reset)
    tensors[0][:, :20] = torch.nan
    y, kept = scan_op(*tensors, reset, "triton")
    torch.testing.assert_close(y[:, 20:], expected[:, 20:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept[:, -1].transpose(1, 2), state, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="is interpreted")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


COMPILE = """
import json, pathlib, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from plait.kernels import scan_triton
tool = next(pathlib.Path(triton.__file__).parent.rglob("cuobjdump"))
facts = {}
kernels = {scan_triton.forward_kernel: scan_triton.FORWARD,
           scan_triton.backward_kernel: scan_triton.BACKWARD}
for kernel, elements in kernels.items():
    BI, BS = scan_triton.tile(16, elements)
    constants = {"BI": BI, "BS": BS, "KEPT": scan_triton.KEPT}
    types = {n: "*u8" if n == "reset_ptr" else "*fp32" if n.endswith("_ptr") else "i32"
             for n in kernel.arg_names}
    signature = {n: "constexpr" if n in constants else t for n, t in types.items()}
    attrs = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names)
             if n.endswith("_ptr") or n in ("I", "S")}
    built = triton.compile(ASTSource(kernel, signature, constants, attrs),
                           target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"]); file.flush()
        run = lambda flag: subprocess.run([tool, flag, file.name], capture_output=True, text=True,
                                          check=True).stdout
        usage, code = run("--dump-resource-usage"), run("-sass")
    facts[kernel.fn.__name__] = {
        "registers": int(re.search(r"REG:(\\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\\d+)", usage)[1]),
        "spills": len(re.findall(r"\\b(?:STL|LDL)\\b", code)),
        "instructions": len(re.findall(r"^\\s+/\\*[0-9a-f]{4,}\\*/", code, re.M)),
        "shared": built.metadata.shared,
    }
print(json.dumps(facts))
"""


@pytest.mark.skipif(INTERPRETED, reason="is interpreted")
def test_compiles_for_sm_90_without_spills(tmp_path):
    environment = {**os.environ, **PLAIT, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(facts, indent=2))
    assert set(facts) == {"forward_kernel", "backward_kernel"}
    for kernel in facts.values():
        assert kernel["spills"] == kernel["stack"] == 0
        assert kernel["shared"] <= 227 * 1024
        assert 16 <= kernel["registers"] <= 168
        assert kernel["instructions"] > 100
