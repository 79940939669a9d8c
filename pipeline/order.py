"""Order without state: hashes in place of random generators.

A permutation is the order of hashed numbers, so it depends on nothing but its arguments and is the
same on every machine and in every version of numpy (whose generators promise no such thing).
"""

import numpy as np

WINDOW_DOCUMENTS = 1 << 17
"""A window takes shards up to so many documents; its plan holds about 100 bytes a document."""


def mix(values: np.ndarray) -> np.ndarray:
    """Hash 64-bit numbers one by one (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashes(numbers: np.ndarray, *salt: int) -> np.ndarray:
    """A uint64 for each number, others for each salt.

    >>> bool((hashes(np.arange(3), 1) == hashes(np.arange(3), 1)).all())
    True
    """
    key = np.zeros(1, np.uint64)
    for part in salt:
        key = mix(key ^ np.array([part & (2**64 - 1)], np.uint64))
    return mix(numbers.astype(np.uint64) ^ key)


def permutation(n: int, *salt: int) -> np.ndarray:
    """The numbers 0 .. n - 1 in an order given by the salt."""
    return np.argsort(hashes(np.arange(n), *salt), kind="stable")


def windows(documents: np.ndarray, *salt: int) -> list[np.ndarray]:
    """Shards in a random order, grouped into windows; each list holds shard numbers.

    The groups are the same in every epoch, so a window always makes the same number of rows, and
    row i is found without planning what comes before it. Documents meet others of their window.
    """
    groups: list[list[int]] = []
    size = WINDOW_DOCUMENTS
    for shard in permutation(len(documents), *salt, 1).tolist():
        if size + int(documents[shard]) > WINDOW_DOCUMENTS and (not groups or groups[-1]):
            groups.append([])
            size = 0
        groups[-1].append(shard)
        size += int(documents[shard])
    return [np.array(group) for group in groups]
