"""Times each kernel's definition and paths at one realistic size: `python benchmarks/kernels.py`.

Prints median milliseconds of processor time on one thread, forward and forward with backward, and
how many times faster than the definition each path is. A path whose values or gradients differ from
the definition gets no ratio, and the exit code is 1. `--threads N` uses more threads and measures
elapsed time; only on a quiet machine does that mean anything.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.kernels import (
    attention,
    causal_conv,
    grouped_linear,
    nearest_code,
    product_keys,
    scan,
    scan_c,
    value_table,
)

Path = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One op at one size; the first path is the definition."""

    name: str
    size: str
    paths: dict[str, Path]
    inputs: Sequence[Tensor]
    """Floating-point inputs get gradients, unless the op has none."""
    gradients: bool = True
    tolerance: float = 1e-4


def nearest_codes() -> Case:
    """Image and speech tokenizers' quantization."""
    x_ND, codebook_KD = torch.randn(1024, 64), torch.randn(4096, 64)

    def product(x_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        return torch.addmm(codebook_KD.square().sum(1), x_ND, codebook_KD.T, alpha=-2).argmin(1)

    paths = {
        "float64 distances": nearest_code.reference,
        "one float32 product": product,
        "chunked": nearest_code.nearest_code,
    }
    return Case("nearest_code", "1024 x 4096 x 64", paths, (x_ND, codebook_KD), gradients=False)


def documents() -> Case:
    """Two rows of four documents each."""
    document_BT = (torch.arange(1024) // 256).repeat(2, 1)
    layout = attention.AttentionLayout.of(document_BT)
    mask_B1TT = (document_BT[:, :, None] == document_BT[:, None]).tril()[:, None]

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, attn_mask=mask_B1TT).transpose(1, 2)

    paths = {
        "dense mask, softmax": lambda q, k, v: attention.reference(q, k, v, document_BT),
        "dense mask, sdpa": dense,
        "buckets": lambda q, k, v: attention.attention(q, k, v, layout),
    }
    qkv = [torch.randn(2, 1024, 8, 64) for _ in range(3)]
    return Case("attention", "2 x 1024, 8 heads of 64, 4 documents", paths, qkv)


def grouped() -> Case:
    """A feed-forward's first projection for three modalities."""
    counts, modality_N = (
        (1024, 768, 256),
        torch.arange(3).repeat_interleave(torch.tensor([1024, 768, 256])),
    )

    def masks(x_ND: Tensor, w_MOD: Tensor) -> Tensor:
        y_NO = x_ND.new_zeros(len(x_ND), w_MOD.shape[1])
        for m, w_OD in enumerate(w_MOD):
            y_NO[modality_N == m] = x_ND[modality_N == m] @ w_OD.T
        return y_NO

    paths = {
        "split, linear, cat": lambda x, w: grouped_linear.reference(x, w, counts),
        "boolean masks": masks,
        "products in place": lambda x, w: grouped_linear.grouped_linear(x, w, counts),
        "one weight (the limit)": lambda x, w: grouped_linear.grouped_linear(x, w[:1], (2048,)),
    }
    inputs = (torch.randn(2048, 512), torch.randn(3, 1024, 512))
    return Case("grouped_linear", "2048 x 512 x 1024, 3 modalities", paths, inputs)


def convolution() -> Case:
    """A Mamba block's convolution."""
    document_BT = (torch.arange(1024) // 300).repeat(2, 1)
    paths = {
        "shifts": lambda x, w, b: causal_conv.reference(x, w, b, document_BT),
        "causal_conv": lambda x, w, b: causal_conv.causal_conv(x, w, b, document_BT),
    }
    inputs = (torch.randn(2, 1024, 1024), torch.randn(1024, 4), torch.randn(1024))
    return Case("causal_conv", "2 x 1024 x 1024, 4 taps", paths, inputs)


def scans() -> Case:
    """A Mamba block's scan."""
    B, T, I, S = 2, 1024, 512, 16
    reset_BT = torch.rand(B, T) < 0.01
    paths = {
        "loop": lambda u, dt, A, B, C, D: scan.reference(u, dt, A, B, C, D, reset_BT)[0],
        "chunked": lambda *x: scan.scan_op(*x, reset_BT, "chunked")[0],
    }
    if scan_c.available():
        paths["c"] = lambda *x: scan.scan_op(*x, reset_BT, "c")[0]
    dt_BTI = F.softplus(torch.randn(B, T, I) - 3)
    A_IS = -torch.arange(1.0, S + 1).repeat(I, 1)
    inputs = (torch.randn(B, T, I), dt_BTI, A_IS, torch.randn(B, T, S), torch.randn(B, T, S))
    return Case("selective_scan", f"{B} x {T} x {I}, {S} states", paths, (*inputs, torch.ones(I)))


def slots() -> Case:
    """A memory layer's lookup; the definition forces a small number of positions."""
    paths = {
        "all sums": lambda a, b: product_keys.reference(a, b, 32)[0],
        "staircase": lambda a, b: product_keys.product_key_topk(a, b, 32)[0],
    }
    inputs = [torch.randn(16, 4, 512) for _ in range(2)]
    return Case("product_key_topk", "16 x 4 heads, 512^2 slots, 32 picks", paths, inputs)


def bags() -> Case:
    """A memory layer's reading of its table."""
    index_NJ = torch.randint(2**16, (1024, 128))

    def torch_bag(values_RD: Tensor, weight_NJ: Tensor) -> Tensor:
        return F.embedding_bag(index_NJ, values_RD, per_sample_weights=weight_NJ, mode="sum")

    paths = {
        "gather and sum": lambda v, w: value_table.reference(v, index_NJ, w),
        "embedding_bag": torch_bag,
        "weighted_bag": lambda v, w: value_table.weighted_bag(v, index_NJ, w),
    }
    inputs = (torch.randn(2**16, 256), torch.rand(1024, 128))
    return Case("weighted_bag", "65536 x 256, 1024 x 128 rows read", paths, inputs)


CASES = (nearest_codes, documents, grouped, convolution, scans, slots, bags)


def main() -> int:
    """Runs the cases whose name contains an argument; 1 if a path does not equal its definition."""
    parser = argparse.ArgumentParser(description="Time the kernels")
    parser.add_argument("names", nargs="*", help="parts of names of cases; all if none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    fine = True
    for make in CASES:
        torch.manual_seed(0)
        case = make()
        if not options.names or any(name in case.name for name in options.names):
            fine &= _print(case, clock, options.repeats)
    return 0 if fine else 1


def _print(case: Case, clock: Callable[[], float], repeats: int) -> bool:
    print(f"\n{case.name}, {case.size}\n{'':24}{'forward':>20}{'forward, backward':>24}")
    wanted, fine, base = None, True, (0.0, 0.0)
    for name, path in case.paths.items():
        results = _run(case, path)
        wanted = wanted or results
        equal = "limit" in name or _equal(results, wanted, case.tolerance)
        with torch.no_grad():
            forward = _median(lambda path=path: path(*case.inputs), clock, repeats)
        both = _median(lambda path=path: _run(case, path), clock, repeats)
        base = base if base[0] else (forward, both)
        cells = [f"{forward:9.1f} ms {base[0] / forward:7.1f}x"]
        cells += [f"{both:9.1f} ms {base[1] / both:7.1f}x"] if case.gradients else []
        print(f"  {name:24}" + (" ".join(cells) if equal else "differs from the definition"))
        fine &= equal
    return fine


def _run(case: Case, path: Path) -> list[Tensor]:
    if not case.gradients:
        return [path(*case.inputs)]
    leaves = [x.detach().requires_grad_() for x in case.inputs]
    y = path(*leaves)
    cotangent = torch.linspace(-1, 1, y.shape[-1]).expand(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def _equal(results: list[Tensor], wanted: list[Tensor], tolerance: float) -> bool:
    """Whether all agree, relative to the largest element of each."""
    pairs = zip(results, wanted, strict=True)
    dense = ((a.to_dense() if a.is_sparse else a, b) for a, b in pairs)
    return all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in dense)


def _median(function: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(1000 * (clock() - start))
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
