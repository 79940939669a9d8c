"""The Triton norm in the interpreter (`triton_checks` says how)."""

import pytest

from plait.kernels import modality_norm as module
from plait.kernels.modality_norm import modality_norm, norm_op, reference

from .check import check, check_op
from .test_modality_norm import EPS, inputs
from .triton_checks import check_bfloat16, fence, interpreted

pytest.importorskip("triton")


def triton_norm(counts):
    """The public function, with the choice that it would make on a GPU."""
    return lambda x, w: modality_norm(fence(x), fence(w), counts, EPS)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "_fastest", lambda *sizes: "triton")


@interpreted
@pytest.mark.parametrize(
    ("counts", "shape"),
    [((70, 0, 1, 33), (65,)), ((0, 0), (3,)), ((0, 2), (1,)), ((5, 3), (3, 7)), ((1, 33), (2049,))],
)
def test_equals_the_definition(counts, shape):
    check(triton_norm(counts), lambda x, w: reference(x, w, counts, EPS), inputs(counts, *shape))


@interpreted
def test_bfloat16():
    counts = (40, 0, 3)
    check_bfloat16(
        triton_norm(counts), lambda x, w: reference(x, w, counts, EPS), inputs(counts, 37)
    )


@interpreted
def test_the_op_holds_together():
    x, w = (t.requires_grad_() for t in inputs((3, 0, 2), 4))
    check_op(norm_op, (x, w, [3, 0, 2], EPS))


@interpreted
def test_compiles():
    counts = (3, 0, 2)
    check(
        lambda x, w: modality_norm(x, w, counts, EPS),
        lambda x, w: reference(x, w, counts, EPS),
        inputs(counts, 4),
        compiled=True,
    )
