"""Both paths, fed in pieces cut anywhere, against loops over the bytes of each document."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import mark_patches as module
from plait.kernels.compile_c import library
from plait.kernels.mark_patches import (
    Orders,
    State,
    context_entropies,
    mark_entropy,
    mark_separators,
    mark_stride,
)

SEPARATES = np.isin(np.arange(256), list(b" .\n\xc3"))
RNG = np.random.default_rng(0)
ORDERS = Orders(
    *[RNG.integers(0, 1 << 16, 256**order, dtype=np.uint16) for order in range(4)], unit=1 / 8192
)


@pytest.fixture(params=["c", "reference"], scope="module")
def path(request):
    if request.param == "c" and library("mark_patches") is None:
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose", lambda op, fast: request.param)
        yield request.param


@st.composite
def documents(draw) -> list[bytes]:
    letters = st.sampled_from(b"ab .\n\xc3\xa9")
    return draw(st.lists(st.lists(letters, max_size=12).map(bytes), max_size=6))


cuts = st.lists(st.integers(0, 80), max_size=5)
limits = st.integers(0, 4)


def in_pieces(documents: list[bytes], cuts: list[int], call) -> np.ndarray:
    """The results of `call(slice, firsts, state)` on the pieces, one behind the other."""
    data = b"".join(documents)
    firsts = np.cumsum([0, *map(len, documents[:-1])], dtype=np.int64)[: len(documents)]
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    state, found, results = State(), 0, [np.zeros(0)]
    for a, b in pairwise(bounds):
        taken = firsts[found:][firsts[found:] <= b]
        if a == b:  # a document start at a cut may come before or after it
            taken = taken[:1]
        found += len(taken)
        results.append(call(slice(a, b), taken - a, state))
    return np.concatenate(results)


def plain(documents: list[bytes], candidate, limit: int) -> list[bool]:
    """Starts of each document: its first byte, candidates, and after `limit` bytes."""
    starts = []
    for number, document in enumerate(documents):
        length = 0
        for i in range(len(document)):
            start = i == 0 or (limit and length == limit) or candidate(number, document, i)
            length = 1 if start else length + 1
            starts.append(bool(start))
    return starts


@given(documents=documents(), cuts=cuts, limit=st.integers(1, 5))
@settings(max_examples=80)
def test_stride(path, documents, cuts, limit):
    def call(part, firsts, state):
        return mark_stride(part.stop - part.start, firsts, limit, state)

    assert in_pieces(documents, cuts, call).tolist() == plain(documents, lambda *_: False, limit)


@given(documents=documents(), cuts=cuts, limit=limits)
@settings(max_examples=150)
def test_separators(path, documents, cuts, limit):
    data = np.frombuffer(b"".join(documents), np.uint8)

    def call(part, firsts, state):
        return mark_separators(data[part], firsts, SEPARATES, limit, state)

    def after_first_separator(_, document, i):
        return SEPARATES[document[i - 1]] and not (i > 1 and SEPARATES[document[i - 2]])

    wanted = plain(documents, after_first_separator, limit)
    assert in_pieces(documents, cuts, call).tolist() == wanted


@given(
    documents=documents(),
    cuts=cuts,
    limit=limits,
    threshold=st.sampled_from([-np.inf, 0.5, 2.0]),
    rise=st.sampled_from([-np.inf, -0.5, 0.25, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=200)
def test_entropy(path, documents, cuts, limit, threshold, rise, seed):
    rng = np.random.default_rng(seed)
    entropies = [rng.integers(0, 13, len(x)).astype(np.float32) / 4 for x in documents]
    joined = np.concatenate([np.zeros(0, np.float32), *entropies])

    def call(part, firsts, state):
        return mark_entropy(joined[part], firsts, threshold, rise, limit, state)

    def uncertain(number, _, i):
        now, before = entropies[number][i], entropies[number][i - 1]
        return now > threshold and now - before > rise

    assert in_pieces(documents, cuts, call).tolist() == plain(documents, uncertain, limit)


@given(documents=documents(), cuts=cuts)
@settings(max_examples=80)
def test_context_entropies(path, documents, cuts):
    data = np.frombuffer(b"".join(documents), np.uint8)

    def call(part, firsts, state):
        return context_entropies(data[part], firsts, ORDERS, state)

    wanted = []
    for document in documents:
        for i in range(len(document)):
            context = document[max(i - 3, 0) : i]
            value = ORDERS.arrays[len(context)][int.from_bytes(context, "big")]
            wanted.append(float(value) / 8192)
    assert in_pieces(documents, cuts, call).tolist() == wanted


@pytest.mark.skipif(library("mark_patches") is None, reason="no C compiler")
def test_paths_agree_on_arbitrary_floats(monkeypatch):
    """Differences of floats that are no small fractions, infinities and NaN included."""
    entropies = RNG.normal(3, 1, 20_000).astype(np.float32)
    entropies[RNG.integers(0, 20_000, 60)] = np.repeat([np.nan, np.inf, -np.inf], 20)
    firsts = np.unique(RNG.integers(0, 20_000, 50))
    rise = entropies[1] - entropies[0]
    results = []
    for way in ("c", "reference"):
        monkeypatch.setattr(module, "choose", lambda op, fast, way=way: way)
        results.append(mark_entropy(entropies, firsts, 2.5, rise, 7, State()))
    assert np.array_equal(*results)
    assert 0.1 < results[0].mean() < 0.9


def test_wrong_calls(path):
    with pytest.raises(ValueError, match="uint8"):
        mark_separators(np.zeros(3, np.int64), np.array([0]), SEPARATES, 0, State())
    with pytest.raises(ValueError, match="order2"):
        Orders(ORDERS.order0, ORDERS.order1, ORDERS.order1, ORDERS.order3, unit=1.0)


def test_document_starts_outside_are_refused(path):
    for firsts in ([5], [-1, 0], [2, 1]):
        with pytest.raises(ValueError, match="rise"):
            mark_stride(4, np.array(firsts), 2, State())
