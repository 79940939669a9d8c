"""How near pictures are to their originals: PSNR, SSIM, and the Frechet distance of two sets.

They take pictures [B, 3, H, W] of values 0..255 (uint8 or float); PSNR and SSIM give one number a
picture, float64 [B]. SSIM is Wang, Bovik, Sheikh and Simoncelli (2004): luma, an 11 x 11 Gaussian
window of deviation 1.5, K1 = 0.01, K2 = 0.03, mean over the windows that lie wholly inside.
"""

import torch
from torch import Tensor
from torch.nn import functional

PEAK = 255.0
BEST_PSNR_DB = 100.0
"""Equal pictures, whose PSNR is infinite, count as this, so that a mean stays finite."""
WINDOW, DEVIATION = 11, 1.5
LUMA = (0.299, 0.587, 0.114)


def psnr(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, at most 100."""
    _check(x_B3HW, y_B3HW)
    error_B = (x_B3HW.double() - y_B3HW.double()).square().mean((1, 2, 3))
    best = PEAK**2 / 10 ** (BEST_PSNR_DB / 10)
    return 10 * torch.log10(PEAK**2 / error_B.clamp(min=best))


def ssim(x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Structural similarity, -1..1; a picture smaller than the window gets a smaller window."""
    _check(x_B3HW, y_B3HW)
    x_B1HW, y_B1HW = _luma(x_B3HW), _luma(y_B3HW)
    kernels = [_gaussian(min(WINDOW, n)) for n in x_B3HW.shape[2:]]

    def local_mean(z_B1HW: Tensor) -> Tensor:
        z_B1HW = functional.conv2d(z_B1HW, kernels[0].view(1, 1, -1, 1))
        return functional.conv2d(z_B1HW, kernels[1].view(1, 1, 1, -1))

    mean_x, mean_y = local_mean(x_B1HW), local_mean(y_B1HW)
    variance_x = local_mean(x_B1HW.square()) - mean_x.square()
    variance_y = local_mean(y_B1HW.square()) - mean_y.square()
    covariance = local_mean(x_B1HW * y_B1HW) - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)  # eq. 13
    similarity /= (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    return similarity.mean((1, 2, 3))


def _luma(x_B3HW: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=torch.float64).view(1, 3, 1, 1)
    return (x_B3HW.double() * weights).sum(1, keepdim=True)


def _gaussian(size: int) -> Tensor:
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * DEVIATION**2))
    return weights / weights.sum()


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"two batches [B, 3, H, W], not {tuple(x.shape)} and {tuple(y.shape)}")


def texture_features(x_B3HW: Tensor) -> Tensor:
    """Statistics of colour and edges at four scales, float64 [B, 48], for `frechet`.

    At each scale, and for each of luma and two colour differences (all in 0..1 or around 0): mean,
    deviation, and mean size of the differences to the right and to the pixel below.
    """
    x = x_B3HW.double() / PEAK
    red, green, blue = x.unbind(1)
    x = torch.stack([_luma(x)[:, 0], red - green, blue - (red + green) / 2], 1)
    features = []
    for scale in range(4):
        x = x if scale == 0 else functional.avg_pool2d(x, 2, ceil_mode=True)
        features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        for axis in (2, 3):
            change = x.diff(dim=axis).abs() if x.shape[axis] > 1 else torch.zeros_like(x)
            features.append(change.mean((2, 3)))
    return torch.cat(features, 1)


def frechet(x_ND: Tensor, y_MD: Tensor) -> float:
    """Frechet distance of the Gaussians of two sets of features (arXiv:1706.08500, eq. 6).

    A covariance of fewer than D pictures has no full rank: compare only runs of as many pictures.
    """
    mean = (x_ND.mean(0) - y_MD.mean(0)).square().sum()
    x_DD, y_DD = (_covariance(z.double()) for z in (x_ND, y_MD))
    root_DD = _root(x_DD)
    cross = _root(root_DD @ y_DD @ root_DD).trace()
    return max(0.0, float(mean + x_DD.trace() + y_DD.trace() - 2 * cross))


def _covariance(x_ND: Tensor) -> Tensor:
    centred_ND = x_ND - x_ND.mean(0)
    return centred_ND.T @ centred_ND / max(1, len(x_ND) - 1)


def _root(x_DD: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues but by rounding."""
    values_D, vectors_DD = torch.linalg.eigh((x_DD + x_DD.T) / 2)
    return vectors_DD * values_D.clamp(min=0).sqrt() @ vectors_DD.T
