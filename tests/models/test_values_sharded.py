"""The table over two processes: the same values, gradients and steps as in one."""

from typing import cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from plait.models.training import parallel
from plait.models.values import TableOptimizer, ValueTable

ROWS, WIDTH, N, J = 60, 8, 10, 3


def readings(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    slot_NJ = torch.randint(ROWS, (N, J), generator=generator)
    return slot_NJ, torch.rand(N, J, generator=generator)


def trained(group, ranks) -> dict[str, torch.Tensor]:
    """Three steps on the readings of `ranks`; what came of them."""
    torch.manual_seed(0)
    table = ValueTable(ROWS, WIDTH, group)
    table.reset_parameters()
    optimizer, found = TableOptimizer(table, weight_decay=0.2), {}
    for step in range(3):
        for rank in ranks:
            slot_NJ, share_NJ = readings(rank, step)
            share_NJ.requires_grad_()
            read_ND = table.read(slot_NJ, share_NJ)
            read_ND.square().sum().backward()
            found[f"read/{step}/{rank}"] = read_ND.detach()
            found[f"share/{step}/{rank}"] = share_NJ.grad
        found[f"norm/{step}"] = torch.tensor(optimizer.norm())
        optimizer.step(0.1, scale=0.5)
    return {**found, "weight": table.weight.detach()}


def worker(rank: int, path: str, wanted: dict[str, torch.Tensor]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(path, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = trained(dist.group.WORLD, [rank])
    for name, tensor in found.items():
        expected = wanted[name]
        if name == "weight":
            expected = expected[:, rank * WIDTH // 2 : (rank + 1) * WIDTH // 2]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    parallel.part()


def test_columns_on_two_ranks_are_the_table_on_one(tmp_path):
    mp.spawn(worker, (str(tmp_path / "store"), trained(None, [0, 1])), nprocs=2)


def test_columns_are_whole():
    with pytest.raises(ValueError, match="width 8 cannot be cut into 3 columns"):
        ValueTable(ROWS, WIDTH, cast(dist.ProcessGroup, Three()))


class Three:
    def size(self) -> int:
        return 3
