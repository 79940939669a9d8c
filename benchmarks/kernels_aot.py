"""Compiles every Triton kernel for GPUs that are not there: `python benchmarks/kernels_aot.py`.

Prints a row a kernel and target: registers of a thread, spills to memory, shared memory, and
whether tensor-core instructions occur. Exits 1 where a register is spilled, shared memory exceeds
the chip's, memory is added to atomically, or a product is done without tensor cores.
`--targets sm_90` takes some of the targets, `--kernels NAME` those whose name holds the word.
Nothing of speed is in these numbers.
"""

import argparse
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from plait.kernels import (
    attention_triton,
    causal_conv_triton,
    grouped_linear_triton,
    nearest_code_triton,
    patch_pool_triton,
    product_keys,
    product_keys_triton,
    rms_norm,
    rms_norm_triton,
    scan_triton,
    value_table,
    value_table_triton,
)

KIB = 1024
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * KIB),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * KIB),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * KIB),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * KIB),
}
"""Each with the shared memory that one of its blocks can have."""
ATOMICS = r"\b(?:ATOM|ATOMG|RED)\b|_atomic_"
PRODUCTS = r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA)\b|v_mfma_"
LAUNCH = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Case:
    """One kernel as its wrapper starts it."""

    name: str
    kernel: triton.JITFunction
    constants: dict
    """With how it is launched, and strides of 1."""
    bfloat16: tuple[str, ...] = ()
    """Pointers to it; the others are to float32, or as `types` says."""
    types: dict[str, str] = field(default_factory=dict)
    whole: str = ""
    """Numbers that are multiples of 16."""
    product: bool = False
    hip: dict = field(default_factory=dict)
    """Constants that are others on AMD's."""


@dataclass(frozen=True)
class Facts:
    """What the compiler made of it."""

    registers: int
    spills: int
    shared: int
    products: int
    atomics: int
    seconds: float


def cases() -> list[Case]:
    """All Triton kernels, at the sizes that need most."""
    found = []
    for name, kernel, elements in (
        ("scan", scan_triton.forward_kernel, scan_triton.FORWARD),
        ("scan backward", scan_triton.backward_kernel, scan_triton.BACKWARD),
    ):
        BI, BS = scan_triton.tile(16, elements)
        sizes = {"BI": BI, "BS": BS, "KEPT": scan_triton.KEPT}
        found.append(Case(name, kernel, sizes, types={"reset_ptr": "*u8"}, whole="I S"))
    nearest = nearest_code_triton
    types = {"code_ptr": "*i64"}
    found.append(Case("nearest code", nearest.nearest_kernel, nearest.TILE, (), types, "K D"))
    found += attention_cases() + linear_cases() + conv_cases() + norm_cases()
    return found + table_cases() + pool_cases() + key_cases()


def attention_cases() -> list[Case]:
    """Both tiles of each precision, rows in an order of their own; gfx942 has one of float32."""
    module, strides = attention_triton, "q_n q_h k_n k_h v_n v_h"
    half = ("q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "dq_ptr", "dk_ptr", "dv_ptr")
    types = {"tile_ptr": "*i32", "row_ptr": "*i64", "scale": "fp32"}
    kernels = {
        "forward": module.forward_kernel,
        "queries": module.queries_kernel,
        "keys": module.keys_kernel,
    }
    found = []
    words = {"bf16": "", "tf32": " tf32", "tf32x3": " fp32"}
    for size, products in itertools.product((64, 128), words):
        for kind, kernel in kernels.items():
            name = f"attention {kind[0]} {size}{words[products]}"
            pointers, order = (half if products == "bf16" else ()), {"SORTED": True}
            sizes = module.blocks(kind, products, size) | order
            hip = {} if products == "bf16" else module.blocks(kind, "ieee", size)
            found.append(Case(name, kernel, sizes, pointers, types, strides, True, hip))
    return found


def linear_cases() -> list[Case]:
    """bfloat16 and tf32, where tensor cores have to be used, widths of any size, exact float32."""
    module, ends = grouped_linear_triton, {"ends_ptr": "*i32"}
    half = ("x_ptr", "w_ptr", "bias_ptr", "y_ptr", "dy_ptr", "dw_ptr")
    bf16, fp32, rows, weight = (
        torch.bfloat16,
        torch.float32,
        module.rows_kernel,
        module.weight_kernel,
    )
    sizes, odd = ({"BM": 64, "BIAS": True} | module.blocks(bf16, size) for size in (16, 3))
    by_o, by_i = "I O w_m w_o", "I O w_m w_i"
    exact = {"BM": 64, "BIAS": True, "w_i": 1} | module.blocks(fp32)
    tf32 = exact | {"BI": 32, "PRECISION": "tf32"}
    tf32_weight = module.weight_blocks(fp32) | {"BN": 32, "PRECISION": "tf32"}
    return [
        Case("linear", rows, sizes | {"w_i": 1}, half, ends, by_o, True),
        Case("linear rows", rows, sizes | {"w_o": 1}, half, ends, by_i, True),
        Case("linear weight", weight, module.weight_blocks(bf16, 16), half, ends, "I O", True),
        Case("linear odd", rows, odd | {"w_i": 1}, half, ends, "", True),
        Case("linear odd rows", rows, odd | {"w_o": 1}, half, ends, "", True),
        Case("linear odd weight", weight, module.weight_blocks(bf16, 3), half, ends, "", True),
        Case("linear tf32", rows, tf32, (), ends, "", True),
        Case("linear tf32 weight", weight, tf32_weight, (), ends, "", True),
        Case("linear float32", rows, exact, (), ends, by_o),
        Case("linear float32 weight", weight, module.weight_blocks(fp32), (), ends, "I O"),
    ]


def conv_cases() -> list[Case]:
    """Four taps, as Mamba has."""
    module, types = causal_conv_triton, {"document_ptr": "*i32"}
    half = ("x_ptr", "w_ptr", "bias_ptr", "y_ptr", "dy_ptr", "dx_ptr")
    sizes = module.TILE | {"K": 4}
    return [
        Case("conv", module.forward_kernel, sizes, half, types, "I"),
        Case("conv backward", module.backward_kernel, sizes, half, types, "I"),
    ]


def norm_cases() -> list[Case]:
    """The widest row and a head's."""
    module, types = rms_norm_triton, {"ends_ptr": "*i32", "eps": "fp32"}
    half = ("x_ptr", "w_ptr", "y_ptr", "dy_ptr", "dx_ptr")
    found = []
    for dim in (rms_norm.WIDEST, 64):
        sizes = module.blocks(dim) | {"BM": 4}
        found += [
            Case(f"norm {dim}", module.forward_kernel, sizes, half, types, "D"),
            Case(f"norm {dim} backward", module.backward_kernel, sizes, half, types, "D"),
        ]
    return found


def table_cases() -> list[Case]:
    """Rows of the width of a memory layer; Adam for the widest."""
    module, numbers = value_table_triton, ("scale", "left1")
    types = dict.fromkeys(("order_ptr", "first_ptr", "row_ptr"), "*i64")
    types |= dict.fromkeys(numbers, "fp32")
    half, sizes = ("dy_ptr", "weight_ptr", "values_ptr"), module.blocks(1024)
    widest = module.blocks(value_table.WIDEST)
    gradients, squares = sizes | {"SQUARES": False}, sizes | {"SQUARES": True}
    return [
        Case("rows", module.gradients_kernel, gradients, (*half, "out_ptr"), types, "D"),
        Case("rows squares", module.gradients_kernel, squares, half, types, "D"),
        Case("rows adam", module.adam_kernel, widest, half, types, "D"),
    ]


def pool_cases() -> list[Case]:
    """Maxima, which do more than means."""
    module, types = patch_pool_triton, {"first_ptr": "*i64"}
    half, sizes = ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), module.TILE | {"MEAN": False}
    return [
        Case("patch pool", module.forward_kernel, sizes, half, types, "D"),
        Case("patch pool backward", module.backward_kernel, sizes, half, types, "D"),
    ]


def key_cases() -> list[Case]:
    """A million slots of lists side by side, and the most half keys and picks."""
    module, types = product_keys_triton, {"slot_ptr": "*i64"}
    half = ("first_ptr", "second_ptr", "score_ptr", "dy_ptr", "dfirst_ptr", "dsecond_ptr")
    usual, most = (1024, 32), (product_keys.WIDEST, product_keys.MOST)
    whole, gradient = "n k first_N first_H second_N second_H", module.gradient_blocks(most[1])
    return [
        Case("keys", module.best_kernel, module.blocks(*usual), half, types, whole),
        Case("keys most", module.best_kernel, module.blocks(*most), (), types),
        Case("keys backward", module.gradient_kernel, gradient, half, types, "n k"),
    ]


def compiled(case: Case, target: GPUTarget) -> Facts:
    """Compile one kernel for one target, and read what came out."""
    start = time.perf_counter()
    names, whole = case.kernel.arg_names, case.whole.split()
    given = case.constants | (case.hip if target.backend == "hip" else {})
    constants = {k: v for k, v in given.items() if k not in LAUNCH}
    signature = {n: "constexpr" if n in constants else _type(case, n) for n in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in constants and (n.endswith("_ptr") or n in whole)
    }
    options = {k: v for k, v in given.items() if k in LAUNCH}
    source = ASTSource(case.kernel, signature, constants, attributes)
    built = triton.compile(source, target=target, options=options)
    registers, spills, code = _code(built, target)
    products, atomics = (len(re.findall(pattern, code)) for pattern in (PRODUCTS, ATOMICS))
    seconds = time.perf_counter() - start
    return Facts(registers, spills, built.metadata.shared, products, atomics, seconds)


def faults(case: Case, facts: Facts, limit: int) -> list[str]:
    """What is wrong with it, for a chip with so much shared memory."""
    found = [f"{facts.spills} spills"] if facts.spills else []
    found += [f"{facts.atomics} atomics"] if facts.atomics else []
    found += [f"{facts.shared} bytes of shared memory"] if facts.shared > limit else []
    return found + (["no tensor cores"] if case.product and not facts.products else [])


def _type(case: Case, name: str) -> str:
    if name in case.types:
        return case.types[name]
    if not name.endswith("_ptr"):
        return "i32"
    return "*bf16" if name in case.bfloat16 else "*fp32"


def _code(built, target: GPUTarget) -> tuple[int, int, str]:
    """Registers of a thread, instructions that spill, and the machine code as text."""
    if target.backend == "hip":
        code = built.asm["amdgcn"]
        spills = re.findall(r"\.[vs]gpr_spill_count:\s*(\d+)", code)
        return int(re.search(r"\.vgpr_count:\s*(\d+)", code)[1]), sum(map(int, spills)), code
    tools = triton.knobs.nvidia
    commands = (  # without the flow of data: a third less time
        [tools.cuobjdump.path, "--dump-resource-usage"],
        [tools.nvdisasm.path, "--print-code", "--no-dataflow"],
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    return int(re.search(r"REG:(\d+)", usage)[1]), spills, code


def main(words: list[str] | None = None) -> int:
    """Print the table; 1 if something is wrong with a kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kernels", default="")
    options = parser.parse_args(words)
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # the same code, a tenth sooner
    print("kernel                target  registers  spills  shared KiB  tensor cores  seconds")
    names = [case.name for case in cases() if options.kernels in case.name]
    pairs = list(itertools.product(names, options.targets))
    wrong = 0
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        for row, found in pool.map(_row, *zip(*pairs, strict=True)):
            wrong += bool(found)
            print(row + "  WRONG: " * bool(found) + ", ".join(found), flush=True)
    return int(wrong > 0)


def _row(kernel: str, name: str) -> tuple[str, list[str]]:
    """A row of the table, and its faults; a kernel travels to another process as its name."""
    (case,) = (case for case in cases() if case.name == kernel)
    target, limit = TARGETS[name]
    facts = compiled(case, target)
    row = f"{case.name:21} {name:7} {facts.registers:9} {facts.spills:7} "
    row += f"{facts.shared / KIB:11.1f} {facts.products:13} {facts.seconds:8.1f}"
    return row, faults(case, facts, limit)


if __name__ == "__main__":
    sys.exit(main())
