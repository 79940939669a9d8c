import tomllib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.flops import count_parameters, flops_per_token

from .conftest import CONFIGS, PRESETS

AS_THEY_ARE = {
    f"{p.stem} as it is": ModelConfig.from_table(tomllib.loads(p.read_text())["model"])
    for p in PRESETS
}


@pytest.mark.parametrize("name", [*CONFIGS, *AS_THEY_ARE])
def test_flops_equal_what_torch_counts(name, new_decoder, new_batch, monkeypatch):
    """Attention and head too; exactly, where neither depths nor auxiliary routers round."""
    monkeypatch.setenv("PLAIT_KERNELS", "reference")
    config = {**CONFIGS, **AS_THEY_ARE}[name]
    decoder, batch = new_decoder(config).train(), even_batch(new_batch)
    with FlopCounterMode(display=False) as counter:
        losses = decoder.loss(batch)
        losses.sum_M.sum().backward()
    counts = tokens_by_modality(batch)
    per_token = flops_per_token(decoder, 96)
    wanted = sum(n * per_token[name] for name, n in counts.items())
    head = 6 * decoder.head.numel()  # torch saw it at the 95 positions with a target
    rounded = any(config.depths) or config.causal_choice == "auxiliary"
    assert counter.get_total_flops() == pytest.approx(wanted - head, rel=0.05 if rounded else 1e-9)


def even_batch(new_batch):
    """96 tokens, of each modality as many as any number of experts divides."""
    batches = (new_batch([(96,)], seed=seed) for seed in range(5000))
    return next(
        b for b in batches if all(n and n % 12 == 0 for n in tokens_by_modality(b).values())
    )


def tokens_by_modality(batch) -> dict[str, int]:
    masks = zip(batch.modalities, batch.modality_masks, strict=True)
    return {name: int(mask_BT.sum()) for name, mask_BT in masks}


def test_counts_of_a_dense_model(new_decoder):
    decoder = new_decoder(ModelConfig(dim=32, n_layers=1, hidden_dim=48, qk_norm="none"))
    V = decoder.vocabulary.size
    block = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    sizes = count_parameters(decoder)
    M = len(decoder.vocabulary.modalities)
    assert sizes["total"] == 2 * (V + M) * 32 + block + 32
    assert set(sizes["active"].values()) == {V * 32 + block + 32}
    assert flops_per_token(decoder, 10)["text"] == 6 * (V * 32 + block - 64) + 12 * 32 * 10


def test_active_parameters_of_sparse_models(new_decoder):
    sizes = {name: count_parameters(new_decoder(config)) for name, config in CONFIGS.items()}
    dense = sizes["dense"]["active"]
    assert sizes["mot"]["active"] == dense
    blocks = (
        dense["text"] - 32 - CONFIGS["dense"].dim * new_decoder(CONFIGS["dense"]).vocabulary.size
    )
    assert sizes["mot"]["total"] == sizes["dense"]["total"] + 2 * blocks
    assert sizes["moma"]["active"]["image"] == dense["image"] + 2 * 4 * 32
    hybrid = sizes["hybrid"]["active"]
    assert hybrid["image"] - hybrid["speech"] == 2 * 32, "3 experts and 1: the router differs"


def test_memory_reads_a_part_of_the_table(new_decoder):
    config = CONFIGS["no_gate"]
    decoder = new_decoder(config)
    parts = [p.numel() for name, p in decoder.named_parameters() if "memory" not in name]
    sizes = count_parameters(decoder)
    unread = config.memory_keys**2 * 32 - 2 * config.memory_heads * config.memory_top_k * 32
    unread += decoder.modality_embedding.numel() + decoder.modality_head.numel()
    assert sizes["total"] - sizes["active"]["text"] == decoder.embedding.numel() + unread
    assert sum(parts) == sizes["total"]
    assert decoder.values is not None


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_have_about_the_same_products_a_token(path, vocabulary):
    costs = {}
    for preset in (path, path.with_name("dense.toml")):
        config = ModelConfig.from_table(tomllib.loads(preset.read_text())["model"])
        with torch.device("meta"):
            costs[preset] = flops_per_token(Decoder(config, vocabulary), 1)["text"]
    assert costs[path] == pytest.approx(costs[path.with_name("dense.toml")], rel=0.2)
