"""What a memory layer costs in training: look-up, reading, gradient and optimizer step.

    python benchmarks/memory.py                      # 2^20 values of 256, 2048 tokens
    python benchmarks/memory.py --sizes 14 20 --whole   # and a decoder's whole steps

Each way does the same work on the same scores: the best `top_k` slots of each head, the weighted
sum of their values, its gradient, and one optimizer step of the table. Medians of `repeats`, CPU
milliseconds of one thread, and how many times faster than each baseline plait is. The ways must
read the same values, or the exit code is 1. `--whole` also times training steps of a decoder of 4
blocks, two with a memory, for each size: the ratio is to the first.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from plait.kernels.product_keys import product_key_topk, reference
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.training.optimizer import Optimizer, OptimizerConfig
from plait.models.training.speed import keep_freed_memory
from plait.models.values import TableOptimizer, ValueTable
from plait.pipeline.batch import Batch
from plait.pipeline.tables import make_console, print_table
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a memory layer."""

    sizes: tuple[int, ...] = (20,)
    """Values, as powers of two; even ones, as half keys are their square root."""
    width: int = 256
    """Width of a value."""
    tokens: int = 2048
    """Tokens of a step."""
    heads: int = 4
    """Heads."""
    top_k: int = 32
    """Slots that a head reads."""
    repeats: int = 5
    """Steps; the median counts."""
    whole: bool = False
    """Time whole training steps of a decoder too."""
    dim: int = 512
    """Width of that decoder."""
    baselines: bool = True
    """Measure the optimizers of torch too."""
    seed: int = 0
    """Seed of the scores."""


def main(options: Options) -> int:
    """Print a table for each size."""
    torch.set_num_threads(1)
    console, same = make_console(), True
    for power in options.sizes:
        torch.manual_seed(options.seed)
        half = round(2 ** (power / 2))
        shape = (options.tokens, options.heads, half)
        scores = [torch.randn(shape) for _ in range(2)]
        ways = {"plait": plait_step(options, half)}
        if options.baselines:
            ways |= {
                name: torch_step(options, half, make, sparse) for name, make, sparse in BASELINES
            }
        rows, ours, wanted = [], 0.0, None
        for name, step in ways.items():
            read = step(*scores)
            wanted = read if wanted is None else wanted
            same &= torch.allclose(read, wanted, atol=1e-4)
            times = []
            for _ in range(options.repeats):
                began = time.process_time()
                step(*scores)
                times.append(1000 * (time.process_time() - began))
            median = statistics.median(times)
            ours = ours or median
            rows.append([name, f"{median:,.0f}", f"{median / ours:.1f}"])
        console.print(f"2^{power} values of {options.width}, {options.tokens} tokens")
        print_table(console, ["way", "CPU ms", "times plait"], rows)
    if options.whole:
        times = [whole_step(options, power) for power in options.sizes]
        rows = [
            [f"2^{power}", f"{one:,.0f}", f"{one / times[0]:.2f}"]
            for power, one in zip(options.sizes, times, strict=True)
        ]
        console.print(f"a whole step of a decoder of width {options.dim}")
        print_table(console, ["values", "CPU ms", "ratio"], rows)
    return 0 if same else 1


def whole_step(options: Options, power: int) -> float:
    """Median CPU milliseconds of forward, backward and optimizer step; freed memory is kept, as in
    training."""
    keep_freed_memory()
    names = (("text", 4096), ("image", 1024))
    infos = [
        TokenizerInfo(name=name, modality=name, vocab_size=size, fingerprint=name)
        for name, size in names
    ]
    config = ModelConfig(
        dim=options.dim,
        n_layers=4,
        n_heads=8,
        channels=("ffn", "memory"),
        memory_keys=round(2 ** (power / 2)),
        memory_value_dim=options.width,
        memory_heads=options.heads,
        memory_top_k=options.top_k,
    )
    torch.manual_seed(options.seed)
    decoder = Decoder(config, Vocabulary(tuple(infos))).train()
    optimizer = Optimizer(decoder, OptimizerConfig())
    batch = made_batch(decoder.vocabulary, options.tokens)
    times = []
    for _ in range(options.repeats + 1):
        began = time.process_time()
        optimizer.zero_grad()
        decoder.loss(batch).sum_M.sum().backward()
        optimizer.clip()
        optimizer.step(1e-3)
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times[1:])


def made_batch(vocabulary: Vocabulary, tokens: int) -> Batch:
    """Rows of 512 random tokens, one document each."""
    size = (max(1, tokens // 512), 512)
    tokens_BT = torch.randint(8, vocabulary.size, size)
    table = torch.from_numpy(vocabulary.modality_table)
    return Batch(
        tokens_BT=tokens_BT,
        modality_BT=table[tokens_BT],
        document_BT=torch.zeros(size, dtype=torch.int32),
        position_BT=torch.arange(512, dtype=torch.int32).repeat(size[0], 1),
        loss_mask_BT=(torch.arange(512) < 511).repeat(size[0], 1),
        modalities=vocabulary.modalities,
    )


def plait_step(options: Options, half: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The way of models/memory.py."""
    table = ValueTable(half * half, options.width)
    torch.manual_seed(1)
    table.reset_parameters()
    optimizer = TableOptimizer(table)

    def step(first: Tensor, second: Tensor) -> Tensor:
        score_NHk, slot_NHk = product_key_topk(first.requires_grad_(), second, options.top_k)
        share_NHk = score_NHk.softmax(-1)
        read_ND = table.read(slot_NHk.flatten(1), share_NHk.flatten(1))
        read_ND.sum().backward()
        optimizer.norm()
        optimizer.step(1e-9)
        return read_ND.detach()

    return step


def torch_step(
    options: Options, half: int, make: Callable, sparse: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """torch.topk, F.embedding_bag and an optimizer of torch."""
    weight = torch.nn.Parameter(torch.empty(half * half, options.width))
    torch.manual_seed(1)
    torch.nn.init.normal_(weight, std=options.width**-0.5)
    optimizer = make(weight)
    k = options.top_k

    def step(first: Tensor, second: Tensor) -> Tensor:
        best1_NHk, index1_NHk = first.requires_grad_().topk(k, dim=-1)
        best2_NHk, index2_NHk = second.topk(k, dim=-1)
        score_NHk, place_NHk = reference(best1_NHk, best2_NHk, k)
        slot_NHk = index1_NHk.gather(-1, place_NHk // k) * half
        slot_NHk = slot_NHk + index2_NHk.gather(-1, place_NHk % k)
        share_NJ = score_NHk.softmax(-1).flatten(1)
        read_ND = F.embedding_bag(
            slot_NHk.flatten(1), weight, per_sample_weights=share_NJ, mode="sum", sparse=sparse
        )
        optimizer.zero_grad()
        read_ND.sum().backward()
        optimizer.step()
        return read_ND.detach()

    return step


BASELINES = (
    ("SparseAdam", lambda w: torch.optim.SparseAdam([w], lr=1e-9), True),
    ("AdamW, fused", lambda w: torch.optim.AdamW([w], lr=1e-9, fused=True), False),
    ("AdamW, foreach", lambda w: torch.optim.AdamW([w], lr=1e-9, foreach=True), False),
)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
