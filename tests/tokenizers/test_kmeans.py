import numpy as np
import pytest
import torch

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.kmeans import assign, kmeans


def points(n=2000, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_finds_separate_clusters():
    centres = 100 * torch.eye(5)
    x = centres.repeat_interleave(40, 0) + 0.1 * points(200, 5)
    found = kmeans(x, 5)
    nearest = nearest_code(centres, found)
    assert len(nearest.unique()) == 5
    assert torch.allclose(found[nearest], centres, atol=0.1)


def test_equals_a_plain_lloyd_loop_from_its_own_result():
    x = points()
    centroids = kmeans(x, 16, iterations=200)
    index, _ = assign(x, centroids)
    means = np.stack([x[index == c].double().mean(0).numpy() for c in range(16)])
    assert np.allclose(means, centroids.numpy(), atol=1e-6)  # a fixed point of Lloyd's iteration


def test_more_iterations_are_never_worse():
    x = points()
    errors = [float(assign(x, kmeans(x, 32, iterations=i))[1].mean()) for i in (1, 3, 30)]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[2] < errors[0]


@pytest.mark.parametrize("distinct", [1, 3, 9])
def test_fewer_distinct_points_than_centroids(distinct):
    values = points(distinct, 4)
    x = values.repeat(50, 1)
    centroids = kmeans(x, 16)
    index, distance = assign(x, centroids)
    assert centroids.shape == (16, 4)
    assert torch.isfinite(centroids).all()
    assert len(index.unique()) == distinct
    assert float(distance.max()) < 1e-9


def test_one_point_and_k_above_n():
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(kmeans(x, 4), x.expand(4, 2))


def test_empty_cells_are_restarted():
    x = torch.cat([torch.zeros(5000, 2), points(64, 2) * 10])
    centroids = kmeans(x, 60, iterations=30)
    assert len(assign(x, centroids)[0].unique()) == 60


def test_same_bits_for_the_same_seed_and_any_number_of_threads():
    x, before = points(5000, 32), torch.get_num_threads()
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        results.append(kmeans(x, 64, iterations=5, seed=3))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], kmeans(x, 64, iterations=5, seed=4))


def test_max_points_bounds_what_is_looked_at():
    x = torch.cat([points(500, 3), torch.full((1, 3), 1e6)])
    kept = kmeans(x, 4, max_points=10, seed=0)
    assert float(kept.abs().max()) < 1e6


@pytest.mark.parametrize(("x", "k"), [(torch.zeros(0, 3), 2), (torch.zeros(3), 2), (points(), 0)])
def test_wrong_arguments(x, k):
    with pytest.raises(ValueError, match="k-means needs"):
        kmeans(x, k)


def test_progress_ends_at_one():
    seen = []
    kmeans(points(), 8, progress=lambda message, share: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
