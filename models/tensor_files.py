"""Named tensors in safetensors files, each rank its own shards, by `torch.distributed.checkpoint`.

Planning, deduplication and resharding are torch's; what is ours is the storage, for torch's own
keeps its index in a pickle. One process writes `model.safetensors` and `optimizer.safetensors`;
of several, rank 2 of 4 writes `model-00003-of-00004.safetensors`, in whose header stands where in
the whole tensors its parts begin (as `HuggingFaceStorageWriter` notes it). Either is read by any
number of processes, each the parts that it holds, to the bit. `checksums.json` has the xxh3 of
every file.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import xxhash
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save as save_by_all
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from plait.tokenizers.errors import ConfigError

CHECKSUMS = "checksums.json"
BLOCK = 1 << 23
"""Bytes that are written, and then added to the checksum, at once."""
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names."""


def staged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in CPU memory of what this rank holds of each tensor."""
    found = {}
    for name, tensor in tensors.items():
        own = tensor.detach()
        own = own.to_local() if isinstance(own, DTensor) else own
        copy = torch.empty(own.shape, dtype=own.dtype, pin_memory=own.is_cuda)
        found[name] = copy.copy_(own, non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found


def save(
    tensors: Mapping[str, Tensor],
    copies: Mapping[str, Tensor],
    folder: Path,
    finish: Callable[[dict[str, str]], None],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the shards of all ranks of `group` into a new folder.

    `tensors` are looked at for their shapes and shards alone; what is written is `copies`, from
    `staged`. When all have written, one rank calls `finish` with the checksums by file name.
    """
    writer = Writer(folder, copies, finish, group)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    if group is not None:
        save_by_all(dict(tensors), storage_writer=writer, planner=planner, process_group=group)
        return
    planner.set_up_planner(dict(tensors), is_coordinator=True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).value()])


class Writer(StorageWriter):
    """Writes a rank's part of a plan to safetensors files."""

    def __init__(
        self,
        folder: Path,
        copies: Mapping[str, Tensor],
        finish: Callable[[dict[str, str]], None],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.folder, self.copies, self._finish = folder, copies, finish
        self.suffix = ""
        if group is not None and group.size() > 1:
            self.suffix = f"-{group.rank() + 1:05}-of-{group.size():05}"

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Nothing to do before the plan."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """One rank makes the folder, before any writes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write one file for the model and one for the optimizer."""
        results = []
        for kind in ("model", "optimizer"):
            items = [i for i in plan.items if _kind(i.index.fqn) == kind and _holds_any(i)]
            if items:
                path = self.folder / f"{kind}{self.suffix}.safetensors"
                checksum = _write_file(path, self._blocks(items))
                result = WriteResult(MetadataIndex(path.name), path.stat().st_size, checksum)
                results.append(result)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """One rank, after all have written."""
        self._finish({r.index.fqn: r.storage_data for found in results for r in found})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any folder will do."""
        return True

    def _blocks(self, items: Iterable[WriteItem]) -> Iterator[bytes | memoryview]:
        """A safetensors file: its header, then the tensors, those of wide types first."""
        ordered = sorted(items, key=lambda i: (-self.copies[i.index.fqn].itemsize, i.index.fqn))
        header: dict[str, object] = {}
        begins, at = {}, 0
        for item in ordered:
            name, tensor = item.index.fqn, self.copies[item.index.fqn]
            assert item.tensor_data is not None
            assert item.tensor_data.chunk.sizes == tensor.shape, name
            begins[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            kind, end = TYPES[tensor.dtype], at + tensor.nbytes
            header[name] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": [at, end]}
            at = end
        about = {"format": "pt"}
        if self.suffix:
            about |= {"DCP_SHARDING_INFO": json.dumps(begins), "DCP_VERSION": "1.0"}
        text = json.dumps({"__metadata__": about, **header}).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        for item in ordered:
            flat = self.copies[item.index.fqn].reshape(-1).view(torch.uint8)
            for part in flat.split(BLOCK):
                yield part.numpy().data


def read_into(tensors: Mapping[str, Tensor], folder: Path, kind: str) -> None:
    """Fill the tensors in place, each rank the shards it holds; `kind` is model or optimizer.

    Each rank reads for itself. ConfigError where the files do not hold just these tensors.
    """
    files = [*folder.glob(f"{kind}*.safetensors")] or [folder / f"{kind}.safetensors"]
    where = str(files[0] if len(files) == 1 else folder / f"{kind}-*.safetensors")
    reader = HuggingFaceStorageReader(str(folder))
    try:
        metadata = reader.read_metadata()
        found = {
            name: about
            for name, about in metadata.state_dict_metadata.items()
            if _kind(name) == kind and isinstance(about, TensorStorageMetadata)
        }
        if not found:
            raise ConfigError(f"{where}: the file is missing; it holds the {kind}'s tensors")
        _check(tensors, found, where)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner(dict(tensors), metadata, is_coordinator=True)
        reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: {error}") from None
    except SafetensorError as error:
        raise ConfigError(f"{where}: not a whole safetensors file: {error}") from None


def checksum(path: Path) -> str:
    """The xxh3 of a file."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def faults(folder: Path, rank: int = 0, ranks: int = 1) -> list[str]:
    """What is wrong with a folder's files, or a rank's part of them, by the checksums."""
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        assert isinstance(wanted, dict)
    except (OSError, ValueError, AssertionError) as error:
        return [f"{folder / CHECKSUMS}: cannot be read: {error}"]
    found = []
    for name, value in sorted(wanted.items())[rank::ranks]:
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: the file is missing")
        elif (now := checksum(path)) != value:
            found.append(f"{path}: damaged: its xxh3 is {now}, and was {value} when it was written")
    return found


def write_synced(path: Path, text: str) -> str:
    """Write a small file and wait until the disk has it; its xxh3."""
    return _write_file(path, [text.encode()])


def sync(folder: Path) -> None:
    """Wait until the disk has a folder's names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    found = xxhash.xxh3_128()
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)
            found.update(block)
        file.flush()
        os.fsync(file.fileno())
    return found.hexdigest()


def _kind(name: str) -> str:
    """`optimizer` for a parameter's moment, as `blocks.0.norm:exp_avg`."""
    return "optimizer" if ":" in name else "model"


def _holds_any(item: WriteItem) -> bool:
    """A rank may have nothing of a short tensor; an empty tensor is kept by one rank."""
    data = item.tensor_data
    assert data is not None
    return data.chunk.sizes.numel() > 0 or data.size.numel() == 0


def _check(
    expected: Mapping[str, Tensor], found: Mapping[str, TensorStorageMetadata], where: str
) -> None:
    """ConfigError that names the tensors which are missing, too many or of another shape."""
    wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is not of this model" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        want = _describe(expected[name].dtype, expected[name].shape)
        have = _describe(found[name].properties.dtype, found[name].size)
        if want != have:
            wrong.append(f"{name} is {have}, the configuration says {want}")
        elif sum(part.sizes.numel() for part in found[name].chunks) < found[name].size.numel():
            wrong.append(f"parts of {name} are missing")
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(f"{where}: {'; '.join(sorted(wrong)[:5])}{more}")


def _describe(dtype: torch.dtype, shape: Iterable[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
