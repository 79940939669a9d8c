"""What untying by modality costs a step, against dense blocks: `python benchmarks/models.py`.

Stacks of blocks of width 512 over 2 x 1024 tokens, forward and backward in float32 on one thread:
milliseconds of processor time, median of the rounds. In each round every stack of a group runs
once, one after the other, and a ratio is the median of its rounds' ratios to the dense stack, so
that other jobs weigh on both alike. Freed memory is kept, as in training. Rows hold two or three
documents in runs of 60 to 256 tokens. A stack sorts its rows by modality once, as a model does.
`boolean masks` gathers and scatters each modality at every projection, as published code of both
papers does; it computes the same function, which is checked first. Exit code 1 if a bar is missed.
Without arguments it takes six minutes of a quiet core; `--layers 2 --repeats 3` one.
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

from plait.kernels.attention import attention
from plait.kernels.causal_conv import causal_conv
from plait.kernels.rotary import rotate
from plait.kernels.scan import selective_scan
from plait.kernels.step_size import step_size
from plait.models.attention import Attention
from plait.models.block import Block
from plait.models.config import ModelConfig
from plait.models.context import Context
from plait.models.feed_forward import FeedForward
from plait.models.layers import ModalityNorm, rotation
from plait.models.mamba import Mamba
from plait.models.plan import Plan
from plait.models.training.speed import keep_freed_memory
from plait.pipeline.batch import Batch

B, T, D = 2, 1024, 512
TRANSFORMER: dict[str, object] = {"dim": D, "n_heads": 8}
MOT = {**TRANSFORMER, "untie": ("qkv", "o", "ffn", "norm")}
MAMBA = {"dim": D, "mixers": ("mamba",), "channels": ("none",)}
UNTIED_MAMBA = {**MAMBA, "untie": ("in", "x", "dt", "out")}


@dataclass(frozen=True)
class Stack:
    """A stack of blocks in a group of like ones, the first of which is the dense one."""

    name: str
    options: dict[str, object]
    modalities: int
    bar: float = 0.0
    """At most this many times the dense stack; 0 is no bar."""
    masks: bool = False
    """Dispatch by boolean masks."""


GROUPS: dict[str, list[Stack]] = {
    "transformer": [
        Stack("dense", TRANSFORMER, 2),
        Stack("MoT, 2 modalities", MOT, 2, 1.03),
        Stack("MoT, 2, boolean masks", MOT, 2, masks=True),
        Stack("MoT, 3 modalities", MOT, 3, 1.03),
        Stack("MoT, 3, boolean masks", MOT, 3, masks=True),
        Stack("MoMa, 4 + 4 experts", {**TRANSFORMER, "channels": ("experts",)}, 2, 1.15),
    ],
    "mamba": [
        Stack("dense", MAMBA, 2),
        Stack("Mixture-of-Mamba, 2 modalities", UNTIED_MAMBA, 2, 1.05),
        Stack("Mixture-of-Mamba, 2, boolean masks", UNTIED_MAMBA, 2, masks=True),
        Stack("Mixture-of-Mamba, 3 modalities", UNTIED_MAMBA, 3, 1.05),
    ],
}
LENGTHS = {2: ((174, 256), (130, 256)), 3: ((99, 256, 75), (70, 256, 60))}
"""Lengths of a document's runs, text, image and speech, in each row: documents of 430 and 386."""


def main() -> int:
    """Print the table of each group; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Time modality-untied blocks against dense ones")
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="all if none is named")
    parser.add_argument(
        "--layers", type=int, default=8, help="transformer blocks (Mamba: half as many)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    fine = True
    for name in options.groups or GROUPS:
        layers = options.layers if name == "transformer" else max(1, options.layers // 2)
        fine &= group(name, layers, options.repeats)
    return 0 if fine else 1


def group(name: str, layers: int, repeats: int) -> bool:
    """Measure the stacks of a group, one of each in a round; False if a bar is missed."""
    print(f"\n{name}, {layers} blocks of {D}, {B} x {T} tokens{'forward, backward':>25}")
    steps = [step_of(stack, layers) for stack in GROUPS[name]]
    check(GROUPS[name], steps)
    times = [[clock(step) for step in steps] for _ in range(repeats)]
    fine = True
    for i, stack in enumerate(GROUPS[name]):
        ratio = statistics.median(round_[i] / round_[0] for round_ in times)
        missed = bool(stack.bar) and ratio > stack.bar
        bar = f"   bar {stack.bar:.2f}{' MISSED' if missed else ''}" if stack.bar else ""
        milliseconds = statistics.median(round_[i] for round_ in times)
        print(f"  {stack.name:36} {milliseconds:9.0f} ms {ratio:7.3f}x{bar}", flush=True)
        fine &= not missed
    return fine


def step_of(stack: Stack, layers: int) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """A function that runs a stack forward and backward and gives output and gradients."""
    torch.manual_seed(0)
    config = ModelConfig.from_table({**stack.options, "n_layers": layers})
    blocks = [Block(config, *parts, stack.modalities, 0.25) for parts in config.blocks]
    for module in (module for block in blocks for module in block.modules()):
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    weights = [p for block in blocks for p in block.parameters()]
    batch = batch_of(stack.modalities)
    plan = Plan.of(batch)
    order = plan.order if config.by_modality and not stack.masks else plan.order.unsorted()
    position_BT = order.sort(plan.position_BT.flatten()).view(B, T)
    turn = rotation(position_BT, config.head_dim, config.rope_theta)
    x_ND = torch.randn(B * T, D).requires_grad_()
    dy_ND = torch.randn(B * T, D)
    masked = Masked(plan, batch.modality_masks.flatten(1), turn)

    def run() -> tuple[Tensor, list[Tensor]]:
        context = Context(
            order=order,
            turn=turn,
            layout=plan.layout if order.permutation_N is None else plan.sorted_layout,
            document_BT=plan.document_BT,
            reset_BT=plan.reset_BT,
        )
        y_ND = order.sort(x_ND)
        for block in blocks:
            y_ND = masked.block(block, y_ND) if stack.masks else block(y_ND, context)
        y_ND = order.unsort(y_ND)
        return y_ND.detach(), list(torch.autograd.grad(y_ND, [x_ND, *weights], dy_ND))

    return run


def batch_of(modalities: int) -> Batch:
    """Rows without padding: documents of two or three runs, the last one cut."""
    modality_BT = torch.zeros(B, T, dtype=torch.uint8)
    document_BT = torch.zeros(B, T, dtype=torch.int32)
    position_BT = torch.zeros(B, T, dtype=torch.int32)
    for b, lengths in enumerate(LENGTHS[modalities]):
        size = sum(lengths)
        runs = torch.arange(modalities).repeat_interleave(torch.tensor(lengths))
        at_T = torch.arange(T)
        modality_BT[b] = runs[at_T % size].to(torch.uint8)
        document_BT[b], position_BT[b] = at_T // size, at_T % size
    return Batch(
        tokens_BT=torch.zeros(B, T, dtype=torch.int64),
        modality_BT=modality_BT,
        document_BT=document_BT,
        position_BT=position_BT,
        loss_mask_BT=torch.zeros(B, T, dtype=torch.bool),
        modalities=("text", "image", "speech")[:modalities],
    )


def clock(step: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    start = time.process_time()
    step()
    return 1000 * (time.process_time() - start)


def check(stacks: Sequence[Stack], steps: Sequence[Callable]) -> None:
    """Boolean masks compute what the sorted stack before them does; also warms everything up."""
    results = [step() for step in steps]
    for i, stack in enumerate(stacks):
        if stack.masks:
            (y_ND, grads), (wanted_ND, wanted) = results[i], results[i - 1]
            for got, expected in zip([y_ND, *grads], [wanted_ND, *wanted], strict=True):
                error = (got - expected).abs().max() / expected.abs().max()
                assert error < 1e-4, (stack.name, tuple(got.shape), float(error))


class Masked:
    """Pre-norm blocks with a gather and a scatter by boolean masks around each projection."""

    def __init__(self, plan: Plan, mask_MN: Tensor, turn: tuple[Tensor, Tensor]) -> None:
        self.plan, self.mask_MN, self.turn = plan, mask_MN, turn

    def block(self, block: Block, x_ND: Tensor) -> Tensor:
        """The same function as the block's own."""
        h_ND = self.norm(x_ND, block.mixer_norm)
        if isinstance(block.mixer, Mamba):
            x_ND = x_ND + self.mamba(block.mixer, h_ND)
        else:
            x_ND = x_ND + self.attention(block.mixer, h_ND)
        if not isinstance(block.channel, FeedForward):
            return x_ND
        h_ND = self.norm(x_ND, block.channel_norm)
        gate, up = (self.linear(h_ND, w) for w in block.channel.gate_up.weight.chunk(2, dim=1))
        return x_ND + self.linear(F.silu(gate) * up, block.channel.down.weight)

    def each(self, x_N: Tensor, outputs: int, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        """What is done to the rows of one modality after another, [N, outputs]."""
        y_NO = x_N.new_empty(len(x_N), outputs)
        for m, mask_N in enumerate(self.mask_MN):
            y_NO[mask_N] = function(x_N[mask_N], m).flatten(1)
        return y_NO

    def linear(self, x_NI: Tensor, w_MOI: Tensor, bias_MO: Tensor | None = None) -> Tensor:
        """A projection."""
        biases = [None] * len(w_MOI) if bias_MO is None else list(bias_MO)
        return self.each(x_NI, w_MOI.shape[1], lambda x, m: F.linear(x, w_MOI[m], biases[m]))

    def norm(self, x_ND: Tensor, part: torch.nn.Module | None) -> Tensor:
        """A norm over the last axis, its gains tied or not."""
        assert isinstance(part, ModalityNorm)
        gains_MD = part.weight.expand(len(self.mask_MN), -1)

        def norm(x_nD: Tensor, m: int) -> Tensor:
            return F.rms_norm(x_nD, gains_MD.shape[1:], gains_MD[m], part.eps)

        return self.each(x_ND, x_ND[0].numel(), norm).view_as(x_ND)

    def attention(self, part: Attention, x_ND: Tensor) -> Tensor:
        """Queries, keys and values by projections of their own."""
        rows, shape = (B * T, part.heads, part.head_dim), (B, T, part.heads, part.head_dim)
        q, k, v = (self.linear(x_ND, w_MOI).view(rows) for w_MOI in part.qkv.weight.chunk(3, dim=1))
        q, k = self.norm(q, part.q_norm), self.norm(k, part.k_norm)
        q, k = (rotate(z.view(shape), self.turn) for z in (q, k))
        o_BTHK = attention(q, k, v.view(shape), self.plan.layout)
        return self.linear(o_BTHK.reshape(B * T, -1), part.o.weight)

    def mamba(self, part: Mamba, x_ND: Tensor) -> Tensor:
        """Convolution and scan in sequence order."""
        u, z = self.linear(x_ND, part.in_proj.weight).view(B, T, -1).chunk(2, -1)
        u = F.silu(causal_conv(u, part.conv_weight, part.conv_bias, self.plan.document_BT))
        selected = self.linear(u.flatten(0, 1), part.x_proj.weight)
        dt, b, c = selected.split((part.rank, part.states, part.states), -1)
        dt = self.linear(dt, part.dt_proj.weight, part.dt_bias)
        dt = step_size(dt, torch.zeros(1, dt.shape[1]), (len(dt),))
        dt, b, c = (x.view(B, T, -1) for x in (dt, b, c))
        y = selective_scan(u, dt, -part.A_log.exp(), b, c, part.D, self.plan.reset_BT)
        assert isinstance(y, Tensor)
        return self.linear((y * F.silu(z)).flatten(0, 1), part.out_proj.weight)


if __name__ == "__main__":
    sys.exit(main())
