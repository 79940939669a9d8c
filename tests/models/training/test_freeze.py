"""Frozen weights keep every bit, all others move; groups have their own numbers."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from plait.models.config import ModelConfig
from plait.models.decoder import VALUES, Decoder
from plait.models.training.names import modality_rows, owners
from plait.models.training.optimizer import GroupConfig, Optimizer, OptimizerConfig
from plait.tokenizers.errors import ConfigError

from ..conftest import CONFIGS

MOT = CONFIGS["mot"]


def train(decoder: Decoder, batch, optimizer: Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        losses = decoder.train().loss(batch)
        (losses.sum_M.sum() / losses.count_M.sum()).backward()
        optimizer.clip()
        optimizer.step(1.0)


def copies(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in decoder.state_dict().items()}


def still_rows(decoder: Decoder, modality: str) -> dict[str, torch.Tensor]:
    number = decoder.vocabulary.modalities.index(modality)
    return {name: owner == number for name, owner in modality_rows(decoder).items()}


@pytest.mark.parametrize(
    "name",
    ["mot", "moma", "mixture_of_mamba", "post", "hybrid", "auxiliary", "everything", "depth"],
)
def test_a_modality_is_frozen_to_the_bit_and_all_else_moves(name, new_decoder, new_batch):
    decoder = new_decoder(CONFIGS[name])
    config = OptimizerConfig(freeze=("modality:text",), weight_decay=0.5, lr=0.01)
    optimizer = Optimizer(decoder, config)
    before, still = copies(decoder), still_rows(decoder, "text")
    stacked = [n for n, rows in still.items() if n != "prior_V" and not rows.all()]
    assert len(stacked) > 4, "slices, embedding, head, and a modality's own"
    train(decoder, new_batch([(40, 30), (25, 45)]), optimizer)
    after = decoder.state_dict()
    for n, rows in still.items():
        assert torch.equal(before[n][rows], after[n][rows]), n
    for n, parameter in decoder.named_parameters():
        if n != VALUES:
            moved = (before[n] != after[n]).flatten(1).any(1) if parameter.dim() > 1 else None
            live = ~still.get(n, torch.zeros(len(parameter), dtype=torch.bool))
            assert moved is None or moved[live].all() or "experts" in CONFIGS[name].channels, n
            assert not torch.equal(before[n], after[n]), n
    for n, partial in optimizer.partial.items():
        state, parameter = optimizer.adam.state[partial.parameter], partial.parameter
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not state[moment][~partial.live].any() and state[moment].any(), n
        assert parameter.grad is not None and not parameter.grad[~partial.live].any()


def test_a_gradient_that_is_no_number_freezes_too(new_decoder):
    """Zeros are written, not multiplied, and the norm is of what learns."""
    decoder = new_decoder(MOT)
    optimizer = Optimizer(decoder, OptimizerConfig(freeze=("modality:image",)))
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = decoder.blocks[0].mixer.qkv.weight
    weight.grad[1] = float("nan")
    assert optimizer.clip() == 0.0
    weight.grad[0, 0, 0] = 3.0
    assert optimizer.clip() == pytest.approx(3.0)


def test_a_live_slice_goes_where_it_would_have_gone(new_decoder, new_batch):
    """The decay that is done by hand is AdamW's; speech alone has a gradient of its own here."""
    batch = new_batch([(30,), (20, 9)])
    found = []
    for frozen in ((), ("modality:speech",)):
        decoder = new_decoder(MOT)
        optimizer = Optimizer(decoder, OptimizerConfig(freeze=frozen, clip=0.0, weight_decay=0.3))
        train(decoder, batch, optimizer, steps=1)
        found.append(decoder.state_dict())
    for name, owner in {**modality_rows(new_decoder(MOT))}.items():
        live = owner != 2
        torch.testing.assert_close(found[0][name][live], found[1][name][live], rtol=1e-6, atol=1e-8)


def test_names_globs_and_only(new_decoder, new_batch):
    decoder, batch = new_decoder(CONFIGS["memory"]), new_batch([(40, 30)])
    frozen = ("blocks.0.*", "values", "norm")
    optimizer = Optimizer(decoder, OptimizerConfig(freeze=frozen))
    before = copies(decoder)
    train(decoder, batch, optimizer)
    same = {n for n, value in decoder.state_dict().items() if torch.equal(value, before[n])}
    wanted = {n for n in before if n.startswith("blocks.0.") or "norm" in n or n == VALUES}
    assert same == wanted | {"prior_V"}
    decoder = new_decoder(MOT)
    config = OptimizerConfig(only=("modality:image", "blocks.1.*"), freeze=("qkv",))
    optimizer = Optimizer(decoder, config)
    before, image = copies(decoder), still_rows(decoder, "image")
    train(decoder, batch, optimizer)
    for n, value in decoder.state_dict().items():
        live = image.get(n, torch.zeros(len(value), dtype=torch.bool))
        live = (live | n.startswith("blocks.1.")) & ("qkv" not in n) & (n != "prior_V")
        assert torch.equal(value[~live], before[n][~live]), n
        assert torch.equal(value, before[n]) != bool(live.any()), n


def test_markers_go_with_their_modality(vocabulary):
    owner = owners(vocabulary)
    marker = vocabulary.specials.index("</image>")
    assert owner[:3].tolist() == [0, 0, 0]
    assert owner[[marker, vocabulary.start("image")]].tolist() == [1, 1]
    assert vocabulary.modality_table[marker] == 0, "their positions are text's all the same"


def test_frozen_thresholds_stay(new_decoder, new_batch):
    config = replace(CONFIGS["moma"], depth_capacity=0.5)
    decoder = new_decoder(config)
    frozen = ("modality:text", "blocks.1.channel.router", "depth")
    train(decoder, new_batch([(60, 50)]), Optimizer(decoder, OptimizerConfig(freeze=frozen)))
    first, second = (block.channel.router.threshold_E for block in decoder.blocks)
    assert not first[:4].any() and first[4:].all() and not second.any()
    assert not decoder.blocks[0].depth.router.threshold_E.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("bloks.0",)}, "freeze: no parameter has bloks.0 in its name; .*blocks.0"),
        ({"only": ("rooter",)}, "only: no parameter has rooter .* did you mean router"),
        ({"freeze": ("modality:video",)}, "no modality 'video'; the data has text, image, speech"),
        ({"freeze": ("*",)}, "every parameter is frozen"),
        (
            {"groups": (GroupConfig(match=("zzz",), lr=1.0),)},
            "groups: no parameter has zzz .* begin",
        ),
    ],
)
def test_a_pattern_that_picks_nothing_is_an_error(options, message, new_decoder):
    with pytest.raises(ConfigError, match=message):
        Optimizer(new_decoder(CONFIGS["moma"]), OptimizerConfig(**options))


@pytest.mark.parametrize("name", ["memory", "beside"])
def test_values_that_could_not_learn_are_refused(name, new_decoder, new_batch):
    """Their gradient comes by way of what looks them up."""
    config = CONFIGS[name]
    first = 1 if name == "memory" else 0
    for only in (("values",), ("values", "head", f"blocks.{first}.channel*out")):
        with pytest.raises(ConfigError, match="train the first memory's keys beside it"):
            Optimizer(new_decoder(config), OptimizerConfig(only=only))
    for beside in ("keys", "embedding", f"blocks.{first}.mixer.o"):
        decoder = new_decoder(config)
        before = copies(decoder)
        optimizer = Optimizer(decoder, OptimizerConfig(only=("values", beside)))
        train(decoder, new_batch([(40, 30)]), optimizer)
        assert not torch.equal(before[VALUES], decoder.state_dict()[VALUES])


def test_groups_have_their_own_numbers(new_decoder, new_batch):
    groups = (
        GroupConfig(match=("router", "values"), lr=0.5, weight_decay=0.25),
        GroupConfig(match=("blocks.0.*norm*",), weight_decay=0.125),
        GroupConfig(match=("embedding",), lr=1e-9),
    )
    config = replace(CONFIGS["moma"], channels=("experts", "memory"))
    decoder = new_decoder(config)
    optimizer = Optimizer(decoder, OptimizerConfig(groups=groups, lr=0.01))
    numbers = optimizer.numbers
    assert numbers["blocks.0.channel.router.weight"] == numbers[VALUES] == (0.5, 0.25)
    assert numbers["blocks.0.mixer_norm.weight"] == (0.01, 0.125)
    assert numbers["blocks.1.mixer_norm.weight"] == (0.01, 0.0)
    assert numbers["head"] == (0.01, 0.1)
    before = copies(decoder)
    train(decoder, new_batch([(40, 30)]), optimizer, steps=1)
    moved = {n: (v - before[n]).abs().max() for n, v in decoder.state_dict().items()}
    assert moved["embedding"] < 1e-7 < 0.005 < moved["head"] < 0.02
    assert 0.4 < moved["blocks.0.channel.router.weight"] < 0.7
    counted = [
        int(line.split(": ")[1].split()[0].replace(",", "")) for line in optimizer.describe()
    ]
    assert sum(counted) == sum(p.numel() for p in decoder.parameters())
    assert any(line.startswith("lr 5.0e-01, weight decay 0.25: ") for line in optimizer.describe())


def test_what_is_frozen_is_described(new_decoder):
    decoder = new_decoder(MOT)
    lines = Optimizer(decoder, OptimizerConfig(freeze=("modality:text", "blocks.0.*"))).describe()
    rows = still_rows(decoder, "text")
    count = sum(
        p.numel() if n.startswith("blocks.0.") else p[rows[n]].numel() if n in rows else 0
        for n, p in decoder.named_parameters()
    )
    assert lines[-1].startswith(f"frozen: {count:,} parameters in ")


def test_groups_that_say_nothing_are_refused():
    with pytest.raises(ConfigError, match="give lr, weight_decay or both"):
        GroupConfig(match=("router",))
    with pytest.raises(ConfigError, match="a group is of whole parameters"):
        GroupConfig(match=("modality:text",), lr=0.1)


def stepped(decoder: Decoder, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Two steps by made-up gradients."""
    config = OptimizerConfig(freeze=("modality:text", "modality_head"), weight_decay=0.5)
    optimizer = Optimizer(decoder, config)
    for _ in range(2):
        for seed, (_, p) in enumerate(decoder.named_parameters()):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            if p.requires_grad:
                sharded = isinstance(p, DTensor)
                p.grad = distribute_tensor(noise, p.device_mesh, p.placements) if sharded else noise
        optimizer.clip()
        optimizer.step(1.0)
    found = {n: p.detach() for n, p in decoder.named_parameters() if n in names}
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in found.items()}


def worker(rank: int, path: str, config: ModelConfig, vocabulary, wanted: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=rank, world_size=2)
    torch.manual_seed(0)
    decoder = Decoder(config, vocabulary)
    fully_shard(decoder, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)))
    for name, tensor in stepped(decoder, list(wanted)).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-7)
    dist.destroy_process_group()


def test_rows_are_frozen_in_sharded_weights_too(new_decoder, vocabulary, tmp_path):
    """Slices of 3 modalities over 2 ranks: one has two, the other one."""
    decoder = new_decoder(MOT)
    before = copies(decoder)
    wanted = stepped(decoder, [name for name, _ in decoder.named_parameters()])
    for name, rows in still_rows(decoder, "text").items():
        if name in wanted:
            assert torch.equal(before[name][rows], wanted[name][rows])
    mp.spawn(worker, (str(tmp_path / "store"), MOT, vocabulary, wanted), nprocs=2)
