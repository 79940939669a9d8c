"""Compiled blocks, and blocks that run again in the backward pass."""

import copy
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from plait.models.decoder import Decoder
from plait.models.plan import Plan
from plait.models.training.speed import compile_blocks

from ...kernels.check import peak_bytes
from ..conftest import gradients, small

ROWS = [[(9, 14), (5, 3, 11)], [(20,), (2, 17)], [(1, 1, 8), (4, 9)], [(12, 12), (13, 2, 6)]]


def step(decoder: Decoder, batch, seed: int = 0) -> dict[str, torch.Tensor | None]:
    """Loss, figures and gradients of a training step."""
    decoder.zero_grad()
    if decoder.values is not None:
        decoder.values.ledger.clear()
    torch.manual_seed(seed)
    losses = decoder.loss(batch, Plan.of(batch))
    losses.sum_M.sum().backward()
    return {"loss": losses.sum_M.detach(), **losses.statistics, **gradients(decoder)}


def test_blocks_run_again_give_the_same_bits(config, new_decoder, new_batch):
    plain = new_decoder(config).train()
    again = copy.deepcopy(plain)
    again.checkpoint_activations = True
    for rows in ROWS[:2]:
        batch = new_batch(rows, padding=3)
        wanted, got = step(plain, batch), step(again, batch)
        assert wanted.keys() == got.keys()
        assert [n for n in wanted if not torch.equal(got[n], wanted[n])] == []  # type: ignore
    for (name, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), name
    if plain.values is not None and again.values is not None:
        assert len(again.values.ledger.readings) == len(plain.values.ledger.readings) > 0


def test_blocks_run_again_hold_less(new_decoder, new_batch):
    batch = new_batch([(200, 56)] * 4)
    decoder = new_decoder(small({"n_layers": 2})).train()
    kept = peak_bytes(lambda: step(decoder, batch))
    decoder.checkpoint_activations = True
    assert peak_bytes(lambda: step(decoder, batch)) < 0.75 * kept


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")
def test_compiled_blocks_serve_all_batches(preset, new_decoder, new_batch):
    """Equal results; after the first few batches nothing is compiled again.

    A modality with one token or none is a graph of its own, so more of them pass a block of depth.
    """
    longer = 1
    if preset.depth_capacity < 1:
        preset, longer = replace(preset, depth_capacity=0.75), 3
    plain = new_decoder(preset).train()
    compiled = copy.deepcopy(plain)
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(compiled, backend="aot_eager", whole=True)
    graphs = []
    for i in range(20):
        rows = [(5 + i, longer * (30 - i)), (3, longer * (12 + i))]
        batch = new_batch(rows, seed=i, padding=i % 3)
        got = step(compiled, batch, seed=i)
        if i < 3:
            for name, value in step(plain, batch, seed=i).items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[7]


FAULTS = """
import resource, torch
from plait.models.training.speed import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    torch.zeros(1 << 24)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

assert keep_freed_memory()
torch.set_num_threads(1)
print(min(faults() for _ in range(40)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone")
def test_freed_memory_is_not_paged_in_again():
    """In a process of its own, whose heap has no other holes."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    assert int(found.stdout) < 1000  # of 16384 pages
