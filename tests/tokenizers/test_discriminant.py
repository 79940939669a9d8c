import torch

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.discriminant import discriminant
from plait.tokenizers.kmeans import kmeans


def test_directions_tell_sounds_apart_and_not_voices():
    """Four sounds differ a little in one value; voices differ a lot in another, for one sound."""
    generator = torch.Generator().manual_seed(0)
    sound_N = torch.arange(4000) % 4
    noise_NF = torch.randn(4000, 3, generator=generator)
    x_NF = torch.stack([sound_N + 0.1 * noise_NF[:, 0], 3 * noise_NF[:, 1], noise_NF[:, 2]], dim=1)
    guide_NG = 4.0 * torch.eye(4)[sound_N]
    matrix_FD = discriminant(x_NF, guide_NG, 1)
    assert matrix_FD.shape == (3, 1)
    units_N = nearest_code(x_NF @ matrix_FD, kmeans(x_NF @ matrix_FD, 4))
    plain_N = nearest_code(x_NF, kmeans(x_NF, 4))

    def purity(units_N: torch.Tensor) -> float:
        joint = torch.bincount(units_N * 4 + sound_N, minlength=16).view(4, 4)
        return float(joint.amax(1).sum() / len(sound_N))

    assert purity(units_N) > 0.99 > 0.5 > purity(plain_N)


def test_variance_within_cells_is_one_and_the_first_direction_is_the_best():
    generator = torch.Generator().manual_seed(1)
    cell_N = torch.arange(6000) % 5
    centers = torch.randn(5, 4, generator=generator)
    x_NF = centers[cell_N] + 0.3 * torch.randn(6000, 4, generator=generator)
    image_ND = x_NF @ discriminant(x_NF, 9 * torch.eye(5)[cell_N], 4)
    means_KD = torch.stack([image_ND[cell_N == k].mean(0) for k in range(5)])
    within_D = (image_ND - means_KD[cell_N]).square().mean(0)
    assert torch.allclose(within_D, torch.ones(4), atol=0.05)
    spread_D = means_KD.var(0)
    assert torch.equal(spread_D.argsort(descending=True), torch.arange(4))


def test_few_points_and_values_that_never_change():
    matrix_FD = discriminant(torch.zeros(7, 3), torch.zeros(7, 2), 2)
    assert matrix_FD.shape == (3, 2) and torch.isfinite(matrix_FD).all()
