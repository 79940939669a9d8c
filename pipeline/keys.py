"""Keys of a block as JSON: a list of strings, or ranges of numbers where keys only count.

`a1.png`, `a2.png`, `a4.png` are `{"before": "a", "numbers": [[1, 3], [4, 5]], "digits": 0, "after":
".png"}`: ranges are first and past-the-last, and `digits` the width to which numbers are filled up
with zeros. `before` may count too (`row-8#9`) or be a list, one entry a key.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.pipeline.source import Json

DIGITS = "0123456789"
LONGEST_NUMBER = 18
LONGEST = 1024
"""Characters of a text that many keys share, so that few bytes cannot stand for very many."""
DEPTH = 2
"""Numbers in a key that may count."""
KEYS_PER_RANGE = 4
"""Least keys a range, on average; a list is shorter than many small ranges."""


def compact(keys: Sequence[str], depth: int = DEPTH) -> Json:
    """Keys as JSON; `expand` gives them back exactly.

    >>> compact([f"row-{i}" for i in range(8, 12)])
    {'before': 'row-', 'numbers': [[8, 12]], 'digits': 0, 'after': ''}
    """
    counted = _counted(keys, depth) if depth and len(keys) >= KEYS_PER_RANGE else None
    return list(keys) if counted is None else counted


def expand(value: Json, count: int, depth: int = DEPTH) -> tuple[str, ...]:
    """Exactly `count` keys from what `compact` gave; ValueError, KeyError or TypeError if not."""
    if isinstance(value, list):
        if len(value) != count:
            raise ValueError(f"{len(value)} keys of {count} documents")
        return tuple(str(key) for key in value)
    if not isinstance(value, dict) or not depth:
        raise TypeError(f"keys are a {type(value).__name__}")
    numbers = _numbers(value["numbers"], count)
    before, digits, after = value["before"], value["digits"], value["after"]
    if not isinstance(digits, int) or not 0 <= digits <= LONGEST_NUMBER:
        raise ValueError(f"numbers of {digits} digits")
    if not isinstance(after, str) or len(after) > LONGEST:
        raise ValueError("the text after the numbers is too long, or none")
    if isinstance(before, str):
        if len(before) > LONGEST:
            raise ValueError("the text before the numbers is too long")
        return tuple([f"{before}{n:0{digits}d}{after}" for n in numbers])
    heads = expand(before, count, depth - 1)
    return tuple([f"{h}{n:0{digits}d}{after}" for h, n in zip(heads, numbers, strict=True)])


def _counted(keys: Sequence[str], depth: int) -> dict[str, Json] | None:
    """Keys by their last number; None if they do not count."""
    found = re.search(r"[0-9]([^0-9]*)\Z", keys[0])
    if found is None or len(found[1]) > LONGEST:
        return None
    after = found[1]
    bodies = [key.removesuffix(after) for key in keys] if after else keys
    heads = [body.rstrip(DIGITS) for body in bodies]
    texts = [body[len(head) :] for body, head in zip(bodies, heads, strict=True)]
    sizes = set(map(len, texts))
    if min(sizes) == 0 or max(sizes) > LONGEST_NUMBER:
        return None
    numbers = np.array([int(text) for text in texts], np.int64)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    if (len(breaks) + 1) * KEYS_PER_RANGE > len(keys):
        return None
    firsts = numbers[[0, *breaks]].tolist()
    lasts = numbers[[*(breaks - 1), len(numbers) - 1]].tolist()
    same = heads[0] if len(heads[0]) <= LONGEST and len(set(heads)) == 1 else None
    counted: dict[str, Json] = {
        "before": compact(heads, depth - 1) if same is None else same,
        "numbers": [[a, b + 1] for a, b in zip(firsts, lasts, strict=True)],
        "digits": len(texts[0])
        if len(sizes) == 1 and numbers.min() < 10 ** (len(texts[0]) - 1)
        else 0,
        "after": after,
    }
    return counted if expand(counted, len(keys), depth) == tuple(keys) else None


def _numbers(ranges: Any, count: int) -> list[int]:
    """The numbers of ranges, counted before they are made."""
    total, found = 0, []
    if not isinstance(ranges, list):
        raise TypeError("ranges are no list")
    for first, stop in ranges:
        if not 0 <= first < stop <= 10**LONGEST_NUMBER:
            raise ValueError(f"an impossible range {first} .. {stop - 1}")
        total += stop - first
        if total > count:
            raise ValueError(f"more than {count} keys")
        found += range(first, stop)
    if total != count:
        raise ValueError(f"{total} keys of {count} documents")
    return found
