import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import cross_entropy
from plait.kernels.cross_entropy import linear_cross_entropy, reference

from .check import check


def compare(rows, width, vocabulary, **options):
    torch.manual_seed(0)
    inputs = [torch.randn(rows, width), torch.randn(vocabulary, width), torch.randn(vocabulary)]
    inputs.append(torch.randint(vocabulary, (rows,)))
    for which in (0, 1):
        check(
            lambda *xs, which=which: linear_cross_entropy(*xs)[which],
            lambda *xs, which=which: reference(*xs)[which],
            inputs,
            **options,
        )


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


def test_both_gradients_add_up(monkeypatch):
    monkeypatch.setattr(cross_entropy, "PIECE", 50)

    def both(function):
        def run(*inputs):
            loss_N, partition_N = function(*inputs)
            return loss_N + partition_N.square()

        return run

    torch.manual_seed(1)
    inputs = [torch.randn(17, 5), torch.randn(11, 5), torch.randn(11), torch.randint(11, (17,))]
    check(both(linear_cross_entropy), both(reference), inputs)


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
