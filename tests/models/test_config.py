import subprocess
import sys
import tomllib
from dataclasses import asdict, replace

import pytest

from plait.models.config import ModelConfig
from plait.tokenizers.errors import ConfigError

from .conftest import PRESETS


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets(path):
    table = tomllib.loads(path.read_text())["model"]
    config = ModelConfig.from_table(table)
    assert ModelConfig.from_table(asdict(config)) == config
    assert len(config.blocks) == config.n_layers


def test_the_five_families_are_there():
    names = {path.stem for path in PRESETS}
    assert names >= {"dense", "mot", "moma", "mixture_of_mamba", "memory"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"dimm": 64}, r"model\.dimm: no such key; did you mean dim\?"),
        ({"zzz": 64}, r"model\.zzz: no such key; there is dim, n_layers"),
        ({"dim": "64"}, r"model\.dim: '64' should be of type int"),
        ({"dim": True}, r"model\.dim: True should be of type int"),
        ({"dim": 0}, r"model\.dim: 0 should be an integer >= 1"),
        ({"hidden_dim": -1}, r"model\.hidden_dim: -1 should be an integer >= 0"),
        ({"z_loss": float("nan")}, r"model\.z_loss: nan"),
        ({"capacity": 0}, r"model\.capacity: 0.0 should be above 0"),
        ({"mixers": "attention"}, r"model\.mixers: 'attention' should be of type list"),
        ({"mixers": [1]}, r"model\.mixers: \[1\] should be a list of str"),
        ({"experts": ["4"]}, r"model\.experts: \['4'\] should be a list of int"),
        ({"experts": [0], "channels": ["experts"]}, r"model\.experts: \[0\] should be numbers"),
        ({"mixers": ["rnn"]}, r"model\.mixers: no 'rnn'; there is attention, mamba"),
        ({"mixers": []}, r"model\.mixers: a pattern of 0 for n_layers = 4"),
        ({"channels": ["ffn"] * 5}, r"model\.channels: a pattern of 5 for n_layers = 4"),
        ({"norm": "both"}, r"model\.norm: 'both' is none of"),
        ({"qk_norm": "l2"}, r"model\.qk_norm: 'l2' is none of"),
        ({"untie": ["kv"]}, r"model\.untie: no 'kv'; there is qkv, o"),
        (
            {"untie": ["dt"]},
            r"model\.untie: 'dt' belongs to 'mamba', which is not in model\.mixers",
        ),
        ({"untie": ["ffn"], "channels": ["experts"]}, r"'ffn', which is not in model\.channels"),
        ({"untie": ["o", "o"]}, r"model\.untie: a part is named twice"),
        ({"n_heads": 3}, r"model\.n_heads: dim 128 over 3 heads"),
        ({"n_heads": 128}, r"model\.n_heads: dim 128 over 128 heads should be an even"),
        ({"channels": ["memory"], "memory_top_k": 65}, r"model\.memory_top_k: 65 is more than"),
        ({"channels": ["memory"], "memory_key_dim": 7}, r"model\.memory_key_dim: 7 should be even"),
        (
            {"channels": ["memory"], "memory_gate": False, "memory_value_dim": 64},
            r"model\.memory_value_dim: without memory_gate it should be dim = 128, not 64",
        ),
    ],
)
def test_wrong_configurations_name_the_key(table, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_table(table)


def test_patterns_repeat():
    config = ModelConfig(n_layers=5, mixers=("mamba", "attention"), channels=("none", "ffn", "ffn"))
    assert config.blocks == (
        ("mamba", "none"),
        ("attention", "ffn"),
        ("mamba", "ffn"),
        ("attention", "none"),
        ("mamba", "ffn"),
    )


def test_widths_that_follow_from_dim():
    config = ModelConfig(dim=192)
    assert (config.ffn_dim, config.mamba_dt_rank, config.value_dim, config.key_dim) == (
        *(512, 12, 192, 96),
    )
    assert replace(config, hidden_dim=100).ffn_dim == 100


def test_configuration_imports_no_torch():
    code = "import sys, plait.models.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
