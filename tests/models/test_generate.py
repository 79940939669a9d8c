import json
from shutil import copytree

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.models.generate import load_tokenizers
from plait.models.prompts import parse_prompt
from plait.pipeline import cli
from plait.pipeline.vocabulary import Vocabulary
from plait.tokenizers.base import load_tokenizer
from plait.tokenizers.byte_patch import BytePatch, FitOptions
from plait.tokenizers.errors import ConfigError, SampleError


def generate(run, out, *words) -> dict:
    assert cli.main(["generate", str(run), "--out", str(out), *words]) == 0
    return json.loads((out / "samples.json").read_text())


def test_every_modality_can_be_decoded(sample_run, tmp_path):
    report = generate(sample_run, tmp_path, "--prompt", "a red flower", "--max-tokens", "20")
    by_modality = {sample["modality"]: sample for sample in report["samples"]}
    assert set(by_modality) == {"text", "image", "speech", "bytes"}
    image = load_tokenizer(sample_run / "tokenizers" / "image")
    assert len(by_modality["image"]["ids"]) == image.span_length
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size[0] > 0
    samples, rate = soundfile.read(tmp_path / "speech.wav")
    assert rate == 16000
    assert np.isfinite(samples).all()
    speech = load_tokenizer(sample_run / "tokenizers" / "speech")
    assert len(by_modality["speech"]["ids"]) % speech.width == 0
    for position, id_ in enumerate(by_modality["speech"]["ids"]):
        assert id_ in speech.allowed(position)
    assert len(by_modality["text"]["ids"]) <= 20


def test_same_seed_same_samples(sample_run, tmp_path):
    words = ("--prompt", "a dog", "--modality", "text", "--count", "2", "--max-tokens", "15")
    first = generate(sample_run, tmp_path / "a", *words, "--seed", "3")
    again = generate(sample_run, tmp_path / "b", *words, "--seed", "3")
    other = generate(sample_run, tmp_path / "c", *words, "--seed", "4")
    assert first["samples"] == again["samples"] != other["samples"]
    assert {s["file"] for s in first["samples"]} == {"text-0.txt", "text-1.txt"}


def test_temperature_zero_takes_the_likeliest(sample_run, tmp_path):
    words = ("--modality", "text", "--temperature", "0", "--max-tokens", "10", "--count", "2")
    first, second = generate(sample_run, tmp_path, *words)["samples"]
    assert first["ids"] == second["ids"]


def test_prompt_with_a_picture_and_a_sound(sample_run, sample_data, tmp_path):
    picture = next((sample_data / "images").glob("*.png"))
    sound = next((sample_data / "speech").glob("*.flac"))
    prompt = f"look <image:{picture}> and hear <speech:{sound}> now"
    assert [modality for modality, _ in parse_prompt(prompt)] == [
        *("text", "image", "text", "speech", "text")
    ]
    words = ("--modality", "text", "--max-tokens", "3")
    assert generate(sample_run, tmp_path, "--prompt", prompt, *words)["samples"]


def test_wrong_prompts_and_runs_are_named(sample_run, tmp_path, capsys):
    with pytest.raises(SampleError):
        list(parse_prompt("<image:/no/such/file.png>"))
    assert cli.main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert cli.main(["generate", str(sample_run), "--modality", "smell"]) == 2
    assert "the run knows text, image, speech, bytes" in capsys.readouterr().err


def test_another_tokenizer_is_refused(sample_run, tmp_path):
    copytree(sample_run / "tokenizers", tmp_path / "tokenizers")
    config = tmp_path / "tokenizers" / "bytes" / "config.json"
    config.write_text(config.read_text().replace("}", " }"))
    vocabulary = Vocabulary.from_json((sample_run / "vocabulary.json").read_text())
    assert set(load_tokenizers(tmp_path, vocabulary)) == {"text", "image", "speech", "bytes"}
    other = BytePatch(FitOptions(method="fixed", patch_size=3))
    other.save(tmp_path / "tokenizers" / "bytes")
    with pytest.raises(ConfigError, match="not the tokenizer that the model was trained with"):
        load_tokenizers(tmp_path, vocabulary)
