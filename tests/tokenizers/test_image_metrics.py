import math

import numpy as np
import pytest
import torch

from plait.tokenizers.image_metrics import psnr, ssim


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
