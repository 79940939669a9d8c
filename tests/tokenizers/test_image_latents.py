"""The tokenizer of continuous latents; its batches, threads and folder: test_same_ids.py."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image import FitOptions, KLAutoencoder, evaluate, fit

TINY = {
    "method": "kl",
    "size": 32,
    "channels": 6,
    "preset": "tiny",
    "steps": 120,
    "n_patches": 2000,
    "threads": 1,
}


def picture(seed, width=48, height=40):
    """Smooth colours, another frequency and phase for each picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.4, 0.4, (3, 3)) * (1, 1, 8)]
    return Image.fromarray((np.stack(waves, -1) * 120 + 128).astype(np.uint8))


PICTURES = [picture(seed, 40 + seed % 30, 70 - seed % 25) for seed in range(50)]


def made(**changes):
    return fit(PICTURES, FitOptions(**{**TINY, **changes}))


@pytest.fixture(scope="module")
def model():
    return made()


def test_latents_are_normalized_and_decode(model):
    encoded = model.encode_batch(PICTURES)
    latents = np.stack([e.latents for e in encoded])
    assert latents.dtype == np.float16 and latents.shape == (50, 16, 6)
    assert np.abs(latents.astype(np.float64).mean((0, 1))).max() < 0.1
    assert np.abs(latents.astype(np.float64).std((0, 1)) - 1).max() < 0.1
    report = evaluate(model, PICTURES)
    assert report["psnr"] > 14 and report["kl_nats"] > 0.5
    assert abs(report["latents_mean"]) < 0.05 and abs(report["latents_deviation"] - 1) < 0.05


def test_ids_hold_places_alone(model):
    assert (model.vocab_size, model.width, model.span_length) == (1, 4, 16)
    assert model.allowed(0) == range(1) == model.allowed(15)
    (encoded,) = model.encode_batch(PICTURES[:1])
    assert encoded.grid == (4, 4) and not encoded.ids.any()


def test_training_helps(model):
    gain = evaluate(model, PICTURES)["psnr"] - evaluate(made(steps=0), PICTURES)["psnr"]
    assert gain > 0.1


def test_the_kl_term_costs_detail():
    tight, loose = (evaluate(made(kl_weight=w), PICTURES) for w in (1.0, 0.0))
    assert tight["psnr"] < loose["psnr"] - 0.3
    assert tight["kl_nats"] < loose["kl_nats"] - 1


def test_the_kl_term_by_its_definition(model):
    """Log densities of samples of both normal distributions."""
    (encoded,) = model.encode_batch(PICTURES[:1])
    native = encoded.latents * model.scale_D.numpy() + model.shift_D.numpy()
    deviation = np.exp(model.log_variance_D.numpy() / 2)
    noise = np.random.default_rng(0).standard_normal((4000, *native.shape))
    x = native + deviation * noise
    densities = -(noise**2) / 2 - np.log(deviation) + x**2 / 2
    found = model.kl_nats(torch.from_numpy(encoded.latents).float())
    assert found == pytest.approx(densities.mean(), rel=0.01)


def test_losses_are_those_of_other_autoencoders():
    plain = made(steps=6).fingerprint
    for change in ({"perceptual": 0.5}, {"adversarial": 0.1}, {"pixels": "l1"}):
        assert made(steps=6, **change).fingerprint != plain


def test_aspect_buckets(tmp_path):
    made(steps=1, aspect=2.0).save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, KLAutoencoder)
    samples = [Image.new("RGB", s, "red") for s in [(90, 50), (50, 50), (30, 300)]]
    encoded = loaded.encode_batch(samples)
    assert [e.grid for e in encoded] == [(3, 5), (4, 4), (5, 3)]
    assert [loaded.decode(e).size for e in encoded] == [(40, 24), (32, 32), (24, 40)]


@pytest.mark.parametrize(
    "change", [{"dim": 63}, {"channels": 4}, {"kind": "image:ConvFSQ"}, {"n_blocks": 1}]
)
def test_configuration_of_another_network(model, tmp_path, change):
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError):
        load_tokenizer(tmp_path)


def test_wrong_use(model):
    ids = np.zeros(16, np.int64)
    with pytest.raises(SampleError, match="no pictures"):
        fit([], FitOptions(**TINY))
    with pytest.raises(SampleError, match="latents, and none are given"):
        model.decode(Encoded(ids=ids, width=4))
    for shape in [(16,), (16, 5), (15, 6)]:
        with pytest.raises(SampleError, match=r"should be \(16, 6\)"):
            model.decode(Encoded(ids=ids, width=4, latents=np.zeros(shape, np.float16)))
    with pytest.raises(SampleError, match="finite"):
        model.decode(Encoded(ids=ids, width=4, latents=np.full((16, 6), np.nan)))
    with pytest.raises(SampleError, match="ids"):
        model.decode(Encoded(ids=ids + 1, width=4, latents=np.zeros((16, 6))))
    for change in ({"size": 30}, {"channels": 0}, {"kl_weight": -1.0}, {"preset": "huge"}):
        with pytest.raises(ConfigError):
            FitOptions(**{**TINY, **change})
