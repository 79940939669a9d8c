"""What the Triton kernels over rows sorted by group share: where groups end, and whose a tile is.

The counts are Python integers, so the grid has exactly one program a tile, and the device is asked
for nothing: the ends travel once a batch, by a copy that does not wait.
"""
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import contextlib
import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def find_group(tile, ends_ptr, M, ROWS: tl.constexpr, BM: tl.constexpr):
    """(group, first row, end of the group's rows) of a tile of so many rows of one group."""
    m = tl.arange(0, BM)
    end_M = tl.load(ends_ptr + m, mask=m < M, other=0)
    start_M = tl.load(ends_ptr + m - 1, mask=(m > 0) & (m < M), other=0)
    tiles_M = tl.where(m < M, (end_M - start_M + ROWS - 1) // ROWS, 0)
    through_M = tl.cumsum(tiles_M, 0)
    group = tl.sum(tl.where(through_M <= tile, 1, 0), 0)
    mine_M = m == group
    within = tile - tl.sum(tl.where(mine_M, through_M - tiles_M, 0), 0)
    start = tl.sum(tl.where(mine_M, start_M, 0), 0) + within * ROWS
    return group, start, tl.sum(tl.where(mine_M, end_M, 0), 0)


def tiles(counts: Sequence[int], rows: int) -> list[int]:
    """Tiles of so many rows that each group needs."""
    return [triton.cdiv(count, rows) for count in counts]


@functools.lru_cache(maxsize=64)
def ends(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each group's rows end, int32 [M]; the host does not wait for the copy."""
    through = torch.tensor(counts).cumsum(0).to(torch.int32)
    if device.type == "cpu":
        return through
    return through.pin_memory().to(device, non_blocking=True)


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Kernels start on the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
