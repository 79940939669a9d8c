"""Shards of several processes in safetensors files, read by any number of them, to the bit."""

import errno
import gc
import multiprocessing
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from plait.models import checkpoint, tensor_files
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.training import run_store
from plait.models.training.optimizer import Optimizer, OptimizerConfig
from plait.models.training.saver import Saver
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.tokenizers.errors import ConfigError

CONFIG = ModelConfig(
    dim=16,
    n_layers=2,
    n_heads=2,
    hidden_dim=24,
    channels=("experts", "memory"),
    experts=(3,),
    untie=("qkv", "norm"),
    memory_keys=5,
    memory_top_k=2,
    memory_value_dim=8,
)
OPTIMIZER = OptimizerConfig(values_weight_decay=0.1)


def vocabulary() -> Vocabulary:
    sizes = {"text": 11, "image": 6}
    return Vocabulary(
        tuple(
            TokenizerInfo(name=name, modality=name, vocab_size=size, fingerprint=name)
            for name, size in sizes.items()
        )
    )


def drawn(group: dist.ProcessGroup | None = None, seed: int = 0) -> tuple[Decoder, Optimizer]:
    """A decoder and moments of this rank whose values, as a whole, depend on the seed alone."""
    torch.manual_seed(seed)
    whole = Decoder(CONFIG, vocabulary())
    moments = Optimizer(whole, OPTIMIZER).state_tensors()
    with torch.no_grad():
        for value in (*whole.state_dict().values(), *moments.values()):
            value.copy_(torch.rand(value.shape) * 100)
    decoder = Decoder(CONFIG, vocabulary(), group)
    if group is not None:
        kept = {decoder.values.weight} if decoder.values is not None else set()
        for block in decoder.blocks:
            fully_shard(block, ignored_params=kept)
        fully_shard(decoder, ignored_params=kept, shard_placement_fn=by_evenest)
    optimizer = Optimizer(decoder, OPTIMIZER)
    state = optimizer.state_tensors()
    for name, value in (checkpoint.named_tensors(decoder) | state).items():
        put(value, (whole.state_dict() | moments)[name])
    optimizer.load_state_tensors(state)
    return decoder, optimizer


def by_evenest(parameter: torch.nn.Parameter) -> Shard | None:
    """Some parameters are cut by columns, as weights are that all modalities share."""
    return (
        Shard(1) if parameter.ndim > 1 and parameter.shape[1] % dist.get_world_size() == 0 else None
    )


def put(own: torch.Tensor, whole: torch.Tensor) -> None:
    if not isinstance(own, DTensor):
        own.detach().copy_(whole)
        return
    assert own.shape == whole.shape
    part = whole
    for size, rank, placement in zip(
        own.device_mesh.shape, own.device_mesh.get_coordinate() or (), own.placements, strict=True
    ):
        if isinstance(placement, Shard):
            parts = part.chunk(size, dim=placement.dim)
            empty = part.narrow(placement.dim, 0, 0)
            part = parts[rank] if rank < len(parts) else empty
    own.to_local().detach().copy_(part)


def everything(decoder: Decoder, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    tensors = checkpoint.named_tensors(decoder) | optimizer.state_tensors()
    return {
        name: (value.to_local() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in tensors.items()
    }


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []


def save(run: Path, seed: int, step: int, group: dist.ProcessGroup | None = None) -> None:
    decoder, optimizer = drawn(group, seed)
    with Saver(run) as saver:
        saver.save(decoder, optimizer, {"step": step})
        with torch.no_grad():  # what comes after the call is not saved
            for parameter in decoder.parameters():
                parameter.zero_()
        saver.wait(last=True)


def load(run: Path, seed: int, step: int, group: dist.ProcessGroup | None = None) -> None:
    """Load into a model of other values, and compare each rank's part."""
    wanted = everything(*drawn(group, seed))
    decoder, optimizer = drawn(group, seed + 1)
    assert run_store.load(run / "checkpoints" / f"step-{step}", decoder, optimizer)["step"] == step
    assert_equal(everything(decoder, optimizer), wanted)


def full(run: Path, seed: int, step: int, group: dist.ProcessGroup) -> None:
    """The disk of the last rank has no space for one save."""
    decoder, optimizer = drawn(group, seed)
    write = tensor_files._write_file
    with Saver(run) as saver:
        if group.rank() == group.size() - 1:
            tensor_files._write_file = no_space
        saver.save(decoder, optimizer, {"step": step})
        saver.wait()
        tensor_files._write_file = write
        assert "No space left" in saver.failure
        dist.barrier()
        assert not list((run / "checkpoints").glob(f"*step-{step}*"))
        saver.save(decoder, optimizer, {"step": step})
        saver.wait(last=True)


def no_space(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


Call = tuple[str, int, int]
"""save, load or full, the seed of the values, and the step."""


def child(rank: int, ranks: int, run: Path, calls: list[Call]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(run / f"store-{ranks}-{calls[0][0]}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for name, seed, step in calls:
        {"save": save, "load": load, "full": full}[name](run, seed, step, dist.group.WORLD)
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


def in_processes(ranks: int, run: Path, *calls: Call) -> None:
    """Children of a server that has imported all already, which makes them quick to start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "plait.models.training.run_store"])
    found = [context.Process(target=child, args=(r, ranks, run, list(calls))) for r in range(ranks)]
    for process in found:
        process.start()
    for process in found:
        process.join(timeout=300)
    assert [process.exitcode for process in found] == [0] * ranks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoint step-2 of seed 5, written by two processes."""
    run = tmp_path_factory.mktemp("two")
    in_processes(2, run, ("save", 5, 2))
    return run


def test_shards_of_two_processes_are_read_by_one_and_four_and_back(two):
    load(two, 5, 2)
    in_processes(4, two, ("load", 5, 2), ("save", 6, 4))
    load(two, 6, 4)
    save(two, 7, 1)
    one, wanted = two / "checkpoints" / "step-1", everything(*drawn(seed=7))
    files = load_file(one / "model.safetensors"), load_file(one / "optimizer.safetensors")
    assert_equal(files[0] | files[1], wanted)
    in_processes(2, two, ("load", 6, 4), ("load", 7, 1), ("full", 8, 5))
    load(two, 8, 5)


def test_each_rank_writes_its_part_and_nothing_is_written_twice(two):
    folder = two / "checkpoints" / "step-2"
    ranks = ("00001-of-00002", "00002-of-00002")
    parts = {f"{kind}-{r}.safetensors" for kind in ("model", "optimizer") for r in ranks}
    others = {"config.json", "state.json", "checksums.json"}
    assert {p.name for p in folder.iterdir()} == parts | others
    elements: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                elements[name] = elements.get(name, 0) + file.get_tensor(name).numel()
    wanted = {name: value.numel() for name, value in everything(*drawn(seed=5)).items()}
    assert elements == wanted
    sizes = [p.stat().st_size for p in folder.glob("model*")]
    assert max(sizes) < 1.3 * min(sizes)


def test_a_decoder_is_loaded_from_the_files_of_two(two, tmp_path):
    folder = two / "checkpoints" / "step-2"
    assert_equal(checkpoint.load(folder).state_dict(), drawn(seed=5)[0].state_dict())
    shutil.copytree(folder, tmp_path / "part")
    (tmp_path / "part" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"00001-of-00002\.safetensors: the file is missing"):
        checkpoint.load(tmp_path / "part")
    (tmp_path / "part" / tensor_files.CHECKSUMS).unlink()
    with pytest.raises(ConfigError, match=r"model-00002-of-00002.safetensors: .* (is|are) missing"):
        checkpoint.load(tmp_path / "part")


def test_all_types_and_shapes(tmp_path):
    tensors = {
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "half": torch.arange(7).to(torch.bfloat16),
        "numbers:step": torch.arange(5, dtype=torch.int32),
        "strided": torch.arange(12.0).reshape(3, 4).T,
    }
    sums: dict[str, str] = {}
    tensor_files.save(tensors, tensor_files.staged(tensors), tmp_path / "x", sums.update)
    assert sums == {p.name: tensor_files.checksum(p) for p in (tmp_path / "x").iterdir()}
    model = {name: torch.empty_like(t) for name, t in tensors.items() if ":" not in name}
    tensor_files.read_into(model, tmp_path / "x", "model")
    assert_equal(model, {name: t for name, t in tensors.items() if ":" not in name})
    assert_equal(load_file(tmp_path / "x" / "model.safetensors"), model)
    with pytest.raises(ConfigError, match=r"float32 \[5\].*"):
        tensor_files.read_into({"numbers:step": torch.zeros(5)}, tmp_path / "x", "optimizer")
