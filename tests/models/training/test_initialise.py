"""Weights of another run: what is loaded is there to the bit, and every tensor is accounted for."""

from dataclasses import replace

import pytest
import torch

from plait.models import checkpoint
from plait.models.config import ModelConfig
from plait.models.decoder import Decoder
from plait.models.training.initialise import InitConfig, begin_with
from plait.pipeline.vocabulary import TokenizerInfo, Vocabulary
from plait.tokenizers.errors import ConfigError

from ..conftest import CONFIGS

DENSE = ModelConfig(dim=32, n_layers=2, hidden_dim=48)
MOT = CONFIGS["mot"]


def vocabulary_of(*kinds: tuple[str, int, str]) -> Vocabulary:
    """(modality, size, fingerprint) of each tokenizer."""
    return Vocabulary(
        tuple(
            TokenizerInfo(name=name, modality=name, vocab_size=size, fingerprint=print_)
            for name, size, print_ in kinds
        )
    )


TEXT = vocabulary_of(("text", 40, "text"))
OTHER = vocabulary_of(("text", 40, "text"), ("image", 50, "another"), ("speech", 24, "speech"))


@pytest.fixture
def saved(tmp_path):
    """`saved(decoder)`: a source of its weights, and a copy of them."""

    def save(config: ModelConfig, vocabulary: Vocabulary):
        torch.manual_seed(5)
        decoder = Decoder(config, vocabulary)
        decoder.set_prior(torch.arange(vocabulary.size))
        checkpoint.save(decoder, tmp_path / "source")
        return str(tmp_path / "source"), decoder.state_dict()

    return save


def begun(config: ModelConfig, vocabulary: Vocabulary, init: InitConfig):
    """The new model's tensors as drawn and as loaded, and the report."""
    torch.manual_seed(1)
    model = Decoder(config, vocabulary)
    drawn = {name: value.clone() for name, value in model.state_dict().items()}
    report = begin_with(model, init)
    assert report.loaded.keys() | report.drawn.keys() == drawn.keys()
    assert not report.loaded.keys() & report.drawn.keys()
    return drawn, model.state_dict(), report


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_model_is_loaded_whole(name, saved, vocabulary):
    source, there = saved(CONFIGS[name], vocabulary)
    _, here, report = begun(CONFIGS[name], vocabulary, InitConfig(source=source))
    assert all(torch.equal(here[n], there[n]) for n in there)
    assert set(report.loaded.values()) == {"whole"} and not report.left and not report.drawn


def test_another_vocabulary_is_matched_by_tokenizer_and_id(saved, vocabulary):
    """Image has another tokenizer here, so that speech lies elsewhere."""
    source, there = saved(MOT, vocabulary)
    drawn, here, report = begun(MOT, OTHER, InitConfig(source=source))
    for n in ("embedding", "head", "prior_V"):
        for name in ("text", "speech"):
            size, a, b = OTHER.info(name).vocab_size, OTHER.start(name), vocabulary.start(name)
            assert torch.equal(here[n][a : a + size], there[n][b : b + size])
        a, b = OTHER.specials.index("</speech>"), vocabulary.specials.index("</speech>")
        assert torch.equal(here[n][a], there[n][b]) and torch.equal(here[n][:3], there[n][:3])
        image = [OTHER.specials.index("<image>"), OTHER.start("image"), OTHER.start("image") + 49]
        assert torch.equal(here[n][image], drawn[n][image])
        assert report.loaded[n] == "69 of 121 rows, those of the same tokenizers"
    assert report.tokenizers == {
        "text": "as there",
        "image": "there, with another fingerprint: its rows are drawn anew",
        "speech": "as there",
    }
    rest = set(there) - {"embedding", "head", "prior_V"}
    assert all(torch.equal(here[n], there[n]) and report.loaded[n] == "whole" for n in rest)


def test_a_text_model_begins_all_modalities(saved):
    """LMFusion (arXiv:2412.15188): a dense text model, copied for each modality."""
    source, there = saved(DENSE, TEXT)
    drawn, here, report = begun(MOT, OTHER, InitConfig(source=source))
    weight = "blocks.1.mixer.qkv.weight"
    assert all(torch.equal(here[weight][m], there[weight][0]) for m in range(3))
    assert report.loaded[weight] == "copied for each modality"
    assert report.loaded["modality_embedding"] == "1 of 3 rows, those of the same modalities"
    assert torch.equal(here["modality_embedding"][0], there["modality_embedding"][0])
    assert torch.equal(here["modality_embedding"][1:], drawn["modality_embedding"][1:])
    assert report.tokenizers["speech"] == "not there: its rows are drawn anew"
    assert "copied for each modality" in "\n".join(report.lines())


def test_modalities_may_be_fewer(saved, vocabulary):
    source, there = saved(MOT, vocabulary)
    _, here, report = begun(MOT, TEXT, InitConfig(source=source))
    weight = "blocks.0.channel.down.weight"
    assert torch.equal(here[weight], there[weight][:1]) and set(report.loaded.values()) == {"whole"}
    source, there = saved(CONFIGS["moma"], vocabulary)
    _, here, _ = begun(CONFIGS["moma"], TEXT, InitConfig(source=source))
    assert torch.equal(here["blocks.0.channel.gate_up"], there["blocks.0.channel.gate_up"][:4])
    sizes = replace(CONFIGS["moma"], experts=(3, 4, 4))
    with pytest.raises(
        ConfigError, match=r"blocks.0.channel.gate_up is \[12, .* \[11, .*init.skip"
    ):
        begun(sizes, vocabulary, InitConfig(source=source))


def test_patterns_say_what_is_loaded(saved, vocabulary):
    source, there = saved(DENSE, vocabulary)
    init = InitConfig(source=source, match=("blocks.*", "norm"), skip=("blocks.1", "ffn*", "qkv"))
    with pytest.raises(ConfigError, match=r"init.skip: no parameter has ffn\* .* names begin with"):
        begun(DENSE, vocabulary, init)
    init = replace(init, skip=("blocks.1", "qkv"))
    drawn, here, report = begun(replace(DENSE, n_layers=3), vocabulary, init)
    for name in here:
        kept = name == "norm.weight" or (name.startswith("blocks.0") and "qkv" not in name)
        assert torch.equal(here[name], there[name] if kept else drawn[name])
        reasons = {"in init.skip", "not in init.match", "not in the source"}
        assert (name in report.loaded) == kept and (kept or report.drawn[name] in reasons)
    assert report.drawn["blocks.2.mixer.o.weight"] == "not in the source"
    assert report.left["head"] == "not in init.match"
    lines = "\n".join(report.lines())
    assert "drawn (in init.skip): " in lines and "left (not in init.match): " in lines


def test_parts_of_another_kind_are_said_to_be_left(saved, vocabulary):
    source, _ = saved(DENSE, vocabulary)
    _, _, report = begun(CONFIGS["moma"], vocabulary, InitConfig(source=source))
    assert report.left["blocks.0.channel.down.weight"] == "no such name here"
    assert report.drawn["blocks.0.channel.down"] == "not in the source"


def test_what_misfits_says_what_to_do(saved, vocabulary, tmp_path):
    source, _ = saved(DENSE, vocabulary)
    with pytest.raises(ConfigError, match=r"embedding is \[103, 32\] there, .* and \d+ more; give"):
        begun(replace(DENSE, dim=64), vocabulary, InitConfig(source=source))
    with pytest.raises(ConfigError, match=r"config.json: the file is missing"):
        begun(DENSE, vocabulary, InitConfig(source=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="nothing of it would be loaded"):
        begun(DENSE, vocabulary, InitConfig(source=source, skip=("*",)))
    mot = replace(DENSE, untie=("o",))
    source, _ = saved(mot, vocabulary)
    with pytest.raises(ConfigError, match=r"o.weight is \[3, 32, 32\] there, \[1, 32, 32\] here"):
        begun(DENSE, vocabulary, InitConfig(source=source))
