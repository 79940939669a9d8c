"""Where patches of bytes start: by stride, after separators, or where the next byte is uncertain.

Special here: documents lie back to back, and what a rule must remember of the bytes before (the
open patch's length, three bytes, an entropy) is a `State` that each call reads and leaves behind.
So a text cut anywhere gives the same starts as the whole, and memory stays bounded. Each function
takes `firsts`: the rising places, int64 [m], at which documents begin among the N items; one may be
N, for a document that begins with the next call. The C path is one pass; the definition is numpy.

A start before byte i is decided by bytes before i alone.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from plait.kernels.choose import choose
from plait.kernels.compile_c import library


class State(ctypes.Structure):
    """What one call leaves for the next; fresh, it stands before a document."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("context", ctypes.c_int64),
        ("known", ctypes.c_int64),
        ("entropy", ctypes.c_float),
    )


@dataclass(frozen=True, eq=False)
class Orders:
    """Entropies of a byte by the bytes before it, uint16 in `unit`s."""

    order0: np.ndarray
    """[1], at the start of a document."""
    order1: np.ndarray
    """[256]."""
    order2: np.ndarray
    """[2^16], the newest byte lowest."""
    order3: np.ndarray
    """[2^24]; 32 MiB."""
    unit: float
    arrays: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        arrays = (self.order0, self.order1, self.order2, self.order3)
        for order, array in enumerate(arrays):
            if array.dtype != np.uint16 or array.shape != (256**order,):
                raise ValueError(f"order{order} is {array.dtype} {array.shape}")
        object.__setattr__(self, "arrays", tuple(map(np.ascontiguousarray, arrays)))


def mark_stride(n: int, firsts: np.ndarray, size: int, state: State) -> np.ndarray:
    """Bool [n]: a patch every `size` bytes of a document (MEGABYTE, arXiv:2305.07185).

    >>> mark_stride(5, np.array([0]), 2, State()).astype(int)
    array([1, 0, 1, 0, 1])
    """
    firsts = _checked(firsts, n)
    if not _c():
        return _limit(_first(n, firsts, state), size, firsts, state)
    starts = np.empty(n, bool)
    _call("mark_stride", n, len(firsts), firsts, size, state, starts)
    return starts


def mark_entropy(
    entropies_N: np.ndarray,
    firsts: np.ndarray,
    threshold: float,
    rise: float,
    max_patch: int,
    state: State,
) -> np.ndarray:
    """Bool [N]: a patch where entropy > threshold and it is above the one before by > rise.

    `entropies_N[i]` float32 is of the prediction of byte i from bytes before it. -inf for
    `threshold` or `rise` leaves that condition out: the global and the monotonic rule of BLT
    (arXiv:2412.09871, section 2.3). A patch of `max_patch` bytes ends; 0 for no limit.

    >>> entropies = np.array([1, 1, 3, 2, 2, 2], np.float32)
    >>> mark_entropy(entropies, np.array([0]), 2.5, -np.inf, 3, State()).astype(int)
    array([1, 0, 1, 0, 0, 1])
    """
    entropies_N = np.ascontiguousarray(entropies_N, np.float32)
    n = len(entropies_N)
    firsts = _checked(firsts, n)
    if not _c():
        starts = _first(n, firsts, state)
        before = np.concatenate([np.full(1, state.entropy, np.float32), entropies_N])
        with np.errstate(invalid="ignore"):
            risen = before[1:] - before[:-1]
        starts |= (entropies_N > np.float32(threshold)) & (risen > np.float32(rise))
        state.entropy = before[-1]
        return _limit(starts, max_patch, firsts, state)
    starts, documents = np.empty(n, bool), (len(firsts), firsts)
    limits = (ctypes.c_float(threshold), ctypes.c_float(rise), max_patch)
    _call("mark_entropy", n, entropies_N, *documents, *limits, state, starts)
    return starts


def mark_separators(
    bytes_N: np.ndarray, firsts: np.ndarray, separates: np.ndarray, max_patch: int, state: State
) -> np.ndarray:
    """Bool [N]: a patch after the first byte of each run of bytes of which `separates` [256] is 1.

    >>> separates = np.arange(256) == ord(" ")
    >>> text = np.frombuffer(b"a  b c", np.uint8)
    >>> mark_separators(text, np.array([0]), separates, 0, State()).astype(int)
    array([1, 0, 1, 0, 0, 1])
    """
    bytes_N, separates = _uint8(bytes_N), np.ascontiguousarray(separates, bool)
    n = len(bytes_N)
    firsts = _checked(firsts, n)
    if not _c():
        begun = np.concatenate([[-state.known], firsts])
        marks = separates[_with_context(bytes_N, firsts, state)]
        second = marks[1:-2].copy()
        second[begun[(begun >= -1) & (begun < n - 1)] + 1] = False
        ends = marks[2:-1] & ~second
        return _limit(_first(n, firsts, state) | ends, max_patch, firsts, state)
    starts, documents = np.empty(n, bool), (len(firsts), firsts)
    _call("mark_separators", n, bytes_N, *documents, separates, max_patch, state, starts)
    return starts


def context_entropies(
    bytes_N: np.ndarray, firsts: np.ndarray, orders: Orders, state: State
) -> np.ndarray:
    """Float32 [N]: the entropy of each byte by the three before it in its document."""
    bytes_N = _uint8(bytes_N)
    n = len(bytes_N)
    firsts = _checked(firsts, n)
    if not _c():
        begun = np.concatenate([[-state.known], firsts])
        padded = _with_context(bytes_N, firsts, state).astype(np.int32)
        context = (padded[:-3] << 16 | padded[1:-2] << 8 | padded[2:-1])[:n]
        values = orders.order3[context]
        for known, array in enumerate(orders.arrays[:3]):
            place = np.unique(begun + known)
            place = place[(place >= 0) & (place < n)]
            place = place[place - begun[np.searchsorted(begun, place, side="right") - 1] == known]
            values[place] = array[context[place] % len(array)]
        return values.astype(np.float32) * np.float32(orders.unit)
    entropies_N = np.empty(n, np.float32)
    unit = ctypes.c_float(orders.unit)
    arrays = (len(firsts), firsts, *orders.arrays)
    _call("context_entropies", n, bytes_N, *arrays, unit, state, entropies_N)
    return entropies_N


def _first(n: int, firsts: np.ndarray, state: State) -> np.ndarray:
    """True where a document begins."""
    first = np.zeros(n, bool)
    first[firsts[firsts < n]] = True
    if state.length == 0:
        first[:1] = True
    return first


def _limit(starts: np.ndarray, size: int, firsts: np.ndarray, state: State) -> np.ndarray:
    """The starts, and one more each `size` bytes after each of them; the state moves on."""
    n = len(starts)
    place = np.flatnonzero(starts)
    if state.length:
        place = np.concatenate([[-state.length], place])
    if size:
        more = (np.diff(place, append=n) - 1) // size
        count = np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more) + 1
        starts[np.repeat(place, more) + size * count] = True
    last = np.flatnonzero(starts)[-1:]
    state.length = n - int(last[0]) if len(last) else state.length + n
    if len(firsts) and firsts[-1] == n:
        state.length = 0
    return starts


def _with_context(bytes_N: np.ndarray, firsts: np.ndarray, state: State) -> np.ndarray:
    """The three bytes before, and the bytes [3 + N]; the state moves on."""
    context = [state.context >> shift & 255 for shift in (16, 8, 0)]
    padded = np.concatenate([np.array(context, np.uint8), bytes_N])
    known = len(bytes_N) - (firsts[-1] if len(firsts) else -state.known)
    state.known = min(int(known), 3)
    state.context = int.from_bytes(padded[-3:].tobytes(), "big")
    return padded


def _c() -> bool:
    fast = "c" if library("mark_patches") is not None else "reference"
    return choose("mark_patches", fast) == "c"


def _call(name: str, *arguments: object) -> None:
    compiled = library("mark_patches")
    assert compiled is not None
    function: Callable = getattr(compiled, name)
    function.restype = None
    function(*map(_as_c, arguments))


def _as_c(value: object) -> object:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, State):
        return ctypes.byref(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def _checked(firsts: np.ndarray, n: int) -> np.ndarray:
    firsts = np.ascontiguousarray(firsts, np.int64)
    if len(firsts) and not (firsts[0] >= 0 and firsts[-1] <= n and (np.diff(firsts) >= 0).all()):
        raise ValueError(f"document starts should rise within 0..{n}")
    return firsts


def _uint8(bytes_N: np.ndarray) -> np.ndarray:
    if bytes_N.dtype != np.uint8:
        raise ValueError(f"bytes should be uint8, not {bytes_N.dtype}")
    return np.ascontiguousarray(bytes_N)
