import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.tokenizers.base import Encoded, load_tokenizer
from plait.tokenizers.errors import ConfigError, SampleError
from plait.tokenizers.image import ConvFSQ, FitOptions, PatchKMeans, evaluate, fit
from plait.tokenizers.image_fit import squared_error
from plait.tokenizers.pictures import random_crops, to_tensor, to_thumbnail

from .made_pictures import picture

TINY = FitOptions(size=32, stride=8, levels=(5, 4, 3), dim=32, n_blocks=1, steps=20, n_patches=3000)


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed, 40 + seed % 30, 70 - seed % 25) for seed in range(70)]


@pytest.fixture(scope="module", params=["fsq", "patches"])
def tokenizer(request, pictures):
    return fit(pictures, options(method=request.param))


def options(**changes):
    return FitOptions(**{**vars(TINY), **changes})


def ids_of(tokenizer, samples):
    return [e.ids for e in tokenizer.encode_batch(samples)]


def test_grid_and_vocabulary(tokenizer, pictures):
    encoded = tokenizer.encode_batch(pictures[:5])
    assert (tokenizer.modality, tokenizer.splittable, tokenizer.vocab_size) == ("image", False, 60)
    assert (tokenizer.span_length, tokenizer.width) == (16, 4)
    for one in encoded:
        assert one.grid == (4, 4) and one.ids.dtype == np.uint16 and one.ids.max() < 60
    assert len(np.unique(np.concatenate([e.ids for e in encoded]))) > 20


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_ids_do_not_depend_on_batch_or_threads(tokenizer, pictures, batch, threads):
    expected = ids_of(tokenizer, pictures)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = [
            ids
            for i in range(0, len(pictures), batch)
            for ids in ids_of(tokenizer, pictures[i : i + batch])
        ]
        mates = ids_of(tokenizer, pictures[::-1])[::-1]
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(mates, expected, strict=True))


def test_decodes_to_a_picture_like_the_original(tokenizer, pictures):
    report = evaluate(tokenizer, pictures)
    assert report["psnr"] > 13 and report["ssim"] > 0.3
    image = tokenizer.decode(tokenizer.encode_batch(pictures[:1])[0])
    assert image.mode == "RGB" and image.size == (32, 32)


def test_report(tokenizer, pictures):
    report = evaluate(tokenizer, pictures[:10])
    ids = np.concatenate(ids_of(tokenizer, pictures[:10]))
    assert report["codes_used"] == len(np.unique(ids)) == 60 - report["codes_dead"]
    assert report["bits_per_image"] == pytest.approx(16 * np.log2(60))
    assert report["bits_per_pixel"] == pytest.approx(16 * np.log2(60) / 1024)
    assert 1 < report["perplexity"] <= report["codes_used"]


def test_saves_and_loads(tokenizer, pictures, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer) and loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(ids_of(loaded, pictures), ids_of(tokenizer, pictures))
    encoded = tokenizer.encode_batch(pictures[:1])[0]
    assert loaded.decode(encoded).tobytes() == tokenizer.decode(encoded).tobytes()


@pytest.mark.parametrize("method", ["fsq", "patches"])
def test_fit_depends_on_seed_alone(method, pictures):
    chosen = options(method=method, steps=3)
    before = torch.get_num_threads()
    state = torch.get_rng_state()
    try:
        torch.set_num_threads(1)
        first = fit(pictures, chosen).fingerprint
        torch.set_num_threads(2)
        assert fit(iter(pictures), chosen).fingerprint == first
    finally:
        torch.set_num_threads(before)
    assert fit(pictures, chosen, seed=1).fingerprint != first
    assert torch.equal(torch.get_rng_state(), state)


def test_fsq_beats_patches_at_equal_bits():
    train = [picture(seed, 40 + seed % 30, 70 - seed % 25) for seed in range(200)]
    held_out = [picture(seed) for seed in range(1000, 1040)]
    report = {
        method: evaluate(fit(train, options(method=method, dim=64, steps=250)), held_out)
        for method in ("fsq", "patches")
    }
    assert report["fsq"]["bits_per_image"] == report["patches"]["bits_per_image"]
    assert report["fsq"]["psnr"] > report["patches"]["psnr"] + 0.2


def test_untrained_autoencoder_is_as_good_as_patches(pictures):
    report = {
        m: evaluate(fit(pictures, options(method=m, steps=0)), pictures) for m in ("fsq", "patches")
    }
    assert report["fsq"]["psnr"] > report["patches"]["psnr"] - 0.5


def test_pictures_of_any_shape(tokenizer):
    for size in [(1, 1), (1, 3000), (3000, 1), (2, 5), (33, 31)]:
        encoded = tokenizer.encode_batch([Image.new("RGB", size, (200, 30, 60))])[0]
        decoded = np.asarray(tokenizer.decode(encoded), np.float32)
        assert decoded.shape == (32, 32, 3)
        assert to_thumbnail(Image.new("RGB", size), 32).numel() <= 3 * 48 * 48 * 4


def test_other_modes_than_rgb(tokenizer, pictures):
    grey = pictures[0].convert("L")
    assert np.array_equal(*ids_of(tokenizer, [grey, grey.convert("RGB")]))


@pytest.mark.parametrize("method", ["fsq", "patches"])
def test_fits_on_one_plain_picture(method):
    white = Image.new("RGB", (20, 30), "white")
    tokenizer = fit([white], options(method=method, steps=2))
    assert len({tuple(ids) for ids in ids_of(tokenizer, [white] * 3)}) == 1
    assert evaluate(tokenizer, [white])["psnr"] > 40


def test_middle_square_and_crops():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    wide = Image.fromarray(pixels)
    assert to_tensor(wide, 32).min() == 255
    crops = random_crops([to_thumbnail(wide, 32)], 50, 32, torch.Generator().manual_seed(0))
    assert crops.shape == (50, 3, 32, 32) and crops.dtype == torch.uint8
    assert crops.min() == 0 and crops.max() == 255


def test_size_of_another_grid(pictures):
    tokenizer = fit(pictures[:8], options(size=48, stride=4, method="fsq", steps=1))
    assert tokenizer.encode_batch(pictures[:1])[0].grid == (12, 12)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 60},
        {"stride": 0},
        {"stride": 65, "size": 65},
        {"levels": ()},
        {"levels": (8, 1)},
        {"levels": (300, 300)},
        {"method": "vq"},
        {"steps": -1},
        {"threads": 0},
        {"max_images": 0},
        {"n_patches": 0},
    ],
)
def test_wrong_options(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        options(**change)


def test_wrong_samples(tokenizer):
    with pytest.raises(SampleError, match="PIL"):
        tokenizer.encode_batch(["a string"])
    with pytest.raises(SampleError, match="16"):
        tokenizer.decode(Encoded(ids=np.zeros(15, np.int64), width=4))
    with pytest.raises(SampleError, match="60"):
        tokenizer.decode(Encoded(ids=np.full(16, 60), width=4))
    with pytest.raises(SampleError, match="no pictures"):
        evaluate(tokenizer, [])
    with pytest.raises(SampleError, match="no pictures"):
        fit([], TINY)


@pytest.mark.parametrize(
    "key, value", [("stride", 4), ("levels", [5, 4]), ("dim", 31), ("n_blocks", 2)]
)
def test_configuration_of_another_network(pictures, tmp_path, key, value):
    fit(pictures[:4], options(steps=0)).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError):
        load_tokenizer(tmp_path)


def test_damaged_weights(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ConfigError, match="damaged"):
        load_tokenizer(tmp_path)
    assert isinstance(tokenizer, (ConvFSQ, PatchKMeans))


def test_patience_ends_a_fit_that_learns_its_pictures_by_heart(pictures):
    looks, shares = [], []

    def progress(message, share, **figures):
        looks.extend(v for name, v in figures.items() if name == "loss_aside")
        shares.extend([share] if "squared_error" in figures else [])

    few = options(steps=400, patience=3)
    stopped = fit(pictures[:8], few, progress=progress)
    assert len(looks) < 50 and max(shares) < 0.9
    assert min(looks) not in looks[-3:]
    assert isinstance(stopped, ConvFSQ)
    aside = [to_thumbnail(pictures[0], 32)]
    assert squared_error(stopped.model, aside, 32) == pytest.approx(min(looks))
