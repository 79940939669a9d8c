"""Training on several processes, with torch's own engine: FSDP2 on a mesh of two axes.

The mesh is replicas x shards, so one way through the code serves all kinds: "replicate" has one
shard, "shard" one replica. Parameters are cut along an axis that divides evenly, which for a weight
shared by all modalities, [1, O, I], is not the first. Gradients are sums, in float32: a loss is
divided by the targets of the whole batch, so a run is the same at any number of processes. On GPUs
autocast is the mixed precision, as in one process.

The memory's values are cut by columns over all processes (values.py), whatever the kind: there is
no gradient to exchange, and no process holds the table.
"""

import contextlib
import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, Shard

from plait.models.decoder import Decoder
from plait.models.ranks import ALONE, Ranks
from plait.pipeline.batch import Batch
from plait.pipeline.vocabulary import PAD
from plait.tokenizers.errors import ConfigError, PlaitError


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How processes that `torchrun` started share a run; in one process nothing of it counts."""

    kind: Literal["auto", "replicate", "shard", "hybrid"] = "auto"
    """replicate: each holds the whole model. shard: each holds a part of every weight and of its
    moments (FSDP2). hybrid: replicas, each cut over `shard_size` processes. auto: replicate where
    that takes less than a quarter of the GPU's memory, else shard. The memory's values are always
    cut by columns over all processes."""
    shard_size: int = 0
    """Processes that share one replica in hybrid; 0 is those of one machine."""


@contextlib.contextmanager
def processes() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, and part in order; alone without it.

    All but the first print nothing. What several have to complain of is said once.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    store, rank, size = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    with contextlib.ExitStack() as stack:
        if rank:
            silence = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        try:
            yield Ranks(rank=rank, size=size)
        except (PlaitError, KeyboardInterrupt) as error:
            if store.add(f"said/{type(error).__name__}/{error}", 1) > 1:
                raise SystemExit(2 if isinstance(error, PlaitError) else 130) from None
            raise
    part()


def part() -> None:
    """Leave the group when all are done; nothing of it may live on, or its threads would."""
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()


def place(device: torch.device, ranks: Ranks) -> torch.device:
    """The process's own device."""
    if ranks.size == 1 or device.type != "cuda":
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def distribute(model: Decoder, config: ParallelConfig, ranks: Ranks) -> None:
    """Cut a model, the same on all ranks, into each one's part; parameters become DTensors.

    Call `loss` as before, and make the optimizer afterwards.
    """
    if ranks.size == 1:
        return
    model.ranks = ranks
    device = model.embedding.device
    mesh = init_device_mesh(
        device.type, _shape(model, config, ranks), mesh_dim_names=("replicate", "shard")
    )
    _cut(model, mesh)
    register_fsdp_forward_method(model, "loss")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert isinstance(model, FSDPModule)
    model.set_reduce_scatter_unused_params(True)


def reduce_now(model: nn.Module, last: bool) -> None:
    """Whether the next backward is the last one of a step, after which replicas are added up."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)


def clip_norm(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale the gradients to this norm at most; the norm that they had, all ranks' shards in it."""
    parameters = list(parameters)
    shards = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    if not shards:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    own = [gradient.to_local() for gradient in shards]
    square = nn.utils.get_total_norm(own).double().square()
    dist.all_reduce(square, group=shards[0].device_mesh.get_group("shard"))
    norm = math.sqrt(float(square))
    if norm > limit:
        for gradient in own:
            gradient.mul_(limit / (norm + 1e-6))
    return norm


def own_rows(
    make: Callable[[Sequence[int]], Batch], numbers: Sequence[int], size: int, ranks: Ranks
) -> Batch:
    """This rank's part of a batch of up to `size` rows; padding in the place of those missing."""
    if ranks.size == 1:
        return make(numbers)
    each = size // ranks.size
    own = numbers[ranks.rank * each : (ranks.rank + 1) * each]
    batch = make([*own, *[numbers[0]] * (each - len(own))])
    missing_B1 = (torch.arange(each) >= len(own))[:, None]
    return replace(
        batch,
        tokens_BT=batch.tokens_BT.masked_fill(missing_B1, PAD),
        modality_BT=batch.modality_BT.masked_fill(missing_B1, 0),
        document_BT=batch.document_BT.masked_fill(missing_B1, -1),
        position_BT=batch.position_BT.masked_fill(missing_B1, 0),
        loss_mask_BT=batch.loss_mask_BT.masked_fill(missing_B1, False),
    )


def _shape(model: Decoder, config: ParallelConfig, ranks: Ranks) -> tuple[int, int]:
    """Replicas and shards."""
    kind, device = config.kind, model.embedding.device
    if kind == "auto":
        state = 16 * sum(p.numel() for p in model.parameters())  # weights, gradients, two moments
        small = device.type == "cpu" or (
            state < torch.cuda.get_device_properties(device).total_memory / 4
        )
        kind = "replicate" if small else "shard"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    shards = {"replicate": 1, "shard": ranks.size}.get(kind, config.shard_size or local)
    if ranks.size % shards:
        raise ConfigError(
            f"parallel.shard_size: {ranks.size} processes cannot be cut into groups of {shards}"
        )
    return ranks.size // shards, shards


def _cut(model: Decoder, mesh: DeviceMesh) -> None:
    """Each block is gathered when it is needed, and what is beside the blocks once a pass."""
    shards = mesh["shard"].size()

    def even(parameter: nn.Parameter) -> Shard:
        axes = (d for d, size in enumerate(parameter.shape) if size % shards == 0)
        return Shard(next(axes, 0))

    for module in (*model.blocks, model):
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=None if shards > 1 else False,
            shard_placement_fn=even,
            mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
            ignored_params=set() if model.values is None else {model.values.weight},
        )
