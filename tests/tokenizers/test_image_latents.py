import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image_latents import KLAutoencoder, LatentOptions, fit_latents
from plait.tokenizers.image_metrics import psnr
from plait.tokenizers.pictures import to_tensor

TINY = {"size": 32, "channels": 6, "preset": "tiny", "steps": 150, "n_patches": 2000}


def picture(seed, width=48, height=40):
    """Smooth colours, another frequency and phase for each picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.4, 0.4, (3, 3)) * (1, 1, 8)]
    return Image.fromarray((np.stack(waves, -1) * 120 + 128).astype(np.uint8))


PICTURES = [picture(seed, 40 + seed % 30, 70 - seed % 25) for seed in range(50)]


def quality(model):
    decoded = [model.decode_latents(z) for z in model.encode_latents(PICTURES)]
    pairs = [(to_tensor(d, 32), to_tensor(x, 32)) for d, x in zip(decoded, PICTURES, strict=True)]
    return float(psnr(*(torch.stack(z) for z in zip(*pairs, strict=True))).mean())


@pytest.fixture(scope="module")
def model():
    return fit_latents(PICTURES, LatentOptions(**TINY))


def test_latents_are_normalized_and_decode(model):
    latents = np.stack(model.encode_latents(PICTURES)).astype(np.float64)
    assert latents.shape == (50, 4, 4, 6)
    assert np.abs(latents.mean((0, 1, 2))).max() < 0.1
    assert np.abs(latents.std((0, 1, 2)) - 1).max() < 0.1
    assert quality(model) > 14
    assert model.decode_latents(np.zeros((2, 5, 6), np.float16)).size == (40, 16)


def test_training_helps(model):
    untrained = fit_latents(PICTURES, LatentOptions(**{**TINY, "steps": 0}))
    assert quality(model) > quality(untrained) + 0.2


def test_the_kl_term_costs_detail():
    tight = fit_latents(PICTURES, LatentOptions(**{**TINY, "kl": 1.0}))
    loose = fit_latents(PICTURES, LatentOptions(**{**TINY, "kl": 0.0}))
    assert quality(tight) < quality(loose) - 0.3


@pytest.mark.parametrize("batch, threads", [(1, 1), (3, 2), (50, 2)])
def test_latents_do_not_depend_on_batch_or_threads(model, batch, threads):
    expected = model.encode_latents(PICTURES)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        parts = [PICTURES[i : i + batch] for i in range(0, 50, batch)]
        found = [z for part in parts for z in model.encode_latents(part)]
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_saves_and_loads(model, tmp_path):
    model.save(tmp_path)
    loaded = KLAutoencoder.load(tmp_path)
    first, again = model.encode_latents(PICTURES[:2]), loaded.encode_latents(PICTURES[:2])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert loaded.decode_latents(first[0]).tobytes() == model.decode_latents(first[0]).tobytes()
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"dim": 63}, {"channels": 4}, {"kind": "image:ConvFSQ"}, {"n_blocks": 1}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ConfigError):
            KLAutoencoder.load(tmp_path)
    with pytest.raises(ConfigError, match="no KL autoencoder"):
        KLAutoencoder.load(tmp_path / "none")


def test_wrong_use(model):
    with pytest.raises(SampleError, match="no pictures"):
        fit_latents([], LatentOptions(**TINY))
    for shape in [(4, 4), (4, 4, 3), (0, 4, 6)]:
        with pytest.raises(SampleError, match="latents"):
            model.decode_latents(np.zeros(shape, np.float16))
    with pytest.raises(SampleError, match="finite"):
        model.decode_latents(np.full((2, 2, 6), np.nan))
    for change in ({"size": 30}, {"channels": 0}, {"kl": -1.0}, {"preset": "huge"}):
        with pytest.raises(ConfigError):
            LatentOptions(**{**TINY, **change})
