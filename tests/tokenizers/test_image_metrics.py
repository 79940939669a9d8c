import math

import numpy as np
import pytest
import torch

from plait.tokenizers.image_metrics import frechet, psnr, ssim, texture_features


def pictures(seed, batch=3, height=20, width=17):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
    noise = rng.normal(0, 20, x.shape)
    return torch.from_numpy(x), torch.from_numpy(np.clip(x + noise, 0, 255).astype(np.uint8))


def ssim_by_loop(x, y):
    """Wang et al. 2004, eq. 14-16 window by window."""
    x, y = (0.299 * z[0].double() + 0.587 * z[1].double() + 0.114 * z[2].double() for z in (x, y))
    weight = torch.tensor(
        [
            [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
            for i in range(11)
        ],
        dtype=torch.float64,
    )
    weight /= weight.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
            values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(torch.stack(values).mean())


def test_psnr_against_a_loop():
    x, y = pictures(0)
    for i, value in enumerate(psnr(x, y)):
        squares = [
            (float(a) - float(b)) ** 2 for a, b in zip(x[i].flatten(), y[i].flatten(), strict=True)
        ]
        assert value.item() == pytest.approx(
            10 * math.log10(255**2 / (sum(squares) / len(squares)))
        )


def test_ssim_against_a_loop():
    x, y = pictures(1)
    for i, value in enumerate(ssim(x, y)):
        assert value.item() == pytest.approx(ssim_by_loop(x[i], y[i]), abs=1e-9)


def test_known_values():
    black, white = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 255.0)
    assert psnr(black, white).item() == pytest.approx(0)
    assert psnr(white, white).item() == 100
    assert ssim(white, white).item() == pytest.approx(1)
    assert ssim(black, white).item() < 0.001


def test_small_pictures_and_flat_ones():
    x, y = pictures(2, batch=2, height=8, width=5)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    assert (ssim(x, y) < 1).all()


def test_shapes_are_checked():
    x, y = pictures(0)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="B, 3, H, W"):
            metric(x, y[:2])
        with pytest.raises(ValueError, match="B, 3, H, W"):
            metric(x[:, 0], y[:, 0])


def test_frechet_of_known_gaussians():
    """Of two normal distributions with commuting covariances it has a closed form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    scale, shift = torch.tensor([2.0, 1.0, 0.5]).double(), torch.tensor([1.0, 0, 3]).double()
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet(x, x * scale + shift) == pytest.approx(expected, rel=1e-6)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet(x[:1], x[:1]) == 0


def test_texture_features_see_colour_and_blur():
    x, _ = pictures(0, batch=30)
    blurred = torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1)
    features = texture_features(x)
    assert features.shape == (30, 48) and features.dtype == torch.float64
    grey = x.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert frechet(features, texture_features(blurred)) > 0.01
    assert frechet(features, texture_features(grey)) > 0.01
    half = frechet(features[:15], features[15:])
    assert half < frechet(features, texture_features(blurred))
    assert torch.isfinite(texture_features(x[..., :1, :1])).all()
