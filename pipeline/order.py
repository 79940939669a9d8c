"""Order without state: hashes in place of random generators.

A permutation is the order of hashed numbers, so it depends on nothing but its arguments and is the
same on every machine and in every version of numpy (whose generators promise no such thing).
"""

import numpy as np

WINDOW_DOCUMENTS = 1 << 17
"""A window takes shards of so many documents and less than twice as many, if there are so many;
its plan holds about 100 bytes a document."""


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


def order_of(hashed: np.ndarray) -> np.ndarray:
    """What sorts hashes; equal ones keep their order."""
    order = np.argsort(hashed)
    found = hashed[order]
    return np.argsort(hashed, kind="stable") if (found[1:] == found[:-1]).any() else order


def grouped(groups: np.ndarray) -> np.ndarray:
    """What sorts small numbers; equal ones keep their order. A radix sort, 16 bits at a time."""
    order = np.argsort((groups & 0xFFFF).astype(np.uint16), kind="stable")
    if len(groups) and int(groups.max()) > 0xFFFF:
        order = order[np.argsort((groups >> 16).astype(np.uint16)[order], kind="stable")]
    return order


def permutation(n: int, *salt: int) -> np.ndarray:
    """The numbers 0 .. n - 1 in an order given by the salt."""
    return order_of(hashes(np.arange(n), *salt))


def windows(documents: np.ndarray, *salt: int) -> list[np.ndarray]:
    """Shards in a random order, grouped into windows; each list holds shard numbers.

    The groups are the same in every epoch, so a window always makes the same number of rows, and
    row i is found without planning what comes before it. Documents meet others of their window, so
    the chance that neighbours come from within 1,000 documents is at most 2,000 in its documents:
    windows are of one size, as nearly as shards allow.
    """
    order = permutation(len(documents), *salt, 1)
    ends = np.cumsum(documents[order])
    count = max(1, int(ends[-1]) // WINDOW_DOCUMENTS) if len(ends) else 0
    middles = ends - documents[order] / 2
    number = np.minimum((middles * count / max(1, ends[-1])).astype(np.int64), count - 1)
    return [order[number == w] for w in range(count) if (number == w).any()]
