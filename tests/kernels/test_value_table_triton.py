"""The rows' gradients and Adam in Triton, in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import value_table
from plait.kernels.value_table import Ledger, Reading, RowAdam, adam_rows, reference, row_squares

from .check import nan_filled
from .test_value_table import compare, inputs, test_adam_on_rows
from .triton_checks import compiled, fenced, interpreted

pytest.importorskip("triton")
adam_on_rows = test_adam_on_rows
del test_adam_on_rows


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    """No C, and the choice that would be made there."""
    monkeypatch.setattr(value_table, "library", lambda name: None)
    monkeypatch.setattr(value_table, "_triton", lambda rows: True)


pytestmark = pytest.mark.usefixtures("_as_on_a_gpu")


@interpreted
@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("sizes", [(50, 65, 19, 3), (2, 1, 40, 1), (9, 7, 0, 2), (3, 300, 30, 2)])
def test_gradients_equal_the_definition(sizes, ledger):
    compare(sizes, ledger)


@interpreted
def test_adam_by_its_equations(monkeypatch):
    with nan_filled():
        adam_on_rows(False, monkeypatch)


def reading(seed, R, D, dtype=torch.float32):
    """What a bag of 20 positions and 4 places notes, in fenced memory."""
    _, index, weight = inputs(R, D, 20, 4)
    dy = torch.randn(20, D, generator=torch.Generator().manual_seed(seed))
    weight, dy = weight.to(dtype), dy.to(dtype)
    return Reading(index_NJ=fenced(index), weight_NJ=fenced(weight), dy_ND=fenced(dy))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_plain_torch_on_three_steps_in_fenced_memory(dtype, monkeypatch):
    R, D, numbers = 30, 37, RowAdam(lr=0.1, scale=0.5)
    results = []
    for triton in (False, True):
        monkeypatch.setattr(value_table, "_triton", lambda rows, triton=triton: triton)
        values = inputs(R, D, 20, 4)[0].to(dtype)
        state = [fenced(x) for x in (values, torch.zeros(R, D), torch.zeros(R))]
        reads, norms = fenced(torch.zeros(R, dtype=torch.int32)), []
        for step in range(3):
            rows = Ledger([reading(step, R, D)]).rows(R)
            square = row_squares(rows)
            norms.append(float(square.sum().sqrt()))
            kept = fenced(torch.rand(len(rows.row_U), generator=torch.Generator().manual_seed(9)))
            adam_rows(rows, numbers, square / D, kept, *state, reads)
        results.append((norms, state, reads))
    (norms, plain, reads), (norms_triton, state, reads_triton) = results
    assert norms_triton == pytest.approx(norms, rel=1e-6) and torch.equal(reads, reads_triton)
    for a, b in zip(state, plain, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            a, b, rtol=2**-7 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )


@interpreted
def test_gradients_of_bfloat16():
    noted, dense = reading(0, 30, 37, torch.bfloat16), torch.zeros(30, 37, requires_grad=True)
    reference(dense, noted.index_NJ, noted.weight_NJ.float()).backward(noted.dy_ND.float())
    rows = Ledger([noted]).rows(30)
    got = rows.gradients()
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.float(), dense.grad[rows.row_U], rtol=2**-8, atol=1e-5)


@compiled
def test_the_choice(monkeypatch):
    monkeypatch.undo()
    rows, wide = (Ledger([reading(0, 3, D)]).rows(3) for D in (37, value_table.WIDEST + 1))
    assert not value_table._triton(rows)
    monkeypatch.setattr(value_table, "triton_runs", lambda device, dtype: True)
    assert value_table._triton(rows)
    assert not value_table._triton(wide)
    monkeypatch.setenv("PLAIT_KERNELS", "reference")
    assert not value_table._triton(rows)
