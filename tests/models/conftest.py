"""Small vocabularies, batches and configurations that the tests of models share."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plait.models.config import ModelConfig
from plait.models.decoder import VALUES, Decoder
from plait.pipeline.batch import Batch
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary

PRESETS = sorted((Path(__file__).parents[2] / "models" / "presets").glob("*.toml"))

SMALL = {
    "dim": 32,
    "n_layers": 2,
    "hidden_dim": 48,
    "memory_keys": 8,
    "memory_top_k": 4,
    "state_dim": 4,
}
COMBINATIONS = {
    "post": {"norm": "post", "qk_norm": "layer", "untie": ("qkv", "o", "ffn", "norm")},
    "hybrid": {
        "mixers": ("mamba", "attention"),
        "channels": ("none", "experts"),
        "experts": (2, 3, 1),
        "untie": ("in", "out", "qkv", "norm"),
        "router_noise": 1.0,
    },
    "auxiliary": {
        "channels": ("experts", "memory"),
        "experts": (3,),
        "untie": ("qkv", "o"),
        "expert_choice": "row",
        "causal_choice": "auxiliary",
    },
    "experts_post": {"channels": ("experts",), "norm": "post", "untie": ("norm",)},
    "mot_memory": {
        "channels": ("ffn", "memory"),
        "untie": ("ffn", "o"),
        "memory_value_dim": 24,
        "memory_qk_norm": False,
    },
    "beside": {"channels": ("ffn+memory", "ffn"), "untie": ("ffn", "norm")},
    "no_gate": {"channels": ("memory",), "memory_gate": False, "qk_norm": "none"},
    "mamba_experts": {
        "mixers": ("mamba",),
        "channels": ("experts",),
        "experts": (2, 3, 1),
        "untie": ("in", "x", "dt", "out", "norm"),
    },
    "everything": {
        "mixers": ("mamba", "attention"),
        "channels": ("memory", "experts"),
        "untie": ("x", "out", "qkv", "o"),
        "causal_choice": "auxiliary",
    },
    "depth": {
        "channels": ("experts",),
        "experts": (2, 3, 1),
        "untie": ("qkv", "norm"),
        "expert_choice": "row",
        "depth_capacity": 0.5,
    },
    "depth_hybrid": {
        "mixers": ("mamba", "attention"),
        "untie": ("in", "dt", "o"),
        "depth_capacity": 0.3,
    },
    "depth_dense": {
        "channels": ("ffn", "memory"),
        "norm": "post",
        "depth_capacity": 0.25,
        "causal_choice": "auxiliary",
    },
    "mamba_dt": {"mixers": ("mamba",), "channels": ("ffn",), "untie": ("dt",)},
}


def small(table: dict) -> ModelConfig:
    """A preset or combination at a size for tests."""
    return ModelConfig.from_table({**table, **SMALL})


CONFIGS = {p.stem: small(tomllib.loads(p.read_text())["model"]) for p in PRESETS}
CONFIGS |= {name: small(table) for name, table in COMBINATIONS.items()}


@pytest.fixture(params=CONFIGS)
def config(request) -> ModelConfig:
    """Each preset and some combinations, small."""
    return CONFIGS[request.param]


@pytest.fixture(params=[p.stem for p in PRESETS])
def preset(request) -> ModelConfig:
    """Each preset, small."""
    return CONFIGS[request.param]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """Three modalities, 32 ids each but text."""
    return Vocabulary(
        tuple(
            TokenizerInfo(name=name, modality=name, vocab_size=size, fingerprint=name)
            for name, size in (("text", 40), ("image", 32), ("speech", 24))
        )
    )


@pytest.fixture(scope="session")
def new_decoder(vocabulary) -> Callable[..., Decoder]:
    """`new_decoder(config, seed=0)`: a decoder, in eval mode."""

    def build(config: ModelConfig, seed: int = 0) -> Decoder:
        torch.manual_seed(seed)
        return Decoder(config, vocabulary).eval()

    return build


@pytest.fixture(scope="session")
def new_batch(vocabulary) -> Callable[..., Batch]:
    """`new_batch(rows)`: rows of document lengths, padded to one length; random runs of tokens."""

    def build(
        rows: Sequence[Sequence[int]],
        seed: int = 0,
        padding: int = 0,
        modalities: Sequence[str] = ("text", "image", "speech"),
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        T = max(map(sum, rows)) + padding
        batch = empty_batch(len(rows), T, vocabulary)
        for b, lengths in enumerate(rows):
            start = 0
            for document, length in enumerate(lengths):
                here = slice(start, start + length)
                batch.document_BT[b, here] = document
                batch.position_BT[b, here] = torch.arange(length)
                batch.tokens_BT[b, here] = _tokens(length, modalities, vocabulary, generator)
                batch.loss_mask_BT[b, start : max(start, start + length - 1)] = True
                start += length
        table = torch.from_numpy(vocabulary.modality_table)
        return replace(batch, modality_BT=table[batch.tokens_BT])

    return build


def gradients(decoder: Decoder) -> dict[str, torch.Tensor | None]:
    """All gradients by name, the table's made dense."""
    found = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    if decoder.values is not None:
        assert found[VALUES] is None
        found[VALUES] = decoder.values.gradient().to_dense()
    return found


def empty_batch(B: int, T: int, vocabulary: Vocabulary) -> Batch:
    """Rows of nothing but padding."""
    return Batch(
        tokens_BT=torch.zeros(B, T, dtype=torch.int64),
        modality_BT=torch.zeros(B, T, dtype=torch.uint8),
        document_BT=torch.full((B, T), -1, dtype=torch.int32),
        position_BT=torch.zeros(B, T, dtype=torch.int32),
        loss_mask_BT=torch.zeros(B, T, dtype=torch.bool),
        modalities=vocabulary.modalities,
    )


def _tokens(
    length: int, modalities: Sequence[str], vocabulary: Vocabulary, generator: torch.Generator
) -> torch.Tensor:
    """Runs of 1 to 6 tokens of random modalities."""
    runs = [torch.zeros(0, dtype=torch.int64)]
    while sum(map(len, runs)) < length:
        name = modalities[int(torch.randint(len(modalities), (), generator=generator))]
        size = int(torch.randint(1, 7, (), generator=generator))
        local = torch.randint(vocabulary.info(name).vocab_size, (size,), generator=generator)
        runs.append(local + vocabulary.start(name))
    return torch.cat(runs)[:length]
