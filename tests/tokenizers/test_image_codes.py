"""Autoencoders that are trained end to end, with each quantizer, and pictures of other shapes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("vector_quantize_pytorch")

from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image import ConvCodes, FitOptions, evaluate, fit
from plait.tokenizers.image_codes import make_quantizer
from plait.tokenizers.image_grid import PictureTokenizer, grids, nearest_grid

from .made_pictures import picture

TINY = {
    "size": 32,
    "stride": 8,
    "levels": (5, 4, 3),
    "codes": 64,
    "codebooks": 2,
    "preset": "tiny",
    "steps": 12,
    "n_patches": 2000,
}
NAMES = ["vq", "simvq", "rvq", "fsq", "lfq", "bsq"]


PICTURES = [picture(seed, 40 + seed % 30, 70 - seed % 25) for seed in range(60)]


def made(**changes):
    return fit(PICTURES, FitOptions(**{**TINY, **changes}))


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request):
    return made(quantizer=request.param)


def ids_of(tokenizer, samples):
    return [e.ids for e in tokenizer.encode_batch(samples)]


def test_grid_and_vocabulary(tokenizer):
    levels = 2 if tokenizer.quantizer == "rvq" else 1
    codes = 60 if tokenizer.quantizer == "fsq" else 64
    assert tokenizer.vocab_size == levels * codes
    assert (tokenizer.width, tokenizer.span_length) == (4 * levels, 16 * levels)
    for one in tokenizer.encode_batch(PICTURES[:5]):
        assert one.grid == (4, 4 * levels)
        for i, value in enumerate(one.ids):
            assert int(value) in tokenizer.allowed(i)


@pytest.mark.parametrize("batch, threads", [(1, 1), (3, 2), (64, 1), (64, 2)])
def test_ids_do_not_depend_on_batch_or_threads(tokenizer, batch, threads):
    flat = [Image.new("RGB", (40, 40), c) for c in ("white", "black", (127, 127, 127))]
    samples = [*PICTURES, *flat]
    expected = ids_of(tokenizer, samples)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        parts = [samples[i : i + batch] for i in range(0, len(samples), batch)]
        found = [ids for part in parts for ids in ids_of(tokenizer, part)]
        mates = ids_of(tokenizer, samples[::-1])[::-1]
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(mates, expected, strict=True))


def test_saves_and_loads(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, ConvCodes) and loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(ids_of(loaded, PICTURES), ids_of(tokenizer, PICTURES))
    encoded = tokenizer.encode_batch(PICTURES[:1])[0]
    assert loaded.decode(encoded).tobytes() == tokenizer.decode(encoded).tobytes()


def test_decodes_and_reports(tokenizer):
    report = evaluate(tokenizer, PICTURES)
    assert report["psnr"] > 13 and report["ssim"] > 0.3 and report["frechet_texture"] < 1
    assert report["bits_per_image"] == pytest.approx(
        report["tokens_per_image"] * report["bits_per_token"]
    )
    assert report["bits_per_pixel"] == pytest.approx(report["bits_per_image"] / 1024)


def test_fit_depends_on_seed_alone():
    state = torch.get_rng_state()
    first = made(quantizer="rvq", steps=3).fingerprint
    assert made(quantizer="rvq", steps=3).fingerprint == first
    again = fit(PICTURES, FitOptions(**{**TINY, "quantizer": "rvq", "steps": 3}), seed=1)
    assert again.fingerprint != first
    assert torch.equal(torch.get_rng_state(), state)


def test_training_helps_and_tells_of_its_codes():
    told = []
    options = FitOptions(**{**TINY, "quantizer": "lfq", "steps": 100})
    trained = fit(PICTURES, options, progress=lambda message, _, **figures: told.append(figures))
    told = [figures for figures in told if figures]
    assert len(told) == 10
    assert all(f["error"] > 0 and 0 < f["codes_used_share"] <= 1 for f in told)
    assert all(1 <= f["perplexity"] <= 64 * f["codes_used_share"] for f in told)
    untrained = made(quantizer="lfq", steps=0)
    assert evaluate(trained, PICTURES)["psnr"] > evaluate(untrained, PICTURES)["psnr"] + 0.3


def test_presets_differ_in_size():
    sizes = [
        sum(p.numel() for p in made(quantizer="fsq", preset=p, steps=0).codec.parameters())
        for p in ("tiny", "small", "base")
    ]
    assert sizes[0] * 2 < sizes[1] and sizes[1] * 2 < sizes[2]


@pytest.mark.parametrize("quantizer", ["vq", "rvq", "simvq"])
def test_gradients_pass_codes_turned_or_straight(quantizer):
    ways = ("rotation", "straight") if quantizer != "simvq" else ("straight",)
    generator = torch.Generator().manual_seed(0)
    z_ND, towards_ND = torch.randn(2, 40, 64, generator=generator)
    cosines = []
    for way in ways:
        torch.manual_seed(0)
        one = make_quantizer(FitOptions(**{**TINY, "quantizer": quantizer, "gradient": way}))
        x_ND = z_ND.clone().requires_grad_()
        (one.train()(x_ND).vectors_ND * towards_ND).sum().backward()
        assert x_ND.grad is not None
        cosines.append(torch.cosine_similarity(x_ND.grad, towards_ND).mean().item())
    assert cosines[-1] == pytest.approx(1, abs=1e-5)
    assert quantizer == "simvq" or cosines[0] < 0.995


@pytest.mark.parametrize("changes", [{"pixels": "l1"}, {"perceptual": 0.5}, {"adversarial": 0.1}])
def test_losses_change_the_fit(changes):
    plain = made(quantizer="fsq", steps=6)
    other = made(quantizer="fsq", steps=6, **changes)
    assert other.fingerprint != plain.fingerprint
    assert np.isfinite(evaluate(other, PICTURES[:4])["psnr"])


@pytest.mark.parametrize("change", [{"quantizer": "vq"}, {"quantizer": "rvq"}, {}, "patches"])
def test_aspect_buckets(change, tmp_path):
    changes = {"method": "patches"} if change == "patches" else change
    tokenizer = made(**changes, aspect=2.0, steps=1)
    levels = 2 if changes.get("quantizer") == "rvq" else 1
    wide, square, tall = (Image.new("RGB", s, "red") for s in [(90, 50), (50, 50), (30, 300)])
    grids_of = [e.grid for e in tokenizer.encode_batch([wide, square, tall])]
    assert grids_of == [(3, 5 * levels), (4, 4 * levels), (5, 3 * levels)]
    assert tokenizer.span_length is None
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, PictureTokenizer)
    sizes = [loaded.decode(e).size for e in loaded.encode_batch([wide, square, tall])]
    assert sizes == [(40, 24), (32, 32), (24, 40)]
    report = evaluate(loaded, PICTURES)
    assert report["tokens_per_image"] < 17 * levels
    for ids, width in [(15, 4), (40, 4), (0, 4), (16, 0), (16, -4)]:
        with pytest.raises(SampleError, match="ids in rows"):
            tokenizer.decode(Encoded(ids=np.zeros(ids * levels, np.int64), width=width * levels))


def test_a_bucket_shows_what_its_shape_is():
    """Nothing of a picture of a bucket's own shape is cut off."""
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:, :3] = pixels[:, -3:] = pixels[:3] = pixels[-3:] = 255
    tokenizer = made(method="patches", aspect=2.0)
    seen = tokenizer.to_pixels(Image.fromarray(pixels))
    assert seen.shape == (3, 24, 40)
    assert min(seen[..., 0].min(), seen[..., -1].min(), seen[:, 0].min(), seen[:, -1].min()) > 150


def test_grids_hold_no_more_codes_than_the_square():
    for side, aspect in [(4, 1.0), (8, 2.0), (16, 4.0), (3, 8.0)]:
        found = grids(side, aspect)
        assert (side, side) in found and len(found) % 2 == 1
        assert all(a * b <= side**2 and max(a, b) <= aspect * min(a, b) for a, b in found)
    assert grids(8, 1.0) == ((8, 8),)
    assert nearest_grid(grids(8, 2.0), 10, 10_000) == max(grids(8, 2.0))


@pytest.mark.parametrize(
    "key, value",
    [
        *[("dim", 63), ("dim", 4096), ("n_blocks", 3), ("codes", 32), ("codebooks", 2)],
        *[("code_width", 5), ("quantizer", "other"), ("stride", 4), ("aspect", 9)],
    ],
)
def test_configuration_of_another_network(tmp_path, key, value):
    made(quantizer="vq", steps=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"quantizer": "other"},
        {"quantizer": "lfq", "codes": 1000},
        {"quantizer": "vq", "codes": 1},
        {"quantizer": "rvq", "codebooks": 0},
        {"quantizer": "vq", "preset": "huge"},
        {"quantizer": "vq", "perceptual": -1.0},
        {"quantizer": None, "adversarial": 1.0},
        {"quantizer": None, "aspect": 0.5},
        {"quantizer": "vq", "gradient": "none"},
        {"quantizer": "fsq", "gradient": "rotation"},
        {"quantizer": "simvq", "gradient": "rotation"},
        {"method": "fsq", "gradient": "rotation"},
    ],
)
def test_wrong_options(change):
    name = list(change)[-1]
    with pytest.raises(ConfigError, match=name):
        FitOptions(**{**TINY, **change})


def test_a_quantizer_excludes_another_method():
    with pytest.raises(ConfigError, match="patches"):
        FitOptions(**{**TINY, "quantizer": "vq", "method": "patches"})
