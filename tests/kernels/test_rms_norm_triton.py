"""The Triton norm in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import rms_norm as module
from plait.kernels.rms_norm import norm_op, reference, rms_norm

from .check import check, check_op
from .triton_checks import check_bfloat16, fence, interpreted

pytest.importorskip("triton")
EPS = 1e-5


def inputs(counts, *shape):
    """Rows [N, ..., D] and gains [M, D]."""
    torch.manual_seed(0)
    return [torch.randn(sum(counts), *shape), torch.randn(len(counts), shape[-1])]


def triton_norm(counts):
    """The public function, with the choice that it would make on a GPU."""
    return lambda x, w: rms_norm(fence(x), fence(w), counts, EPS)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "_fastest", lambda *sizes: "triton")


@interpreted
@pytest.mark.parametrize(
    ("counts", "shape"),
    [((70, 0, 1, 33), (65,)), ((0, 0), (3,)), ((0, 2), (2,)), ((5, 3), (3, 7)), ((1, 33), (2049,))],
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
    check_op(norm_op, (x[:, None], w, [3, 0, 2], EPS, "triton"))


@interpreted
def test_compiles():
    counts = (3, 0, 2)
    check(
        lambda x, w: rms_norm(x, w, counts, EPS),
        lambda x, w: reference(x, w, counts, EPS),
        inputs(counts, 4),
        compiled=True,
    )
