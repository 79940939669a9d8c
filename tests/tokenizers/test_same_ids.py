"""The same sample gives the same ids, for every class of tokenizer that the folder holds.

Classes are found by listing the folder. A new one fails here until MAKERS says how to make a small
one of it, on which batch sizes, batch mates, threads and a way through the disk are then tried.
"""

import base64
import inspect
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from plait.tokenizers import byte_lm, byte_patch, image, speech, text, text_hf
from plait.tokenizers.base import Encoded, Tokenizer, Waveform, load_tokenizer
from plait.tokenizers.image_options import Method, QuantizerName
from plait.tokenizers.media import read_image
from plait.tokenizers.text_merges import PATTERNS, find_plan

from .made_codecs import make_model, save_model
from .text_models import byte_level

TEXTS = ["", "a", "to be, or\nnot", "\t  x = 1\n" * 30, "Zażółć 日本語 \U0001f600", "é" * 400]


def all_classes() -> dict[str, type[Tokenizer]]:
    """Every class of a tokenizer that can be made, by `file:Class`, as config.json has it."""
    folder = Path(inspect.getfile(Tokenizer)).parent
    found = {}
    for name in sorted(p.stem for p in folder.glob("*.py")):
        module = import_module(f"plait.tokenizers.{name}")
        for cls in vars(module).values():
            if not (inspect.isclass(cls) and issubclass(cls, Tokenizer)):
                continue
            if cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                found[f"{name}:{cls.__name__}"] = cls
    return found


def small_text() -> Tokenizer:
    return text.fit(TEXTS * 3, text.FitOptions(vocab_size=300))


def small_image(method: Method) -> Tokenizer:
    options = image.FitOptions(
        method=method, size=32, dim=16, n_blocks=1, steps=3, levels=(8, 5, 5), n_patches=2000
    )
    return image.fit(some_pictures(), options)


def small_speech(method: str) -> Tokenizer:
    options = speech.FitOptions(method=method, codebooks=3, codebook_size=64, units=40)  # type: ignore[arg-type]
    return speech.fit(some_sounds(), options)


def small_conv() -> Tokenizer:
    pytest.importorskip("vector_quantize_pytorch")
    options = speech.FitOptions(
        method="conv", codebooks=3, codebook_size=64, preset="tiny", steps=3, crop_s=0.2
    )
    return speech.fit(some_sounds(), options)


def small_codes(quantizer: QuantizerName) -> Tokenizer:
    options = image.FitOptions(
        quantizer=quantizer,
        preset="tiny",
        size=32,
        levels=(5, 4, 3),
        codes=64,
        codebooks=2,
        steps=3,
        n_patches=2000,
    )
    return image.fit(some_pictures(), options)


def small_latents() -> Tokenizer:
    options = image.FitOptions(
        method="kl", preset="tiny", size=32, channels=5, steps=3, n_patches=2000, aspect=2.0
    )
    return image.fit(some_pictures(), options)


def small_lm() -> Tokenizer:
    options = byte_lm.FitOptions(
        dim=16, n_layers=2, n_heads=2, window=8, hash_bits=6, steps=3, batch=2, seq_len=32
    )
    return byte_lm.fit([t.encode() for t in TEXTS * 30], options)


def hugging_face() -> Tokenizer:
    return text_hf.HuggingFace(json.dumps(byte_level(TEXTS * 3)).encode())


def ranks() -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranks.tiktoken"
        lines = [
            f"{base64.b64encode(token).decode()} {rank}\n"
            for token, rank in find_plan(byte_level(TEXTS * 3)).ranks.items()
        ]
        path.write_text("".join(lines))
        options = text.FitOptions(source_model=str(path), pattern=PATTERNS["gpt2"])
        return text.fit([], options)


def codec(model_type: str) -> Tokenizer:
    pytest.importorskip("transformers")
    import tempfile

    from plait.pipeline.fit_pretrained import make

    with tempfile.TemporaryDirectory() as folder:
        is_image = model_type.endswith("vqgan")
        return make(save_model(make_model(model_type), Path(folder)), size=16 if is_image else 0)


MAKERS = {
    "text:Text": [small_text],
    "image:ConvFSQ": [lambda: small_image("fsq")],
    "image:PatchKMeans": [lambda: small_image("patches")],
    "image_latents:KLAutoencoder": [small_latents],
    "image_codes:ConvCodes": [lambda: small_codes("vq"), lambda: small_codes("rvq")],
    "text_hf:HuggingFace": [hugging_face],
    "text_tiktoken:Tiktoken": [ranks],
    "byte_lm:LMPatch": [small_lm],
    "speech:MDCT": [lambda: small_speech("mdct")],
    "speech_codec:ConvCodec": [small_conv],
    "units:Units": [lambda: small_speech("units")],
    "byte_patch:BytePatch": [
        lambda: byte_patch.BytePatch(byte_patch.FitOptions()),
        lambda: byte_patch.BytePatch(byte_patch.FitOptions(method="fixed")),
    ],
    "pretrained_image:PretrainedImage": [
        lambda: codec("chameleon_vqgan"),
        lambda: codec("emu3_vqgan"),
        lambda: codec("janus_vqgan"),
    ],
    "pretrained_speech:PretrainedSpeech": [
        lambda: codec("encodec"),
        lambda: codec("dac"),
        lambda: codec("mimi"),
        lambda: codec("xcodec"),
    ],
}
"""Small tokenizers of each class, one for each way in which it works."""
CASES = [(name, i) for name, makers in MAKERS.items() for i in range(len(makers))]
REPOSITORY = Path(__file__).resolve().parents[2]


def some_pictures() -> list[Image.Image]:
    files = sorted((REPOSITORY / "pipeline/sample_data/images").glob("*.png"))[:19]
    return [read_image(f) for f in files] + [Image.new("RGB", (1, 1)), Image.new("RGB", (300, 2))]


def some_sounds() -> list[Waveform]:
    """Of several lengths and rates, some equally long, cut from recordings."""
    sounds = []
    files = sorted((REPOSITORY / "pipeline/sample_data/speech").glob("*.flac"))[:6]
    for file, length in zip(files, [4000, 4000, 4000, 7777, 5000, 1], strict=True):
        samples, rate_hz = soundfile.read(file, dtype="float32", stop=length)
        sounds.append(Waveform(samples=samples, sample_rate_hz=rate_hz))
    sounds.append(Waveform(samples=sounds[0].samples, sample_rate_hz=44_100))
    return [*sounds, Waveform(samples=np.zeros(3000, np.float32), sample_rate_hz=16_000)]


def samples_of(tokenizer: Tokenizer) -> list:
    if tokenizer.modality == "text":
        return TEXTS
    if tokenizer.modality == "bytes":
        return [t.encode() for t in TEXTS] + [bytes(range(256)), b"\0" * 1000]
    return some_pictures() if tokenizer.modality == "image" else some_sounds()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same(first: Encoded, second: Encoded) -> None:
    assert np.array_equal(first.ids, second.ids)
    assert first.width == second.width and first.ids.dtype == second.ids.dtype
    for name in ("patch_starts", "durations", "latents"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))


def test_each_class_is_tried():
    missing = set(all_classes()) ^ set(MAKERS)
    assert not missing, f"say in MAKERS how to make a small {missing}, or take it out there"


@pytest.mark.parametrize(("name", "which"), CASES)
def test_same_input_same_ids(name: str, which: int, tmp_path: Path, threads: None):
    tokenizer = MAKERS[name][which]()
    assert isinstance(tokenizer, all_classes()[name])
    samples = samples_of(tokenizer)
    torch.set_num_threads(1)
    alone = [tokenizer.encode_batch([sample])[0] for sample in samples]
    assert len({(e.ids.tobytes(), str(e.latents)) for e in alone}) > 2  # or nothing is tested
    order = np.random.default_rng(0).permutation(len(samples))
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    for count, encoder in ((1, tokenizer), (2, tokenizer), (1, loaded), (2, loaded)):
        torch.set_num_threads(count)
        for encoded, expected in zip(encoder.encode_batch(samples), alone, strict=True):
            assert_same(encoded, expected)
        mixed = encoder.encode_batch([samples[i] for i in order])
        for encoded, place in zip(mixed, order, strict=True):
            assert_same(encoded, alone[place])
        for size in (2, 3, 5):
            batches = [samples[i : i + size] for i in range(0, len(samples), size)]
            parts = [e for batch in batches for e in encoder.encode_batch(batch)]
            for encoded, expected in zip(parts, alone, strict=True):
                assert_same(encoded, expected)
    twice = tokenizer.encode_batch([samples[0]] * 17)
    for encoded in twice:
        assert_same(encoded, alone[0])


@pytest.mark.parametrize(("name", "which"), CASES)
def test_samples_are_not_changed(name: str, which: int):
    tokenizer = MAKERS[name][which]()
    samples = samples_of(tokenizer)
    before = [np.array(getattr(s, "samples", s)) for s in samples]
    tokenizer.encode_batch(samples)
    for sample, kept in zip(samples, before, strict=True):
        assert np.array_equal(np.array(getattr(sample, "samples", sample)), kept)
