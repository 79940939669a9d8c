"""Speed of each rule for byte patches, and what each source of entropies costs and is worth.

    python benchmarks/byte_patches.py
    python benchmarks/byte_patches.py --data FILES... --lm-steps 300

Documents are the .py files of Python's standard library, or lines of JSONL ("text"; .gz too) and
other files whole; every tenth is held out. MB/s of processor time on one thread, the median of
several rounds, beside a plain loop over bytes that defines the rule. A rule that differs from its
loop gets no figure, and the exit code is 1; also where marking by entropies is below 150 MB/s or
after separators below 200 (with a C compiler), or 10 MB of one letter cost more than linear time.

The second table: bits a byte on held-out bytes, the same for all; the language model is fitted here
for `--lm-steps` updates (0: left out) at its default size.
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from plait.kernels.compile_c import library
from plait.kernels.mark_patches import State, mark_entropy, mark_separators, mark_stride
from plait.pipeline.tables import make_console, print_table
from plait.tokenizers import byte_lm
from plait.tokenizers.byte_options import FitOptions
from plait.tokenizers.byte_patch import SEPARATES, BytePatch, evaluate, fit

MAX_PATCH = 32
STRIDE = 6
PLAIN_BYTES = 300_000
LM_BYTES = 100_000
PATHS = ("reference", "c")


@dataclass(frozen=True)
class Rule:
    """A rule in both forms."""

    name: str
    mark: Callable[[int], np.ndarray]
    candidate: Callable[[int], bool]
    """Whether byte i starts a patch, a document's first byte and full patches aside."""
    limit: int
    least: int
    """The bar, MB/s."""


def main() -> int:
    """Print both tables; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="*", type=Path, help="files; the standard library if none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=24, help="bytes to mark, at most")
    parser.add_argument("--lm-steps", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    documents = read_documents(arguments.data)
    learned = [x for i, x in enumerate(documents) if i % 10]
    held_out = documents[::10]
    tokenizer = fit(learned, FitOptions(method="entropy"))
    ok = speeds(tokenizer, documents, arguments.megabytes * 1_000_000, arguments.rounds)
    ok &= one_letter(tokenizer)
    sources(tokenizer, learned, held_out, arguments.lm_steps, arguments.rounds)
    patches(learned, held_out)
    return 0 if ok else 1


def read_documents(paths: Sequence[Path] | None) -> list[bytes]:
    """Documents that are not empty."""
    paths = paths or sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))[:1500]
    documents: list[bytes] = []
    for path in paths:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = path.name.removesuffix(".gz").endswith(".jsonl")
        texts = [json.loads(x)["text"].encode() for x in data.splitlines()] if lines else [data]
        documents += filter(None, texts)
    return documents


def rules(data: np.ndarray, firsts: np.ndarray, tokenizer: BytePatch) -> list[Rule]:
    """Each rule as a call over the first n bytes, and as a question about one byte."""
    assert tokenizer.source is not None
    entropies = tokenizer.source.stream().push(data, firsts)
    threshold, inf = tokenizer.options.limits[0], float("inf")
    separates = SEPARATES[data]
    begins = np.isin(np.arange(len(data)), firsts)

    def own(n: int) -> np.ndarray:
        return firsts[firsts < n]

    def separators(name: str, limit: int) -> Rule:
        return Rule(
            name,
            lambda n: mark_separators(data[:n], own(n), SEPARATES, limit, State()),
            lambda i: separates[i - 1] and (begins[i - 1] or not separates[i - 2]),
            limit,
            least=200,
        )

    def entropy(name: str, theta: float, rise: float, limit: int) -> Rule:
        return Rule(
            name,
            lambda n: mark_entropy(entropies[:n], own(n), theta, rise, limit, State()),
            lambda i: entropies[i] > theta and entropies[i] - entropies[i - 1] > rise,
            limit,
            least=150,
        )

    def stride(n: int) -> np.ndarray:
        return mark_stride(n, own(n), STRIDE, State())

    return [
        Rule(f"every {STRIDE} bytes", stride, lambda _: False, STRIDE, least=0),
        separators("whitespace", 0),
        separators(f"whitespace, at most {MAX_PATCH}", MAX_PATCH),
        entropy("entropy, global", threshold, -inf, 0),
        entropy(f"entropy, global, at most {MAX_PATCH}", threshold, -inf, MAX_PATCH),
        entropy(f"entropy, monotonic, at most {MAX_PATCH}", -inf, 1.0, MAX_PATCH),
        entropy(f"entropy, both, at most {MAX_PATCH}", threshold, 0.1, MAX_PATCH),
    ]


def speeds(tokenizer: BytePatch, documents: list[bytes], most: int, rounds: int) -> bool:
    """The first table; whether all rules are right and fast."""
    data, firsts = joined(documents, most)
    compiled = library("mark_patches") is not None
    rows, ok = [], True
    for rule in rules(data, firsts, tokenizer):
        n = min(PLAIN_BYTES, len(data))
        began = time.process_time()
        plain = plain_marks(n, set(firsts.tolist()), rule)
        loop = n / 1e6 / (time.process_time() - began)
        right = all(np.array_equal(on_path(path, rule.mark, n), plain) for path in PATHS)
        slow, fast = (rate(rule.mark, len(data), rounds, path) for path in PATHS)
        ok &= right and (fast >= rule.least or not compiled)
        figures = (f"{loop:.2f}", f"{slow:.0f}", f"{fast:.0f}") if right else ("differs", "", "")
        rows.append((rule.name, *figures, f"{rule.least or ''}"))
    for method in ("fixed", "whitespace", "entropy"):
        options = replace(tokenizer.options, method=method)
        encoder, some = BytePatch(options, tokenizer.source), documents[: len(firsts)]
        size = sum(map(len, some))
        slow, fast = (
            rate(lambda _, x=some, t=encoder: t.encode_batch(x), size, rounds, path)
            for path in PATHS
        )
        rows.append(
            (f"BytePatch, {method}, bytes to Encoded", "", f"{slow:.0f}", f"{fast:.0f}", "")
        )
    console = make_console()
    console.print(f"{len(data) / 1e6:.1f} MB in {len(firsts):,} documents; MB/s")
    print_table(console, ["rule", "plain loop", "numpy", "C", "bar"], rows)
    return ok


def one_letter(tokenizer: BytePatch) -> bool:
    """Whether ten times the letters cost about ten times as much, for every method."""
    ok = True
    console = make_console()
    for method in ("fixed", "whitespace", "entropy"):
        encoder = BytePatch(replace(tokenizer.options, method=method), tokenizer.source)
        ms = []
        for size in (1_000_000, 10_000_000):
            text = [b"a" * size]
            ms.append(
                size / 1e3 / rate(lambda _, x=text, t=encoder: t.encode_batch(x), size, 5, "c")
            )
        ok &= ms[1] < 30 * ms[0]
        console.print(f"one letter, {method}: 1 MB {ms[0]:.1f} ms, 10 MB {ms[1]:.1f} ms")
    return ok


def sources(
    tokenizer: BytePatch, learned: list[bytes], held_out: list[bytes], steps: int, rounds: int
) -> None:
    """The second table: bits a byte and cost of the count model and the language model."""
    each = -(-LM_BYTES // max(len(held_out), 1))
    data, firsts = joined([x[: max(each, 2000)] for x in spread(held_out)], LM_BYTES)
    many, of = joined(learned, 24_000_000)
    size = sum(map(len, learned)) / 1e6

    def fitted(make: Callable[[], BytePatch]) -> tuple[BytePatch, float]:
        began = time.process_time()
        return make(), time.process_time() - began

    counts, seconds = fitted(lambda: fit(learned, FitOptions(method="entropy")))
    assert counts.source is not None
    stream = counts.source.stream
    mb_s = rate(lambda _: stream().push(many, of), len(many), rounds, "c")
    bits = counts.source.bits(data, firsts)
    assert bits is not None
    rows = [("counts, order 3", f"{bits.mean():.3f}", f"{1000 * mb_s:,.0f}", f"{seconds:.1f}")]
    rows[0] += (f"{sum(map(len, counts.files().values())) / 1e6:.1f}",)
    if steps:
        options = byte_lm.FitOptions(steps=steps)
        lm, seconds = fitted(lambda: byte_lm.fit(learned, options))
        assert isinstance(lm, byte_lm.LMPatch)
        began = time.process_time()
        bits = lm.source.bits(data, firsts)
        kb_s = len(data) / 1e3 / (time.process_time() - began)
        megabytes = sum(map(len, lm.files().values())) / 1e6
        rows.append(
            (
                f"language model, {steps} steps of {options.batch * options.seq_len:,} bytes",
                *(f"{bits.mean():.3f}", f"{kb_s:,.0f}", f"{seconds:.1f}", f"{megabytes:.1f}"),
            )
        )
    console = make_console()
    console.print(f"\nfitted on {size:.1f} MB; bits a byte of {len(data):,} held-out bytes")
    header = ["source of entropies", "bits a byte", "kB/s", "fit, CPU s", "MB on disk"]
    print_table(console, header, rows)


def patches(learned: list[bytes], held_out: list[bytes]) -> None:
    """The third table: what the patches are like on held-out documents."""
    cases = {
        "whitespace": FitOptions(),
        **{
            f"entropy, {rule}, mean {mean:g}": FitOptions(
                method="entropy", rule=rule, mean_patch=mean
            )
            for rule, mean in (("global", 4.5), ("global", 6), ("monotonic", 4.5), ("both", 4.5))
        },
    }
    names = ("bytes_per_patch", "patch_p10", "patch_p50", "patch_p90", "patch_p99", "share_at_max")
    rows = []
    for name, options in cases.items():
        report = evaluate(fit(learned, options), held_out)
        rows.append((name, *(f"{report[key]:.4g}" for key in names)))
    console = make_console()
    console.print("\npatches of the held-out documents")
    header = ["method", "mean bytes", "p10", "p50", "p90", "p99", f"share at {MAX_PATCH}"]
    print_table(console, header, rows)


def joined(documents: Sequence[bytes], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents back to back up to so many bytes, the last one cut, and where each begins."""
    firsts, parts, size = [], [], 0
    for document in documents:
        if size < most:
            firsts.append(size)
            parts.append(document[: most - size])
            size += len(parts[-1])
    return np.frombuffer(b"".join(parts), np.uint8), np.array(firsts, np.int64)


def spread(documents: list[bytes]) -> list[bytes]:
    """In a seeded random order, so that the first of them stand for all."""
    order = np.random.default_rng(0).permutation(len(documents))
    return [documents[i] for i in order]


def plain_marks(n: int, firsts: set[int], rule: Rule) -> np.ndarray:
    """The rule as a loop over bytes: a candidate, a document's first byte, or a full patch."""
    starts, length = [], 0
    for i in range(n):
        start = i in firsts or (rule.limit and length == rule.limit) or rule.candidate(i)
        length = 1 if start else length + 1
        starts.append(bool(start))
    return np.array(starts)


def on_path(path: str, mark: Callable[[int], object], n: int) -> object:
    """A call on the compiled path or on the definition."""
    os.environ["PLAIT_KERNELS"] = "reference" if path == "reference" else ""
    try:
        return mark(n)
    finally:
        del os.environ["PLAIT_KERNELS"]


def rate(mark: Callable[[int], object], n: int, rounds: int, path: str) -> float:
    """MB/s of processor time, the median of the rounds."""
    on_path(path, mark, n)
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        on_path(path, mark, n)
        seconds.append(time.process_time() - began)
    return n / 1e6 / max(statistics.median(seconds), 1e-9)


if __name__ == "__main__":
    sys.exit(main())
