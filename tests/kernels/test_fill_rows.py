import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import fill_rows as module
from plait.kernels.compile_c import library
from plait.kernels.fill_rows import Documents, Filled, Kinds, Pieces, fill_rows, reference

KINDS = Kinds(
    np.array([10, 500, 900], np.int64),
    np.array([-1, 3, 5], np.int64),
    np.array([-1, 4, 6], np.int64),
    np.array([0, 1, 2], np.uint8),
)


def made_documents(rng: np.random.Generator, count: int) -> tuple[Documents, list]:
    """Documents in two blocks, the second with wide ids; the third kind has patch starts."""
    blocks = [(rng.integers(0, 99, 5000).astype(t), rng.integers(0, 256, 700).astype(np.uint8))
              for t in (np.uint16, np.uint32)]  # fmt: skip
    spans, starts = [], [0]
    for _ in range(count):
        block = int(rng.integers(0, 2))
        for _ in range(rng.integers(1, 6)):
            kind, length = int(rng.integers(0, 3)), int(rng.integers(0, 40))
            bit = int(rng.integers(0, 700 * 8 - 40)) if kind == 2 else -1
            spans.append((int(rng.integers(0, 4900)), length, block, kind, bit))
        starts.append(len(spans))
    table = Documents(
        np.array(starts), np.array(spans, np.int32).reshape(-1, 5), np.array([0, 1], np.uint8)
    )
    return table, blocks


def inside(spans: np.ndarray, place: int) -> bool:
    """Whether a place is among the tokens of a span with markers."""
    at = 1
    for _, length, _, kind, _ in spans.tolist():
        if kind > 0 and at + 1 <= place < at + 1 + length:
            return True
        at += length + 2 * (kind > 0)
    return False


def made_pieces(rng: np.random.Generator, documents: Documents, rows: int, T: int) -> Pieces:
    """Rows full of any parts of documents, and padding at the end of some."""
    found, ends = [], [0]
    for _ in range(rows):
        room = T
        while room and rng.random() < 0.9:
            d = int(rng.integers(0, len(documents.span_starts) - 1))
            spans = documents.spans[slice(*documents.span_starts[d : d + 2])]
            size = 2 + int((spans[:, 1] + 2 * (spans[:, 3] > 0)).sum())
            start = int(rng.integers(0, size)) if rng.random() < 0.7 else 0
            stop = min(size, start + room)
            found.append((d, start, stop, 0))
            if inside(spans, start) and stop - start < room:
                found[-1] = (d, start, stop, 1)
            room -= stop - start + found[-1][3]
        found.append((-1, 0, room, 0))
        ends.append(len(found))
    columns = np.array(found, np.int64).T.copy()
    return Pieces(
        documents=columns[0], starts=columns[1], stops=columns[2], again=columns[3],
        rows=np.array(ends),
    )  # fmt: skip


def garbage(rows: int, T: int, masks: bool, patches: bool) -> Filled:
    """Memory in which an element that is not written shows."""
    if not masks:
        return Filled(tokens=torch.full((rows, T), 77))
    return Filled(
        tokens=torch.full((rows, T), 77),
        modality=torch.full((rows, T), 77, dtype=torch.uint8),
        document=torch.full((rows, T), 77, dtype=torch.int32),
        position=torch.full((rows, T), 77, dtype=torch.int32),
        loss_mask=torch.ones(rows, T, dtype=torch.bool),
        patch_starts=torch.ones(rows, T, dtype=torch.bool) if patches else None,
    )


def same(a: Filled, b: Filled) -> bool:
    pairs = [(getattr(a, n), getattr(b, n)) for n in vars(a)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


@pytest.mark.skipif(library("fill_rows") is None, reason="no C compiler")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([1, 7, 64, 200]))
def test_the_compiled_path_equals_the_definition(seed, masks, patches, T):
    rng = np.random.default_rng(seed)
    documents, blocks = made_documents(rng, 12)
    for number, block in enumerate(blocks):
        documents.open(number, *block)
    pieces = made_pieces(rng, documents, 6, T)
    for rows, to in (([4, 0, 5], [2, 0, 1]), (range(1, 4), range(3))):
        want, got = (garbage(3, T, masks, patches) for _ in range(2))
        expected = reference(documents, pieces, KINDS, want, rows, to)
        assert module._compiled(documents, pieces, KINDS, got, rows, to) == expected
        assert same(want, got)


@pytest.mark.parametrize("path", ["reference", ""])
def test_closed_blocks_are_asked_for(monkeypatch, path):
    monkeypatch.setenv("PLAIT_KERNELS", path)
    rng = np.random.default_rng(1)
    documents, blocks = made_documents(rng, 12)
    pieces = made_pieces(rng, documents, 6, 64)
    asked = []
    while True:
        out = garbage(6, 64, True, True)
        closed, patched = fill_rows(documents, pieces, KINDS, out, range(6), range(6))
        if not closed:
            break
        for block in closed:
            documents.open(block, *blocks[block])
        asked += closed
    assert sorted(asked) == [0, 1] and patched
    assert (out.document < 77).all()


def test_a_row_that_is_too_long_is_not_written(monkeypatch):
    monkeypatch.setenv("PLAIT_KERNELS", "")
    if library("fill_rows") is None:
        pytest.skip("no C compiler")
    rng = np.random.default_rng(1)
    documents, blocks = made_documents(rng, 3)
    for number, block in enumerate(blocks):
        documents.open(number, *block)
    zero = np.zeros(1, np.int64)
    pieces = Pieces(
        documents=zero - 1, starts=zero, stops=zero + 9, again=zero, rows=np.array([0, 1])
    )
    with pytest.raises(AssertionError, match="longer than the row"):
        fill_rows(documents, pieces, KINDS, garbage(1, 8, True, False), [0], [0])
