"""How near a picture is to its original: PSNR and SSIM, of a whole batch at once.

Both take pictures [B, 3, H, W] of values 0..255 (uint8 or float) and give one number a picture,
float64 [B]. SSIM is Wang, Bovik, Sheikh and Simoncelli (2004): luma, an 11 x 11 Gaussian window of
deviation 1.5, K1 = 0.01, K2 = 0.03, mean over the windows that lie wholly inside the picture.
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
