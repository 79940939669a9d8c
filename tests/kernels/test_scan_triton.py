"""The Triton scan in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels.scan import reference, scan_op

from .check import check, check_op
from .test_scan import inputs
from .triton_checks import fence, interpreted

pytest.importorskip("triton")


@interpreted
@pytest.mark.parametrize("sizes", [(2, 33, 40, 5), (1, 1, 1, 1), (1, 32, 65, 16)])
def test_equals_the_definition(sizes):
    tensors, reset = inputs(*sizes)
    check(
        lambda *x: scan_op(*map(fence, x), reset, "triton")[0],
        lambda *x: reference(*x, reset)[0],
        tensors,
    )


@interpreted
def test_the_op_holds_together():
    tensors, reset = inputs(1, 5, 3, 2)
    check_op(scan_op, (*(x.requires_grad_() for x in tensors), reset, "triton"))


@interpreted
def test_a_reset_keeps_nan_out_and_the_final_state_is_kept():
    tensors, _ = inputs(1, 40, 6, 3)
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[0, 20] = True
    expected, state = reference(*tensors, reset)
    tensors[0][:, :20] = torch.nan
    y, kept = scan_op(*tensors, reset, "triton")
    torch.testing.assert_close(y[:, 20:], expected[:, 20:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept[:, -1].transpose(1, 2), state, rtol=1e-5, atol=1e-5)
