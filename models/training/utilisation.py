"""Operations a second of a run, their share of what its device can do (MFU), and its memory.

Counted are the model's own products, forward and backward (arXiv:2204.02311, appendix B): 6 a
weight that a token meets (flops.py), and attention's over the square of each document's length, as
packed documents do not see each other. What is made again to save memory counts once. The device's
peak is measured, not looked up: the best of a few products, a tenth of a second once.
"""

import sys
import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from plait.models import flops
from plait.models.decoder import Decoder
from plait.pipeline.batch import Batch
from plait.pipeline.meters import Line

SIZES = {"cpu": (384, 768), "cuda": (4096, 8192)}
"""Sides of the square products."""
REPEATS = 3


class Utilisation:
    """Operations of the batches since the last line."""

    def __init__(self, model: Decoder, devices: int = 1) -> None:
        """`devices` share the work."""
        self._device, self._devices = model.embedding.device, devices
        weights = flops.flops_per_token(model, 0)
        self._weights = list(weights.values())
        first = next(iter(weights))
        self._pair = flops.flops_per_token(model, 1)[first] - weights[first]
        self.flops, self.tokens = 0.0, 0

    def add(self, batch: Batch) -> None:
        """Take in a batch that is trained on."""
        real_BT = ~batch.padding_BT
        count_M = torch.bincount(batch.modality_BT[real_BT], minlength=len(self._weights))
        row_B1 = torch.arange(len(real_BT), device=real_BT.device)[:, None]
        document_BT = batch.document_BT + row_B1 * (1 + batch.tokens_BT.shape[1])
        length_R = torch.bincount(document_BT[real_BT]).double()
        products = zip(count_M.tolist(), self._weights, strict=True)
        self.flops += sum(n * each for n, each in products)
        self.flops += self._pair * float(length_R.square().sum())
        self.tokens += int(count_M.sum())

    def line(self, tokens_per_s: float) -> Line:
        """Operations a second at this speed, and of the peak; begins a new window."""
        rate = tokens_per_s * self.flops / max(1, self.tokens)
        self.flops, self.tokens = 0.0, 0
        mfu = rate / (peak_flops(self._device) * self._devices)
        return {"flops_per_s": rate, "mfu": mfu, "peak_memory_bytes": peak_memory(self._device)}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held so far: by tensors on a GPU, else by the process; None where none tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def peak_flops(device: torch.device) -> float:
    """Operations a second of the best square product, measured once."""
    return best_flops(device, [(n, n, n) for n in SIZES.get(device.type, SIZES["cuda"])])


def best_flops(device: torch.device, shapes: Sequence[tuple[int, int, int]]) -> float:
    """Operations a second of the best of some products, each of (rows, inner, columns).

    In the type of a training step: float32 on a CPU, bfloat16 on a GPU.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    best = 0.0
    for rows, inner, columns in shapes:
        a = torch.ones(rows, inner, device=device, dtype=dtype)
        b = torch.ones(inner, columns, device=device, dtype=dtype)
        seconds = min(_seconds(a, b) for _ in range(REPEATS + 1))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def _seconds(a: Tensor, b: Tensor) -> float:
    _wait(a)
    start = time.perf_counter()
    torch.mm(a, b)
    _wait(a)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
