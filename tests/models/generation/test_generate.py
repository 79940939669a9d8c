import json
import re
from shutil import copytree

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.models.generation.generate import load_tokenizers
from plait.models.generation.prompts import parse_prompt, read_prompts
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


def test_prompts_side_by_side_are_what_they_are_alone(sample_run, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('"a dog"\n\n{"prompt": "two red flowers in a garden", "id": 7}\n')
    words = ("--prompt", "the sea", "--prompts", str(lines), "--max-tokens", "12", "--seconds", "1")
    report = generate(sample_run, tmp_path / "all", *words, "--count", "2", "--guidance", "2")
    assert report["prompts"] == ["the sea", "a dog", "two red flowers in a garden"]
    assert len(report["samples"]) == 3 * 4 * 2
    named = {
        f"{s['modality']}-{s['prompt']}-{s['sample']}": s["file"].rpartition(".")[0]
        for s in report["samples"]
    }
    assert all(name == file for name, file in named.items()) and len(named) == 24
    assert all((tmp_path / "all" / s["file"]).stat().st_size for s in report["samples"])
    few = generate(
        sample_run, tmp_path / "few", *words, "--count", "2", "--guidance", "2", "--batch", "5"
    )
    assert few["samples"] == report["samples"]
    alone = ("--prompt", "the sea", "--max-tokens", "12", "--seconds", "1", "--guidance", "2")
    first = generate(sample_run, tmp_path / "alone", *alone)["samples"]
    ids = [s["ids"] for s in report["samples"] if (s["prompt"], s["sample"]) == (0, 0)]
    assert [s["ids"] for s in first] == ids
    assert report["speed"]["prompt_tokens"] > 20 < report["speed"]["sampled_tokens"]
    assert min(report["speed"].values()) > 0


def test_the_model_may_choose_what_comes(sample_run, tmp_path):
    words = ("--modality", "auto", "--max-tokens", "60", "--seconds", "0.5", "--count", "8")
    words += ("--guidance", "2", "--device", "cpu")
    words += ("--temperature", "1e6")  # all ids alike: after 8 steps of training it is all text
    report = generate(sample_run, tmp_path, "--prompt", "<b> & a dog", *words)
    for sample in report["samples"]:
        page = (tmp_path / sample["page"]).read_text()
        assert "&lt;b&gt; &amp; a dog" in page
        for n, part in enumerate(sample["parts"]):
            assert part["file"].startswith(f"auto-{sample['sample']}-{n}-{part['modality']}.")
            assert (tmp_path / part["file"]).is_file()
    assert len({p["modality"] for s in report["samples"] for p in s["parts"]}) > 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--top-p", "0"], "--top-p 0.0: it should be above 0"),
        (["--count", "0"], "--count 0: it should be 1 or more"),
        (["--seconds", "nan"], "--seconds nan: it should be above 0"),
        (["--device", "gpu"], "--device 'gpu' is none"),
        (["--prompts", "no/such.jsonl"], "--prompts no/such.jsonl: cannot be read"),
    ],
)
def test_wrong_options_are_named(words, message, sample_run, capsys):
    assert cli.main(["generate", str(sample_run), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "there is no prompt in it"),
        ('"a"\n{"text": "b"}\n', 'line 2: a string or {"prompt": "..."}'),
        ('"a"\n\nred\n', "line 3: no JSON"),
        ("[" * 100_000, "line 1: no JSON"),
        ('"\udcff"', "cannot be read"),
    ],
)
def test_wrong_files_of_prompts_are_named(text, message, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_prompts(tmp_path / "prompts.jsonl")
