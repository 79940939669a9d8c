import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import cross_entropy
from plait.kernels.compile_c import library
from plait.kernels.cross_entropy import linear_cross_entropy, reference

from .check import check, check_op, peak_bytes


def inputs_of(rows, width, vocabulary):
    torch.manual_seed(0)
    floats = [torch.randn(rows, width), torch.randn(vocabulary, width), torch.randn(vocabulary)]
    return floats, torch.randint(vocabulary, (rows,))


def compare(rows, width, vocabulary, **options):
    """With a bias that learns, which takes pieces, and with a fixed one, in one pass."""
    (x_ND, w_VD, bias_V), target_N = inputs_of(rows, width, vocabulary)
    for z_loss in (0.0, 0.1):
        check(
            lambda *xs, z=z_loss: linear_cross_entropy(*xs, z)[0],
            lambda *xs, z=z_loss: reference(*xs, z)[0],
            [x_ND, w_VD, bias_V, target_N],
            floor=0.1,  # two logits' gradients are small differences of large numbers
            **options,
        )
        check(
            lambda x, w, z=z_loss: linear_cross_entropy(x, w, bias_V, target_N, z)[0],
            lambda x, w, z=z_loss: reference(x, w, bias_V, target_N, z)[0],
            [x_ND, w_VD],
            floor=0.1,
            **options,
        )
    found = linear_cross_entropy(x_ND, w_VD, bias_V, target_N)[1]
    torch.testing.assert_close(found, reference(x_ND, w_VD, bias_V, target_N)[1])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 63, 200]),
    width=st.integers(1, 33),
    vocabulary=st.integers(1, 40),
    piece=st.sampled_from([1, 100, 1 << 21]),
)
def test_equals_the_definition(rows, width, vocabulary, piece):
    before, cross_entropy.PIECE = cross_entropy.PIECE, piece
    try:
        compare(rows, width, vocabulary)
    finally:
        cross_entropy.PIECE = before


def test_odd_lengths(monkeypatch):
    monkeypatch.setattr(cross_entropy, "PIECE", 1 << 12)
    compare(1000, 24, 63)


def test_traced_whole(monkeypatch):
    monkeypatch.setattr(cross_entropy, "PIECE", 50)
    compare(17, 5, 11, compiled=True)


@pytest.mark.skipif(library("cross_entropy") is None, reason="no C compiler")
def test_op():
    (x_ND, w_VD, bias_V), target_N = inputs_of(17, 5, 11)
    tensors = (x_ND.requires_grad_(), w_VD.requires_grad_(), bias_V, target_N)
    check_op(cross_entropy.loss_op, (*tensors, 0.1, True))
    check_op(cross_entropy.loss_op, (x_ND.detach(), w_VD.detach(), *tensors[2:], 0.1, False))


def test_extreme_logits():
    (x_ND, w_VD, bias_V), target_N = inputs_of(9, 4, 37)
    bias_V[3], bias_V[5] = -torch.inf, 300.0
    target_N[target_N == 3] = 4
    found = linear_cross_entropy(100 * x_ND, w_VD, bias_V, target_N)
    torch.testing.assert_close(found, reference(100 * x_ND, w_VD, bias_V, target_N))
    x_ND[2, 1] = torch.nan
    found, _ = linear_cross_entropy(x_ND, w_VD, bias_V, target_N)
    assert found.isnan().tolist() == [n == 2 for n in range(9)]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_piece(precision, monkeypatch):
    monkeypatch.setattr(cross_entropy, "PIECE", 1 << 15)
    (x_ND, w_VD, bias_V), target_N = inputs_of(1024, 8, 512)
    leaves = x_ND.requires_grad_(), w_VD.requires_grad_()

    def step(function):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            loss_N, _ = function(*leaves, bias_V, target_N, 0.1)
        loss_N.mean().backward()

    logits, piece = 4 * 1024 * 512, 4 << 15
    assert peak_bytes(lambda: step(reference)) > 2 * logits
    assert peak_bytes(lambda: step(linear_cross_entropy)) < 3 * piece + logits // 10


def test_no_rows():
    x_ND = torch.randn(0, 4, requires_grad=True)
    loss_N, _ = linear_cross_entropy(
        x_ND, torch.randn(5, 4), torch.zeros(5), torch.zeros(0, dtype=torch.int64)
    )
    loss_N.sum().backward()
    assert loss_N.shape == (0,)
    assert x_ND.grad.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_takes_products_in_its_type(dtype):
    torch.manual_seed(0)
    x_ND, w_VD = torch.randn(9, 8, requires_grad=True), torch.randn(7, 8, requires_grad=True)
    target_N = torch.randint(7, (9,))
    with torch.autocast("cpu", dtype):
        loss_N, _ = linear_cross_entropy(x_ND, w_VD, torch.zeros(7), target_N)
    loss_N.sum().backward()
    wanted_N, _ = reference(x_ND.detach(), w_VD.detach(), torch.zeros(7), target_N)
    assert loss_N.dtype == torch.float32
    assert x_ND.grad.dtype == torch.float32
    assert torch.allclose(loss_N, wanted_N, atol=0.1)
