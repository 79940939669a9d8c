import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.models import checkpoint
from plait.models.config import ModelConfig
from plait.tokenizers.errors import ConfigError

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, untie=("ffn",))


def test_a_model_is_whole_on_its_device(new_decoder, tmp_path):
    checkpoint.save(new_decoder(CONFIG), tmp_path)
    loaded = checkpoint.load(tmp_path, "meta")
    tensors = (*loaded.parameters(), *loaded.buffers())
    assert {x.device.type for x in tensors} == {"meta"}


def test_round_trip(config, new_decoder, new_batch, tmp_path):
    decoder, batch = new_decoder(config, seed=1), new_batch([(9, 14)])
    checkpoint.save(decoder, tmp_path / "model")
    state = torch.get_rng_state()
    loaded = checkpoint.load(tmp_path / "model").eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.config, loaded.vocabulary) == (decoder.config, decoder.vocabulary)
    assert torch.equal(loaded(batch), decoder(batch))
    loaded.loss(batch).sum_M.sum().backward()
    other = new_decoder(config, seed=2)
    checkpoint.load_into(other, tmp_path / "model")
    assert torch.equal(other(batch), decoder(batch))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_same_model_same_bytes(new_decoder, tmp_path):
    for name in ("a", "b"):
        checkpoint.save(new_decoder(CONFIG), tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def folder(new_decoder, tmp_path):
    checkpoint.save(new_decoder(CONFIG), tmp_path)
    return tmp_path


def change_config(folder, **model) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["model"] |= model
    (folder / "config.json").write_text(json.dumps(content))


def change_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_strange_tensors_are_named(folder):
    change_weights(folder, lambda tensors: tensors.pop("head"))
    with pytest.raises(ConfigError, match=r"model\.safetensors: head is missing"):
        checkpoint.load(folder)
    change_weights(folder, lambda tensors: tensors.update(tail=torch.zeros(2), head=torch.zeros(2)))
    with pytest.raises(ConfigError, match=r"head is float32 \[2\], .*tail is not of this model"):
        checkpoint.load(folder)


def test_shapes_of_another_configuration(folder):
    change_config(folder, hidden_dim=8)
    with pytest.raises(ConfigError, match=r"gate_up.weight is .*128, 16\], the conf.* 16, 16\]"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json: the file is missing"),
        (lambda f: (f / "model.safetensors").unlink(), r"safetensors: the file is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not a model's"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json: not a model's"),
        (lambda f: (f / "config.json").write_text("{}"), r"config\.json: not a model's"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:900]
            ),
            "not a whole safetensors file",
        ),
        (lambda f: change_config(f, colour="red"), r"config\.json: model\.colour: no such key"),
        (lambda f: change_config(f, dim="wide"), r"model\.dim: 'wide' should be of type int"),
    ],
)
def test_damaged_folder(damage, message, folder):
    damage(folder)
    with pytest.raises(ConfigError, match=message):
        checkpoint.load(folder)


def test_another_format(folder):
    text = (folder / "config.json").read_text().replace('"format": 1', '"format": 2')
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="format 2; this version reads format 1"):
        checkpoint.load(folder)


def test_load_into_another_model(folder, new_decoder):
    with pytest.raises(ConfigError, match="configuration is not the model's"):
        checkpoint.load_into(new_decoder(replace(CONFIG, z_loss=0.1)), folder)


def test_interrupted_save_keeps_the_old_model(folder, new_decoder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def stop(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(new_decoder(CONFIG, seed=5), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    checkpoint.load(folder)
