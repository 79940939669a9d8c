"""Times each kernel's definition and paths at one realistic size: `python benchmarks/kernels.py`.

Prints median milliseconds of processor time on one thread, forward and forward with backward, and
how many times faster than the definition each path is. A path whose values or gradients differ from
the definition gets no ratio, and the exit code is 1; so it is where a bar is missed, which the
table then names. `--threads N` uses more threads and measures elapsed time; only on a quiet machine
does that mean anything.
"""

import argparse
import contextlib
import ctypes
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
    step_size,
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
    bars: Sequence[tuple[str, str, float, float]] = ()
    """(path, another, how many times faster it is forward, and with backward); 0 is no bar."""
    bar_threads: int = 1
    """At how many threads the bars hold: where the definition's small operations use but one."""


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
    bars = [("buckets", "dense mask, sdpa", 0, 3)]
    return Case("attention", "2 x 1024, 8 heads of 64, 4 documents", paths, qkv, bars=bars)


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


def scans(T: int = 1024) -> Case:
    """A Mamba block's scan."""
    B, I, S = 2, 512, 16
    reset_BT = torch.rand(B, T) < 0.01
    paths = {
        "loop": lambda *x: scan.reference(*x, reset_BT)[0],
        "chunked": lambda *x: scan.scan_op(*x, reset_BT, "chunked")[0],
    }
    bars = [("chunked", "loop", 0, 2)]
    if scan_c.available():
        paths["c"] = lambda *x: scan.scan_op(*x, reset_BT, "c")[0]
        bars.append(("c", "loop", 20, 25))
    dt_BTI = F.softplus(torch.randn(B, T, I) - 3)
    A_IS = -torch.arange(1.0, S + 1).repeat(I, 1)
    inputs = (torch.randn(B, T, I), dt_BTI, A_IS, torch.randn(B, T, S), torch.randn(B, T, S))
    size = f"{B} x {T} x {I}, {S} states"
    inputs = (*inputs, torch.ones(I))
    return Case("selective_scan", size, paths, inputs, bars=bars, bar_threads=2)


def scans_by_modality() -> Case:
    """The same of rows sorted by modality, with the step size's bias of each and its softplus."""
    plain = scans()
    u, dt, A, B, C, D = plain.inputs
    run_N = torch.arange(2 * 1024) // 100 % 3
    sorted_N = run_N.sort(stable=True).indices
    places = sorted_N.argsort(), sorted_N
    counts = run_N.bincount().tolist()
    reset_BT = torch.rand(2, 1024) < 0.01

    def loop(u, dt, A, B, C, D, bias_MI):
        dt = F.softplus(dt + bias_MI[run_N[sorted_N]].view(dt.shape))
        u, dt, B, C = (x.flatten(0, 1)[places[0]].view(x.shape) for x in (u, dt, B, C))
        y_BTI = scan.reference(u, dt, A, B, C, D, reset_BT)[0]
        return y_BTI.flatten(0, 1)[sorted_N].view(y_BTI.shape)

    def fast(u, dt, A, B, C, D, bias_MI):
        dt = step_size.step_size(dt.flatten(0, 1), bias_MI, counts).view(dt.shape)
        return scan.selective_scan(u, dt, A, B, C, D, reset_BT, places)

    inputs = (u, torch.randn_like(dt), A, B, C, D, torch.randn(3, 512) - 3)
    size = "the same, sorted by modality, bias of each"
    paths = {"loop": loop, "selective_scan": fast}
    bars = [("selective_scan", "loop", 20, 25)]
    return Case("selective_scan by modality", size, paths, inputs, bars=bars, bar_threads=2)


def keep_memory() -> None:
    """Have glibc keep what is freed, whatever its size; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def linear_in_length(clock: Callable[[], float], repeats: int) -> bool:
    """A scan of a longer row costs no more a step: at most 1.2 times that of 1024 steps.

    At 8192 steps tensors pass 32 MiB, for which glibc maps fresh pages at each call and gives them
    back: twice the time of the scan. That is the allocator's, and switched off here.
    """
    keep_memory()
    print(f"\nselective_scan, by length\n{'':24}{'forward':>20}{'forward, backward':>24}")
    first, fine = (0.0, 0.0), True
    for T in (1024, 2048, 4096, 8192):
        case = scans(T)
        name, path = list(case.paths.items())[-1]
        with torch.no_grad():
            forward = _median(lambda c=case, path=path: path(*c.inputs), clock, repeats) / T
        both = _median(lambda c=case, path=path: _run(c, path), clock, repeats) / T
        first = first if first[0] else (forward, both)
        ratios = forward / first[0], both / first[1]
        fine &= max(ratios) <= 1.2
        cells = f"{T * forward:9.1f} ms {ratios[0]:7.2f}x {T * both:9.1f} ms {ratios[1]:7.2f}x"
        print(f"  {name + f', {T} steps':24}" + cells + ("" if max(ratios) <= 1.2 else "  MISSED"))
    return fine


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


CASES = (
    nearest_codes,
    documents,
    grouped,
    convolution,
    scans,
    scans_by_modality,
    slots,
    bags,
)


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
    if not options.names or any(name in "selective_scan by length" for name in options.names):
        fine &= linear_in_length(clock, options.repeats)
    return 0 if fine else 1


def _print(case: Case, clock: Callable[[], float], repeats: int) -> bool:
    print(f"\n{case.name}, {case.size}\n{'':24}{'forward':>20}{'forward, backward':>24}")
    wanted, fine, base, times = None, True, (0.0, 0.0), {}
    for name, path in case.paths.items():
        results = _run(case, path)
        wanted = wanted or results
        equal = "limit" in name or _equal(results, wanted, case.tolerance)
        with torch.no_grad():
            forward = _median(lambda path=path: path(*case.inputs), clock, repeats)
        both = _median(lambda path=path: _run(case, path), clock, repeats)
        base = base if base[0] else (forward, both)
        times[name] = forward, both
        cells = [f"{forward:9.1f} ms {base[0] / forward:7.1f}x"]
        cells += [f"{both:9.1f} ms {base[1] / both:7.1f}x"] if case.gradients else []
        print(f"  {name:24}" + (" ".join(cells) if equal else "differs from the definition"))
        fine &= equal
    for path, other, *bars in case.bars:
        ratios = [slow / fast for slow, fast in zip(times[other], times[path], strict=True)]
        missed = any(ratio < bar for ratio, bar in zip(ratios, bars, strict=True))
        missed &= torch.get_num_threads() == case.bar_threads
        told = (
            f"{path}: {ratios[0]:.1f}x and {ratios[1]:.1f}x of {other}, bars {bars[0]}, {bars[1]}"
        )
        print(f"  {told}{' MISSED' if missed else ''}")
        fine &= not missed
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
