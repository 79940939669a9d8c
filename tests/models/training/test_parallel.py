"""Several processes are one: losses, gradients, norms and thresholds, for presets and mixtures.

Half of the ranks have no token at all, or no image and no speech, and wait for nobody.
"""

import os
import socket
from dataclasses import fields, replace

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor

from plait.models.decoder import VALUES, Decoder
from plait.models.ranks import ALONE, Ranks
from plait.models.training import parallel
from plait.models.training.parallel import ParallelConfig
from plait.pipeline.batch import Batch
from plait.pipeline.vocabulary import Vocabulary

from ..conftest import CONFIGS, PRESETS, gradients


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both."""
    values = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in fields(Batch)}
    return replace(
        first, **{k: torch.cat(v) for k, v in values.items() if isinstance(v[0], Tensor)}
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return replace(batch, **{k: v[rows] for k, v in values.items() if isinstance(v, Tensor)})


def learned(decoder: Decoder, batch: Batch, targets: int) -> dict[str, Tensor]:
    """What a step's passes give: sums of losses, gradients, their norm, statistics, buffers."""
    decoder.train()
    torch.manual_seed(7)
    losses = decoder.loss(batch)
    (losses.sum_M.sum() / targets).backward()
    found = {f"gradient/{name}": value for name, value in gradients(decoder).items()}
    found |= {f"buffer/{name}": value for name, value in decoder.named_buffers()}
    found |= {f"statistic/{name}": value for name, value in losses.statistics.items()}
    found["losses"] = decoder.ranks.sum(losses.sum_M.detach())
    parameters = [p for name, p in decoder.named_parameters() if name != VALUES]
    found["norm"] = torch.tensor(parallel.clip_norm(parameters, 0.01))
    return {name: value.detach().clone() for name, value in found.items()}


def worker(rank: int, size: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    with parallel.processes() as ranks:
        for name, case in torch.load(path, weights_only=False).items():
            compare(name, case, ranks)


def compare(name: str, case: dict, ranks: Ranks) -> None:
    torch.manual_seed(0)
    decoder = Decoder(case["config"], case["vocabulary"], ranks.group)
    config = ParallelConfig(kind=case["kind"], shard_size=2 if case["kind"] == "hybrid" else 0)
    parallel.distribute(decoder, config, ranks)
    each = len(case["batch"].tokens_BT) // ranks.size
    own = rows_of(case["batch"], slice(ranks.rank * each, (ranks.rank + 1) * each))
    found = learned(decoder, own, case["targets"])
    assert found.keys() == case["wanted"].keys(), name
    for key, wanted in case["wanted"].items():
        value = found[key].full_tensor() if isinstance(found[key], DTensor) else found[key]
        if key == f"gradient/{VALUES}":
            wanted = wanted.chunk(ranks.size, 1)[ranks.rank]
        message = f"{name}, {key}: {{}}".format
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=2e-6, msg=message)


@pytest.fixture(scope="module")
def batches(new_batch) -> dict[str, Batch]:
    """Rows of which the first ones, another rank's, lack what the others have."""
    mixed = new_batch([(9, 14), (5, 3, 15)], seed=1)
    text = new_batch([(23,), (13, 8)], seed=2, modalities=("text",))
    nothing = rows_of(new_batch([(23,), ()]), slice(1, None))
    return {
        "text": joined(text, mixed),
        "nothing": joined(joined(nothing, nothing), mixed),
        "both": joined(joined(nothing, rows_of(text, slice(1))), mixed),
    }


def case_of(name: str, kind: str, batch: Batch, vocabulary: Vocabulary) -> dict:
    """A model, a batch, and what one process learns of it."""
    torch.manual_seed(0)
    decoder, targets = Decoder(CONFIGS[name], vocabulary), int(batch.loss_mask_BT.sum())
    case = {"config": CONFIGS[name], "vocabulary": vocabulary, "kind": kind, "batch": batch}
    return {**case, "targets": targets, "wanted": learned(decoder, batch, targets)}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_learn_what_one_does(size, batches, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kinds = {
        2: [(p.stem, "replicate", "text") for p in PRESETS]
        + [(name, "shard", "nothing") for name in CONFIGS],
        4: [(name, "hybrid", "both") for name in ("moma", "everything", "depth", "depth_dense")],
    }
    cases = {" ".join(k): case_of(*k[:2], batches[k[2]], vocabulary) for k in kinds[size]}
    torch.save(cases, tmp_path / "cases.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (size, port, str(tmp_path / "cases.pt")), nprocs=size)


def test_own_rows_are_filled_up_with_padding(new_batch):
    batch = new_batch([(9, 14), (5, 3, 15), (23,)])

    def make(numbers):
        return rows_of(batch, list(numbers))  # pyright: ignore[reportArgumentType]

    assert make(range(3)).tokens_BT.equal(parallel.own_rows(make, range(3), 4, ALONE).tokens_BT)
    parts = [parallel.own_rows(make, range(3), 4, Ranks(rank=r, size=2)) for r in range(2)]
    whole = joined(*parts)
    assert whole.tokens_BT[:3].equal(batch.tokens_BT)
    assert whole.loss_mask_BT.sum() == batch.loss_mask_BT.sum()
    assert whole.padding_BT[3].all()
    assert not whole.padding_BT[:3].any()
