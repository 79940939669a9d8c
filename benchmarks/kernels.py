"""Times each kernel's definition and paths at one realistic size: `python benchmarks/kernels.py`.

Prints median milliseconds, forward and forward with backward, how many times faster than the
definition each path is, and its share of the machine's limit: the time that this machine needs to
copy as many bytes as the op has to read and write, or to multiply matrices of as many operations,
whichever is longer, by the time it takes (above 1 where a cache holds what is counted). A path
whose values or gradients differ from the definition gets no ratio, and the exit code is 1.

On a GPU, if there is one, times are between events on the device, its cache emptied before each
(`triton.testing.do_bench`). On a CPU (`--device cpu`) they are processor time of one thread; there
a missed bar is named, and the exit code is 1 too. `--threads N` uses more threads and measures
elapsed time; only on a quiet machine does that mean anything.
"""

import argparse
import contextlib
import ctypes
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernel_cases import CASES, Case, Path, scans
from torch import Tensor

Timer = Callable[[Callable[[], object]], float]
"""Median milliseconds of a function."""


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured."""

    bytes_per_ms: float
    """Read and written, by a copy."""
    flops_per_ms: float
    """Of a product of float32 matrices."""

    @classmethod
    def of(cls, device: str, timer: Timer) -> "Limits":
        """On a device: a copy beyond its caches, a product that keeps it busy."""
        size, width = (1 << 28, 8192) if device.startswith("cuda") else (1 << 25, 1024)
        source = torch.ones(size, device=device)
        target, matrix = torch.zeros_like(source), torch.ones(width, width, device=device)
        product = torch.zeros_like(matrix)
        copied = timer(lambda: target.copy_(source))
        multiplied = timer(lambda: torch.mm(matrix, matrix, out=product))
        return cls(2 * source.nbytes / copied, 2 * width**3 / multiplied)

    def times(self, case: Case, results: list[Tensor]) -> tuple[float, float]:
        """Least milliseconds forward, and with the backward, which reads all of it again."""
        read = sum(x.nbytes for x in case.inputs) if case.read is None else case.read
        forward = read + results[0].nbytes
        both = 2 * forward + sum(x.nbytes for x in case.inputs)
        works = ((forward, case.flops), (both, 3 * case.flops))
        forward, both = (max(b / self.bytes_per_ms, f / self.flops_per_ms) for b, f in works)
        return forward, both


def timer_of(device: str, threads: int, repeats: int) -> Timer:
    """Events on a GPU; processor time of one thread, elapsed time of several."""
    if device.startswith("cuda"):
        from triton.testing import do_bench

        torch.cuda.set_device(torch.device(device).index or 0)
        return lambda function: do_bench(function, return_mode="median")
    clock = time.process_time if threads == 1 else time.perf_counter
    return lambda function: _median(function, clock, repeats)


def main() -> int:
    """Runs the cases whose name contains an argument; 1 if a path does not equal its definition."""
    parser = argparse.ArgumentParser(description="Time the kernels")
    parser.add_argument("names", nargs="*", help="parts of names of cases; all if none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.basicConfig(format="  (%(message)s)", stream=sys.stdout)
    logging.getLogger("plait.kernels").setLevel(logging.INFO)
    timer = timer_of(options.device, options.threads, options.repeats)
    limits = Limits.of(options.device, timer)
    bandwidth, speed = limits.bytes_per_ms / 1e6, limits.flops_per_ms / 1e6
    print(f"{options.device}: copies {bandwidth:.1f} GB/s, products {speed:.1f} GFLOP/s in float32")
    fine = True
    for make in CASES:
        torch.manual_seed(0)
        case = make(options.device)
        if not options.names or any(name in case.name for name in options.names):
            fine &= _print(case, timer, limits, bars=options.device == "cpu")
    wanted = not options.names or any(n in "selective_scan by length" for n in options.names)
    if wanted and options.device == "cpu":
        fine &= linear_in_length(timer)
    return 0 if fine else 1


def _print(case: Case, timer: Timer, limits: Limits, bars: bool = True) -> bool:
    print(f"\n{case.name}, {case.size}")
    print(f"{'':24}{'forward':>12}{'faster':>9}{'limit':>7}{'both':>12}{'faster':>9}{'limit':>7}")
    wanted, fine, base, times = None, True, (0.0, 0.0), {}
    for name, path in case.paths.items():
        results = _run(case, path)
        wanted = wanted or results
        equal = "limit" in name or _equal(results, wanted, case.tolerance)
        with torch.no_grad():
            forward = timer(lambda path=path: path(*case.inputs))
        both = timer(lambda path=path: _run(case, path)) if case.gradients else forward
        base = base if base[0] else (forward, both)
        times[name] = forward, both
        rows = zip(times[name], base, limits.times(case, results), strict=True)
        cells = [
            f"{took:9.{1 if took >= 10 else 3}f} ms{slow / took:8.1f}x{least / took:7.2f}"
            for took, slow, least in rows
        ]
        cells = cells if case.gradients else cells[:1]
        print(f"  {name:22}" + ("".join(cells) if equal else "differs from the definition"))
        fine &= equal
    return fine & (not bars or _bars_hold(case, times))


def _bars_hold(case: Case, times: dict[str, tuple[float, float]]) -> bool:
    fine = True
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
    cotangent = torch.linspace(-1, 1, y.shape[-1], device=y.device).expand(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def _equal(results: list[Tensor], wanted: list[Tensor], tolerance: float) -> bool:
    """Whether all agree, relative to the largest element of each."""
    pairs = zip(results, wanted, strict=True)
    dense = ((a.to_dense() if a.is_sparse else a, b) for a, b in pairs)
    return all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in dense)


def linear_in_length(timer: Timer) -> bool:
    """A scan of a longer row costs no more a step: at most 1.2 times that of 1024 steps.

    At 8192 steps tensors pass 32 MiB, for which glibc maps fresh pages at each call and gives them
    back: twice the time of the scan. That is the allocator's, and switched off here.
    """
    keep_memory()
    print(f"\nselective_scan, by length\n{'':24}{'forward':>20}{'forward, backward':>24}")
    first, fine = (0.0, 0.0), True
    for T in (1024, 2048, 4096, 8192):
        case = scans("cpu", T)
        name, path = list(case.paths.items())[-1]
        _run(case, path)  # its memory is new to the process
        with torch.no_grad():
            forward = timer(lambda c=case, path=path: path(*c.inputs)) / T
        both = timer(lambda c=case, path=path: _run(c, path)) / T
        first = first if first[0] else (forward, both)
        ratios = forward / first[0], both / first[1]
        fine &= max(ratios) <= 1.2
        cells = f"{T * forward:9.1f} ms {ratios[0]:7.2f}x {T * both:9.1f} ms {ratios[1]:7.2f}x"
        print(f"  {name + f', {T} steps':24}" + cells + ("" if max(ratios) <= 1.2 else "  MISSED"))
    return fine


def keep_memory() -> None:
    """Have glibc keep what is freed, whatever its size; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


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
