"""Published codecs: ids and sounds as the library's own calls give them, from small random ones."""

import json
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from plait.pipeline import cli
from plait.pipeline.fit_pretrained import make
from plait.tokenizers.base import Encoded, Waveform, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.pretrained import KINDS, check_numbers
from plait.tokenizers.pretrained_image import PretrainedImage
from plait.tokenizers.pretrained_speech import PretrainedSpeech

from .made_codecs import SMALL, make_model, save_model, save_whole

transformers = pytest.importorskip("transformers")
IMAGES = [k for k, kind in KINDS.items() if kind.modality == "image"]
SPEECH = [k for k, kind in KINDS.items() if kind.modality == "speech"]
RATE_HZ = {"encodec": 24_000, "dac": 16_000, "mimi": 24_000, "xcodec": 16_000}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    return {kind: save_model(make_model(kind), root / kind) for kind in SMALL}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a codec asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def sound(samples: int, rate_hz: int, seed: int = 0) -> Waveform:
    values = np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)
    return Waveform(samples=values, sample_rate_hz=rate_hz)


def library_codes(model, kind: str, samples: np.ndarray, levels: int) -> torch.Tensor:
    """[levels, T] by the library's call as its documentation has it, for whole frames."""
    x = torch.from_numpy(samples)[None, None]
    with torch.no_grad():
        if kind == "encodec":
            return model.encode(x, bandwidth=3.6).audio_codes[0, 0, :levels]
        if kind == "dac":
            return model.encode(x).audio_codes[0, :levels]
        if kind == "mimi":
            return model.encode(x).audio_codes[0, :levels]
        return model.encode(x, bandwidth=1.2).audio_codes[0, :levels]


@pytest.mark.parametrize("kind", SPEECH)
@pytest.mark.parametrize("levels", [1, 2, 0])
def test_speech_ids_are_the_librarys(folders, kind, levels):
    tokenizer = make(folders[kind], levels)
    assert isinstance(tokenizer, PretrainedSpeech)
    width = tokenizer.width
    for frames in (1, 2, 9):
        wave = sound(frames * tokenizer.hop, tokenizer.sample_rate_hz, frames)
        encoded = tokenizer.encode_batch([wave])[0]
        expected = library_codes(make_model(kind), kind, wave.samples, width)
        grid = encoded.ids.reshape(encoded.grid)
        assert encoded.grid == (frames, width)
        assert frames < 9 or (grid != grid[0]).any()  # or the test would be blind
        assert np.array_equal(grid, expected.T.numpy() + np.arange(width) * 64)
        for position in range(2 * width):
            assert encoded.ids[position % len(encoded.ids)] in tokenizer.allowed(position)


@pytest.mark.parametrize("kind", SPEECH)
def test_speech_decodes_as_the_library_does(folders, kind):
    tokenizer, model = make(folders[kind], 0), make_model(kind)
    wave = sound(9 * tokenizer.hop, tokenizer.sample_rate_hz)
    codes = library_codes(model, kind, wave.samples, tokenizer.width)[None]
    with torch.no_grad():
        if kind == "encodec":
            expected = model.decode(codes[None], [None]).audio_values
        else:
            expected = model.decode(audio_codes=codes).audio_values
    decoded = tokenizer.decode(tokenizer.encode_batch([wave])[0])
    assert decoded.sample_rate_hz == RATE_HZ[kind]
    assert np.array_equal(decoded.samples, expected.flatten().clamp(-1, 1).numpy())
    assert abs(len(decoded.samples) - len(wave.samples)) < tokenizer.hop
    nothing = tokenizer.decode(Encoded(ids=np.zeros(0, np.int32), width=tokenizer.width))
    assert not len(nothing.samples)


@pytest.mark.parametrize("kind", SPEECH)
def test_every_length_of_sound(folders, kind):
    tokenizer = make(folders[kind])
    for samples in (1, 7, tokenizer.hop - 1, tokenizer.hop + 1, 2 * tokenizer.hop + 3):
        encoded = tokenizer.encode_batch([sound(samples, tokenizer.sample_rate_hz)])[0]
        assert encoded.grid == (-(-samples // tokenizer.hop), tokenizer.width)
        assert np.isfinite(tokenizer.decode(encoded).samples).all()
    with pytest.raises(SampleError, match="empty"):
        tokenizer.encode_batch([sound(0, 16_000)])
    with pytest.raises(SampleError, match="ids"):
        tokenizer.decode(Encoded(ids=np.array([tokenizer.vocab_size])))


@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_unfinished_frames_are_left_to_the_library(folders, kind):
    tokenizer = make(folders[kind], 2)
    wave = sound(3 * tokenizer.hop + 17, tokenizer.sample_rate_hz)
    expected = library_codes(make_model(kind), kind, wave.samples, 2)
    ids = tokenizer.encode_batch([wave])[0].ids.reshape(-1, 2)
    assert np.array_equal(ids % tokenizer.codebook_size, expected.T.numpy())


@pytest.mark.parametrize("kind", SPEECH)
def test_long_sounds_are_pieces(folders, kind):
    whole = make(folders[kind], 2)
    short = PretrainedSpeech(whole.network, {"codebooks": 2, "piece_s": 1})
    piece = short.frames_of_piece * short.hop
    wave = sound(2 * piece + 5, short.sample_rate_hz)
    parts = [
        Waveform(samples=wave.samples[i : i + piece], sample_rate_hz=short.sample_rate_hz)
        for i in range(0, len(wave.samples), piece)
    ]
    joined = np.concatenate([e.ids for e in whole.encode_batch(parts)])
    encoded = short.encode_batch([wave])[0]
    assert np.array_equal(encoded.ids, joined)
    tail = len(whole.decode(whole.encode_batch(parts[-1:])[0]).samples)
    assert len(short.decode(encoded).samples) == 2 * piece + tail


def library_ids(model, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if kind == "emu3_vqgan":
            sizes = torch.tensor([list(pixels.shape[2:])] * len(pixels))
            return torch.stack(model.encode(pixels, sizes).image_tokens).flatten(1)
        return model.encode(pixels).image_tokens.view(len(pixels), -1)


def library_model(kind: str):
    """Janus with a codebook of unit norm, as LlamaGen's rule has it."""
    model = make_model(kind)
    if kind == "janus_vqgan":
        weight = model.quantize.embedding.weight
        weight.data = torch.nn.functional.normalize(weight.data, dim=-1)
    return model


@pytest.mark.parametrize("kind", IMAGES)
def test_image_ids_are_the_librarys(folders, kind):
    tokenizer = make(folders[kind], size=16)
    assert isinstance(tokenizer, PretrainedImage)
    pictures = [picture(40, 30), picture(16, 16, 1), picture(9, 31, 2)]
    pixels = torch.cat([tokenizer.prepare(p) for p in pictures])
    expected = library_ids(library_model(kind), kind, pixels)
    for encoded, row in zip(tokenizer.encode_batch(pictures), expected, strict=True):
        assert encoded.grid == (8, 8) and len(np.unique(encoded.ids)) > 1
        assert np.array_equal(encoded.ids, row.numpy())


@pytest.mark.parametrize("kind", ["emu3_vqgan", "janus_vqgan"])
def test_images_decode_as_the_library_does(folders, kind):
    tokenizer = make(folders[kind], size=16)
    encoded = tokenizer.encode_batch([picture(16, 16)])[0]
    ids = torch.from_numpy(encoded.ids).long()
    shape = (1, 8, 8) if kind == "emu3_vqgan" else (1, 64)
    with torch.no_grad():
        x_3SS = library_model(kind).decode(ids.view(shape))[0].numpy()
    expected = np.clip(np.rint((x_3SS * 0.5 + 0.5) * 255), 0, 255).astype(np.uint8)
    decoded = np.asarray(tokenizer.decode(encoded)).astype(int)
    assert np.abs(decoded - expected.transpose(1, 2, 0)).max() <= 1  # rounded once more or less
    with pytest.raises(SampleError, match="64"):
        tokenizer.decode(Encoded(ids=encoded.ids[:-1], width=8))


def test_janus_looks_its_codes_up_as_it_decodes_them(folders):
    """On a codebook of other norms, the library's own ids are not LlamaGen's."""
    tokenizer, model = make(folders["janus_vqgan"]), make_model("janus_vqgan")
    x = tokenizer.prepare(picture(16, 16))
    with torch.no_grad():
        z_ND = model.quant_conv(model.encoder(x)).permute(0, 2, 3, 1).reshape(-1, 8)
        near = torch.nn.functional.normalize(z_ND, dim=-1) @ torch.nn.functional.normalize(
            model.quantize.embedding.weight, dim=-1
        ).T.to(z_ND)
    ids = tokenizer.encode_batch([picture(16, 16)])[0].ids
    assert np.array_equal(ids, near.argmax(1).numpy())
    assert not np.array_equal(ids, library_ids(model, "janus_vqgan", x)[0].numpy())


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (16, 16), (9, 31), (64, 17)])
def test_pictures_are_prepared_as_chameleons_are(folders, size):
    """Equal to its own preparation, up to the rounding of float32."""
    tokenizer = make(folders["chameleon_vqgan"])
    theirs = transformers.ChameleonImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    expected = np.asarray(theirs(picture(*size), return_tensors="np")["pixel_values"])
    assert np.allclose(tokenizer.prepare(picture(*size)).numpy(), expected, atol=1e-6)


def test_a_folders_own_preparation_is_used(folders, tmp_path):
    folder = save_model(make_model("janus_vqgan"), tmp_path / "janus")
    numbers = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4], "rescale_factor": 1 / 51}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    pixels = make(folder).prepare(Image.new("RGB", (16, 16), (51, 102, 255)))
    assert np.allclose(pixels[0, :, 5, 5].numpy(), [0.9, 0.9, 1.175], atol=1e-6)


def test_chameleon_says_that_it_cannot_decode(folders):
    tokenizer = make(folders["chameleon_vqgan"])
    with pytest.raises(ConfigError, match="no decoder"):
        tokenizer.decode(tokenizer.encode_batch([picture(16, 16)])[0])


@pytest.mark.parametrize("kind", SMALL)
def test_a_saved_tokenizer_needs_the_folder_no_more(kind, tmp_path):
    folder = save_model(make_model(kind), tmp_path / "codec")
    size = 16 if KINDS[kind].modality == "image" else 0
    out = ["--out", str(tmp_path / "t"), "--size", str(size)]
    assert cli.main(["fit", "pretrained", str(folder), *out]) == 0
    made = make(folder, size=size)
    for file in folder.iterdir():
        file.unlink()
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.fingerprint == made.fingerprint
    assert loaded.vocab_size == made.vocab_size and loaded.width == made.width
    sample = picture(20, 20) if made.modality == "image" else sound(5000, 22_050)
    assert np.array_equal(loaded.encode_batch([sample])[0].ids, made.encode_batch([sample])[0].ids)
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert report["fingerprint"] == made.fingerprint and report["kind"] == made.modality
    assert str(tmp_path) not in (tmp_path / "t" / "config.json").read_text()


def write_samples(folder: Path, kind: str, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        if KINDS[kind].modality == "image":
            picture(20 + i, 24, seed=i).save(folder / f"{i}.png")
        else:
            wave = sound(6000 + 100 * i, 16_000, seed=i)
            soundfile.write(folder / f"{i}.wav", wave.samples, 16_000)
    return folder


@pytest.mark.parametrize("kind", ["chameleon_vqgan", "janus_vqgan", "encodec", "dac"])
def test_a_codec_is_measured_on_sources(folders, kind, tmp_path):
    source = write_samples(tmp_path / "samples", kind, 5)
    is_image = KINDS[kind].modality == "image"
    (source / ("broken.png" if is_image else "broken.wav")).write_bytes(b"nothing")
    words = [str(folders[kind]), str(source), "--out", str(tmp_path / "t")]
    assert cli.main(["fit", "pretrained", *words]) == 0
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    metrics = report["metrics"]
    assert report["samples"] == {"fit": 0, "held_out": 5, "rejected": 1}
    assert "broken" in (tmp_path / "t" / "rejected.jsonl").read_text()
    assert 0 < metrics["codes_used"] <= report["vocab_size"]
    page = (tmp_path / "t" / "report.html").read_text()
    assert "Before and after" in page and "Code use" in page
    if not is_image:
        assert metrics["sounds"] == 5 and {"si_sdr_db", "mel_distance_db"} < metrics.keys()
        return
    tokenizer = load_tokenizer(tmp_path / "t")
    assert isinstance(tokenizer, PretrainedImage)
    assert metrics["images"] == 5 and metrics["bits_per_token"] == 6
    assert ("psnr" in metrics) == ("ssim" in metrics) == (kind != "chameleon_vqgan")
    if kind == "janus_vqgan":
        images = [Image.open(path) for path in sorted(source.glob("[0-9].png"))]
        errors = []
        for encoded, image in zip(tokenizer.encode_batch(images), images, strict=True):
            seen, decoded = tokenizer.to_pixels(image), np.asarray(tokenizer.decode(encoded))
            difference = seen.permute(1, 2, 0).numpy() / 255.0 - decoded / 255.0
            errors.append(-10 * np.log10(np.square(difference).mean()))
        assert metrics["psnr"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_sources_that_a_codec_cannot_be_measured_on(folders, tmp_path, capsys):
    source = write_samples(tmp_path / "samples", "dac", 2)
    out = ["--out", str(tmp_path / "t")]
    assert cli.main(["fit", "pretrained", str(folders["janus_vqgan"]), str(source), *out]) == 2
    assert "no image, but 2 audio" in capsys.readouterr().err
    assert cli.main(["fit", "pretrained", str(folders["dac"]), str(tmp_path / "no"), *out]) == 2
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("kind", IMAGES)
def test_the_codec_of_a_whole_model(folders, kind, tmp_path):
    whole = save_whole(make_model(kind), tmp_path / "whole", KINDS[kind].part or "")
    alone, inside = make(folders[kind], size=16), make(whole, size=16)
    samples = [picture(20, 33)]
    assert np.array_equal(alone.encode_batch(samples)[0].ids, inside.encode_batch(samples)[0].ids)


def test_the_fingerprint_covers_each_weight_and_setting(folders, tmp_path):
    first = make(folders["dac"])
    other = make(save_model(make_model("dac", seed=1), tmp_path / "other"))
    assert len({first.fingerprint, other.fingerprint, make(folders["dac"], 2).fingerprint}) == 3
    assert make(folders["dac"]).fingerprint == first.fingerprint


def test_lower_precision_is_kept_on_disk_and_run_in_float32(tmp_path):
    folder = save_model(make_model("dac").to(torch.bfloat16), tmp_path / "codec")
    tokenizer = make(folder)
    assert {p.dtype for p in tokenizer.network.model.parameters()} == {torch.float32}
    tokenizer.save(tmp_path / "t")
    written = (tmp_path / "t" / "weights.safetensors").stat().st_size
    assert written < 1.2 * (folder / "model.safetensors").stat().st_size
    wave = sound(3000, 16_000)
    again = load_tokenizer(tmp_path / "t")
    assert np.array_equal(again.encode_batch([wave])[0].ids, tokenizer.encode_batch([wave])[0].ids)


@pytest.mark.parametrize("kind", KINDS)
def test_codecs_run_on_one_thread(folders, kind):
    """Sums of larger networks than these change in the last bits with the number of threads."""
    is_image = KINDS[kind].modality == "image"
    tokenizer = make(folders[kind], size=16 if is_image else 0)
    assert isinstance(tokenizer, (PretrainedImage, PretrainedSpeech))
    seen = set()
    for module in tokenizer.network.model.modules():
        module.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tokenizer.encode_batch([picture(20, 20) if is_image else sound(4000, RATE_HZ[kind])])
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


def test_without_the_library(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"plait\[pretrained\]"):
        make(folders["dac"])


def test_the_usual_sizes_are_within_the_bounds():
    """The library's own defaults are the published models'; none may be refused as too large."""
    for kind, known in KINDS.items():
        settings = getattr(transformers, known.name).config_class()
        config = json.loads(settings.to_json_string(use_diff=False))
        check_numbers(config, kind)


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


class Payload:
    def __reduce__(self):
        return print, ("run",)


def test_only_safetensors_are_read(tmp_path, capsys):
    folder = save_model(make_model("dac"), tmp_path / "codec")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        make(folder)
    assert capsys.readouterr().out == ""


def test_no_code_of_a_folder_is_run(tmp_path, capsys):
    folder = save_model(make_model("dac"), tmp_path / "codec")
    (folder / "evil.py").write_text("print('run')\nclass Evil: pass\n")
    edit(folder, auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    assert "auto_map" not in make(folder).network.config
    edit(folder, attn_implementation="somebody/kernel", model_type="evil")
    with pytest.raises(ConfigError, match="'evil': no codec that plait knows"):
        make(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dac", {"encoder_hidden_size": 8192}, "asks for"),
        ("dac", {"codebook_size": 128}, "another shape"),
        ("dac", {"encoder_hidden_size": 10**12}, "at most"),
        ("mimi", {"num_hidden_layers": 10**6}, "at most"),
        ("mimi", {"audio_channels": 2}, "mono|shape"),
        ("encodec", {"normalize": True}, "scale"),
        ("encodec", {"upsampling_ratios": "all"}, "cannot build"),
        ("chameleon_vqgan", {"channel_multiplier": [1, 2, 2]}, "missing"),
        ("xcodec", {"semantic_model_config": {"model_type": "llama"}}, "llama"),
        ("dac", {"model_type": "neucodec"}, "second model"),
    ],
)
def test_configurations_that_do_not_fit(kind, changes, message, tmp_path):
    folder = save_model(make_model(kind), tmp_path / "codec")
    edit(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        make(folder)


def test_damaged_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        make(tmp_path)
    folder = save_whole(make_model("janus_vqgan"), tmp_path / "whole", "janus")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.vqmodel.x": "../a.safetensors"}}))
    with pytest.raises(ConfigError, match="no files of this folder"):
        make(folder)
    folder = save_model(make_model("dac"), tmp_path / "codec")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        make(folder)
    tensors = make_model("dac").state_dict()
    tensors["encoder.conv1.bias"][0] = float("nan")
    model = make_model("dac")
    model.load_state_dict(tensors)
    with pytest.raises(ConfigError, match="not finite"):
        make(save_model(model, tmp_path / "nan"))
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="list"):
        make(folder)


def test_wrong_options(folders, tmp_path, capsys):
    out = ["--out", str(tmp_path / "t")]
    for kind, words, message in [
        ("dac", ["--codebooks", "9"], "has 4"),
        ("dac", ["--size", "16"], "for pictures"),
        ("janus_vqgan", ["--codebooks", "2"], "for speech"),
        ("janus_vqgan", ["--size", "32"], "should be 16"),
        ("emu3_vqgan", ["--size", "17"], "multiple of 2"),
    ]:
        assert cli.main(["fit", "pretrained", str(folders[kind]), *out, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
    assert cli.main(["fit", "pretrained", str(folders["dac"]), *out]) == 0
    assert cli.main(["fit", "pretrained", str(folders["dac"]), *out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    same = ["--out", str(folders["dac"]), "--overwrite"]
    assert cli.main(["fit", "pretrained", str(folders["dac"]), *same]) == 2
    assert (folders["dac"] / "model.safetensors").exists()
