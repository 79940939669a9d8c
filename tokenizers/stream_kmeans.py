"""K-means on a stream of any length in bounded memory: Lloyd's on a pool, then mini-batches.

The first `pool` points are held and fitted as kmeans.py does; a stream that ends within them gets
just that. Every later batch moves each centroid to the running mean of all points it was nearest to
(Sculley 2010, algorithm 1, a batch at a time). The same stream and seed give the same bits; another
order of the stream gives other centroids, so mix speakers before.

N points, K centroids, D width.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from plait.kernels.nearest_code import nearest_code
from plait.tokenizers.kmeans import kmeans

POOL = 100_000
"""Points held for the start: 307 MB of 768 float32 values."""
BATCH = 10_000
"""Points of a later update, or a little more, as pieces stay whole."""


class StreamKMeans:
    """Centroids `centroids_KD`, and how many points each has seen, `counts_K`."""

    def __init__(self, x_ND: Tensor, k: int, *, seed: int = 0) -> None:
        self.centroids_KD = kmeans(x_ND, k, seed=seed)
        self.counts_K = torch.bincount(nearest_code(x_ND, self.centroids_KD), minlength=k)

    def update(self, x_ND: Tensor) -> None:
        """Move the centroids towards a batch of points."""
        index_N = nearest_code(x_ND, self.centroids_KD)
        new_K = torch.bincount(index_N, minlength=len(self.counts_K))
        sums_KD = torch.zeros_like(self.centroids_KD).index_add_(0, index_N, x_ND)
        self.counts_K = self.counts_K + new_K
        step_KD = sums_KD - new_K[:, None] * self.centroids_KD
        self.centroids_KD = self.centroids_KD + step_KD / self.counts_K.clamp(min=1)[:, None]


def batches(pieces: Iterable[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Lists of whole pieces: the first of `POOL` points or a little more, the next of `BATCH`.

    A piece's points are the rows of its first tensor.
    """
    held: list[tuple[Tensor, ...]] = []
    size, limit = 0, POOL
    for piece in pieces:
        held.append(piece)
        size += len(piece[0])
        if size >= limit:
            yield held
            held, size, limit = [], 0, BATCH
    if held:
        yield held
