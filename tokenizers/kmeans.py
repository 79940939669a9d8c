"""K-means: greedy k-means++ seeding on a subsample, Lloyd's iterations, empty cells restarted.

The same points, k and seed give the same centroids to the last bit on a CPU, on 1 thread or more:
random numbers come from one seeded generator, distances from `nearest_code` (exact whatever the
chunks and threads) and sums from a sequential `index_add_`. Cost: some `iterations * N * K * D`
multiply-adds; 1024 centroids of 200,000 x 64 points take about 12 CPU-seconds.

N points, K centroids, D their width.
"""

import torch
from torch import Tensor

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.base import Progress, ignore

SEEDING_POINTS = 8
"""Points a centroid that k-means++ chooses among."""
SEEDING_TRIES = 4
"""Draws of which greedy k-means++ takes the best."""
ROUNDING = 1e-10
"""Squared distances below this share of the largest squared norm count as none."""


def kmeans(
    x_ND: Tensor,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 20,
    max_points: int = 200_000,
    progress: Progress = ignore,
) -> Tensor:
    """Centroids [k, D] of float32 points.

    With fewer distinct points than k the rest of the rows repeat one of them; as `nearest_code`
    takes the lowest id of equals, the repeats are never used.
    """
    if x_ND.ndim != 2 or not len(x_ND) or k < 1:
        raise ValueError(f"k-means needs points [N, D] and k >= 1, got {tuple(x_ND.shape)}, k={k}")
    generator = torch.Generator().manual_seed(seed)
    x_ND = _sample(x_ND.float(), max_points, generator)
    centroids_KD = _seed_centroids(_sample(x_ND, SEEDING_POINTS * k, generator), k, generator)
    previous_N = None
    for i in range(iterations):
        progress("k-means", i / iterations)
        index_N, distance_N = assign(x_ND, centroids_KD)
        if previous_N is not None and torch.equal(index_N, previous_N):
            break
        centroids_KD, previous_N = _update(x_ND, index_N, distance_N, k), index_N
    progress("k-means", 1.0)
    return centroids_KD


def assign(x_ND: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, int64 [N], and its squared distance, float32 [N]."""
    index_N = nearest_code(x_ND, centroids_KD)
    return index_N, (x_ND - centroids_KD[index_N]).square().sum(1)


def _sample(x_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(x_ND) <= count:
        return x_ND
    return x_ND[torch.randperm(len(x_ND), generator=generator)[:count].to(x_ND.device)]


def _seed_centroids(x_ND: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): the best of a few draws by distance."""
    chosen = [int(torch.randint(len(x_ND), (1,), generator=generator))]
    distance_N = (x_ND - x_ND[chosen[0]]).square().sum(1)
    norm_N = x_ND.square().sum(1)
    while len(chosen) < k and float(distance_N.max()) > 0:
        cumulative_N = distance_N.double().cumsum(0)
        draws = torch.rand(SEEDING_TRIES, generator=generator, dtype=torch.float64).to(x_ND.device)
        tried = torch.searchsorted(cumulative_N, draws * cumulative_N[-1], right=True)
        tried = tried.clamp(max=len(x_ND) - 1)
        to_tried = norm_N[tried, None] + norm_N - 2 * (x_ND[tried] @ x_ND.T)
        left = torch.minimum(to_tried.clamp(min=0), distance_N)
        total = left.cumsum(1, dtype=torch.float64)[:, -1]  # sum() may add in another order
        best = int(tried[total.argmin()])
        chosen.append(best)
        distance_N = torch.minimum(distance_N, (x_ND - x_ND[best]).square().sum(1))
    return x_ND[chosen + chosen[:1] * (k - len(chosen))]


def _update(x_ND: Tensor, index_N: Tensor, distance_N: Tensor, k: int) -> Tensor:
    """Means of the cells; an empty cell restarts at a point that is far from its centroid."""
    counts_K = torch.bincount(index_N, minlength=k)
    sums_KD = x_ND.new_zeros(k, x_ND.shape[1]).index_add_(0, index_N, x_ND)
    means_KD = sums_KD / counts_K.clamp(min=1)[:, None]
    empty = (counts_K == 0).nonzero().flatten()
    if len(empty):
        far = torch.argsort(distance_N, descending=True, stable=True)[: len(empty)]
        far = far[distance_N[far] > ROUNDING * x_ND.square().sum(1).max()]
        means_KD[empty] = means_KD[counts_K.argmax()].clone()
        means_KD[empty[: len(far)]] = x_ND[far]
    return means_KD
