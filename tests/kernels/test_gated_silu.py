import pytest
import torch

from plait.kernels import gated_silu
from plait.kernels.compile_c import library

from .check import check, check_op


@pytest.mark.parametrize(("rows", "width"), [(0, 3), (1, 1), (7, 16), (63, 33), (5, 100)])
def test_equals_the_definition(rows, width):
    torch.manual_seed(0)
    x_NG = 5 * torch.randn(rows, 2 * width)
    check(gated_silu.gated_silu, gated_silu.reference, [x_NG], compiled=rows == 7)


def test_extremes():
    x_NG = torch.tensor([[-1e4, 1e4, -80.0, float("nan"), 3.0, 3.0, 3.0, 3.0]])
    y_NF = gated_silu.gated_silu(x_NG)
    torch.testing.assert_close(y_NF, gated_silu.reference(x_NG), equal_nan=True)


@pytest.mark.skipif(library("gated_silu") is None, reason="no C compiler")
def test_op():
    check_op(gated_silu.gated_op, (torch.randn(3, 10, requires_grad=True),))
