"""Where a training step's time goes: `python benchmarks/train.py --data STREAM --presets all`.

A preset is trained for some steps on one thread, in float32, exactly as `plait train` does, with
batches from its loader. Printed are:

- the share of a step by kind of operation, from torch's profiler; `products` are matrix products,
  those inside attention with its softmax, and ours by modality (torch's products, too);
- processor milliseconds of a step, and the ratio to a plain decoder (torch's own layers, causal
  rows without documents, whole logits, foreach AdamW) of the same sizes: the two take turns, and
  the ratio is the median of the rounds' ratios;
- model FLOPs of the tokens' own weights and documents over those of the machine's best product of
  square and of model-shaped matrices, timed between the rounds (MFU);
- the share of time that the step waits for data;
- the most memory that a step holds above weights and optimizer, in MiB, and both figures with
  blocks that run again backward (`speed.checkpoint_activations`).

Bars: dense spends 70 % on products and takes no longer than the plain decoder; each preset waits
for data less than 2 % of the time. Exit code 1 if one is missed.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from plait.kernels.rotary import rotate
from plait.models.config import ModelConfig
from plait.models.layers import rotation
from plait.models.training.run_config import PRESETS, read_config
from plait.models.training.utilisation import SIZES, Utilisation, best_flops
from plait.pipeline.tables import make_console, print_table
from plait.train import Run

KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "attention_for_cpu"),
    "optimizer": ("Optimizer.", "aten::_fused_adam", "aten::_foreach", "plait::adam_rows"),
    "cross-entropy": ("linear_cross_entropy", "_Pieces", "aten::_log_softmax", "aten::nll_loss"),
    "norms": ("rms_norm", "layer_norm"),
    "attention": ("_ExchangeBackward", "_Exchange", "attention"),
    "scan, convolution": ("selective_scan", "causal_conv", "step_size"),
    "memory": ("weighted_bag", "product_key", "aten::embedding_bag"),
    "embedding": ("aten::embedding",),
    "copies": (
        "aten::copy_",
        "aten::clone",
        "aten::cat",
        "aten::index",
        "aten::fill_",
        "permute",
        "aten::zero_",
        "aten::gather",
        "aten::scatter",
        "_Take",
        "_Put",
    ),
    "Python": ("step", "autograd::engine"),
}
"""Kinds of operations by parts of their names, or of what they were called by; the rest is
elementwise. The first that fits counts, so a product inside of anything is a product."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Take a training step apart."""

    data: str
    """The stream."""
    presets: tuple[str, ...] = ("dense",)
    """Which presets; `all` for all."""
    rounds: int = 7
    """Timed steps of each preset, after two that warm up."""
    profiled: int = 4
    """Steps under the profiler."""
    products: float = 0.7
    """Bar: least share of products in a step of dense."""
    extra: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """More options of `plait train`, such as --extra=--speed.compile=true."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What was measured of a preset's step."""

    preset: str
    cpu_s: float
    ratio: float
    tokens: float
    mfu: float
    wait: float
    held: float
    again: tuple[float, float]
    """Memory, and time as a ratio, with blocks that run again."""
    shares: dict[str, float]


def main(options: Options) -> int:
    """Print the table; 1 if a bar is missed."""
    torch.set_num_threads(1)
    names = sorted(p.stem for p in PRESETS.glob("*.toml"))
    presets = names if options.presets == ("all",) else options.presets
    steps = []
    for name in presets:
        steps.append(measure(name, options))
        print(steps[-1], file=sys.stderr, flush=True)
    console, kinds = make_console(), [*KINDS, "elementwise"]
    print_table(
        console,
        ["of a step", *presets],
        [[kind, *(f"{s.shares[kind]:.1%}" for s in steps)] for kind in kinds]
        + [
            ["CPU ms", *(f"{1000 * s.cpu_s:,.0f}" for s in steps)],
            ["times a plain decoder", *(f"{s.ratio:.2f}" for s in steps)],
            ["tokens a CPU second", *(f"{s.tokens / s.cpu_s:,.0f}" for s in steps)],
            ["MFU", *(f"{s.mfu:.1%}" for s in steps)],
            ["waits for data", *(f"{s.wait:.2%}" for s in steps)],
            ["MiB of a step", *(f"{s.held:,.0f}" for s in steps)],
            ["blocks run again: MiB", *(f"{s.again[0]:,.0f}" for s in steps)],
            ["blocks run again: time", *(f"{s.again[1]:.2f}" for s in steps)],
        ],
    )
    missed = list(itertools.chain.from_iterable(misses(s, options) for s in steps))
    print("\n".join(missed) or "all bars are met")
    return int(bool(missed))


def misses(step: Step, options: Options) -> Iterator[str]:
    """The bars that a preset misses, in words."""
    if step.preset == "dense" and step.shares["products"] < options.products:
        yield f"MISSED: dense spends {step.shares['products']:.1%} on products"
    if step.preset == "dense" and step.ratio > 1:
        yield f"MISSED: a step of dense takes {step.ratio:.2f} times a plain decoder's"
    if step.wait >= 0.02:
        yield f"MISSED: {step.preset} waits for data {step.wait:.1%} of the time"


def measure(preset: str, options: Options) -> Step:
    """Train a preset for a few steps, in turns with the plain decoder."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--data", options.data, "--out", out, "--device", "cpu", "--steps", "1000"]
        run = Run(read_config([preset, *words, *options.extra]))
    run.optimizer.clip = named(run.optimizer.clip)
    run.optimizer.step = named(run.optimizer.step)
    batches = iter(run.loader)
    plain = Plain(run.config.model, run.vocabulary.size)
    meter = Utilisation(run.model)
    rounds, peaks, wait, again = [], [], [], []
    tokens_BT = run.loader.batch(0).tokens_BT
    for i in range(options.rounds + 2):
        before, wall = run.loader.wait_s, time.perf_counter()
        flops, tokens = meter.flops, meter.tokens
        ours = clock(lambda: run._train_step(watched(batches, meter)))
        waited = (run.loader.wait_s - before) / (time.perf_counter() - wall)
        theirs = clock(lambda: plain.step(tokens_BT))
        peaks.append(best_flops(run.device, shapes(run)))
        run.model.checkpoint_activations = True
        again.append(clock(lambda: run._train_step(batches)) / ours)
        run.model.checkpoint_activations = run.config.speed.checkpoint_activations
        if i > 1:
            rounds.append((ours, theirs, meter.flops - flops, meter.tokens - tokens))
            wait.append(waited)
    shares = profiled(lambda: run._train_step(batches), options.profiled)
    held = held_bytes(lambda: run._train_step(batches))
    run.model.checkpoint_activations = True
    held_again = held_bytes(lambda: run._train_step(batches))
    batches.close()
    cpu_s = statistics.median(ours for ours, *_ in rounds)
    return Step(
        preset=preset,
        cpu_s=cpu_s,
        ratio=statistics.median(ours / theirs for ours, theirs, *_ in rounds),
        tokens=statistics.median(tokens for *_, tokens in rounds),
        mfu=statistics.median(flops / ours for ours, _, flops, _ in rounds) / max(peaks),
        wait=statistics.median(wait),
        held=held / 2**20,
        again=(held_again / 2**20, statistics.median(again[2:])),
        shares=shares,
    )


def watched(batches: Iterator, meter: Utilisation) -> Iterator:
    """The batches, counted."""
    for item in batches:
        meter.add(item[0])
        yield item


def shapes(run: Run) -> list[tuple[int, int, int]]:
    """Square products, and two of the model's: into a feed-forward, and a piece of the head."""
    c = run.config
    rows = c.rows.batch_size * c.rows.seq_len
    squares = [(n, n, n) for n in SIZES["cpu"]]
    return [
        *squares,
        (rows, c.model.dim, 2 * c.model.ffn_dim),
        (256, c.model.dim, run.vocabulary.size),
    ]


def clock(step: Callable[[], object]) -> float:
    """Processor seconds."""
    start = time.process_time()
    step()
    return time.process_time() - start


def profiled(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Share of the steps' time by kind, in the thread that trains."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            with record_function("step"):
                step()
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        if names := called_by(event):
            spent[kind_of(names)] += event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: spent[kind] / whole for kind in (*KINDS, "elementwise")}


def named(function: Callable[..., float | None]) -> Callable[..., float | None]:
    """The function, under the optimizer's name in a profile: what it calls in C has none."""

    def run(*args: float) -> float | None:
        with record_function("Optimizer.all"):
            return function(*args)

    return run


def held_bytes(step: Callable[[], object]) -> int:
    """The most memory that tensors of a step hold at once, above what they held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def called_by(event) -> list[str]:
    """The names of an event and of all around it up to the step; none if it is not of a step."""
    names = []
    while event is not None:
        names.append(event.name)
        if event.name == "step":
            return names
        event = event.cpu_parent
    return []


def kind_of(names: list[str]) -> str:
    """The first kind that an operation or one around it belongs to; `step` itself is Python."""
    for kind, parts in KINDS.items():
        own = names[:1] if kind in ("products", "Python") else names[:-1]
        if any(part in name for name in own for part in parts):
            return kind
    return "elementwise"


class Plain(nn.Module):
    """What one writes first: a decoder of torch's layers, trained on rows as one document each."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.dim)
        sizes = (config.dim, config.n_heads, config.ffn_dim)
        self.blocks = nn.ModuleList(PlainBlock(*sizes) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, vocabulary, bias=False)
        self.theta = config.rope_theta
        self.adam = torch.optim.AdamW(self.parameters(), lr=1e-3, foreach=True)

    def step(self, tokens_BT: Tensor) -> None:
        """One training step."""
        T, block = tokens_BT.shape[1], self.blocks[0]
        assert isinstance(block, PlainBlock)
        turn = rotation(torch.arange(T)[None], block.head_dim, self.theta)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, turn)
        logits_BTV = self.head(self.norm(x_BTD))
        F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.adam.step()
        self.adam.zero_grad()


class PlainBlock(nn.Module):
    """Attention and a gated feed-forward, norms before them."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.norms = nn.ModuleList([nn.RMSNorm(dim), nn.RMSNorm(dim)])
        self.qk_norms = nn.ModuleList([nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)])
        self.qkv, self.o = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BTD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """[B, T, D] to the same."""
        qkv = self.qkv(self.norms[0](x_BTD)).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.unbind(2)
        q, k = (rotate(norm(x), turn) for norm, x in zip(self.qk_norms, (q, k), strict=True))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.o(o_BHTK.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norms[1](x_BTD)).chunk(2, -1)
        return x_BTD + self.down(F.silu(gate) * up)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
