"""The Triton patch pooling in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import patch_pool as module
from plait.kernels.patch_pool import patch_pool, pool_op, reference

from .check import check, check_op
from .test_patch_pool import inputs
from .triton_checks import check_bfloat16, fence, fenced, interpreted

pytest.importorskip("triton")
pytestmark = pytest.mark.parametrize("reduce", ["mean", "max"])


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "_fastest", lambda *facts: "triton")


def pooled(first, reduce):
    return lambda x: patch_pool(fence(x), fenced(first), reduce)


@interpreted
@pytest.mark.parametrize(
    ("lengths", "D"), [([3, 0, 17, 1, 8], 35), ([0, 0], 3), ([], 2), ([1], 1), ([9, 2], 257)]
)
def test_equals_the_definition(lengths, D, reduce):
    x, first = inputs(lengths, D)
    check(pooled(first, reduce), lambda x: reference(x, first, reduce), [x])


@interpreted
def test_equal_rows_share_the_gradient(reduce):
    x = torch.tensor([-1.0, 0.0, 0.0, 5.0, 5.0, 5.0])[:, None].expand(6, 3).contiguous()
    first = torch.tensor([0, 3, 6])
    check(pooled(first, reduce), lambda x: reference(x, first, reduce), [x])


@interpreted
def test_bfloat16(reduce):
    x, first = inputs([20, 0, 3], 9)
    check_bfloat16(pooled(first, reduce), lambda x: reference(x, first, reduce), [x])


@interpreted
def test_nan_stays_in_its_patch(reduce):
    x, first = inputs([4, 5, 3], 2)
    x[5, 0] = torch.nan
    y = pooled(first, reduce)(x)
    assert y.isnan().nonzero().tolist() == [[1, 0]]
    assert torch.equal(y.isnan(), reference(x, first, reduce).isnan())


@interpreted
def test_the_op_holds_together(reduce):
    x, first = inputs([2, 0, 3], 4)
    check_op(pool_op, (x.requires_grad_(), first, reduce))
