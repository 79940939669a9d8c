import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import causal_conv as causal_conv_module
from plait.kernels.causal_conv import causal_conv, causal_conv_step, conv_op, reference
from plait.kernels.permute import permute_rows

from .check import check, check_op


def inputs(B, T, I, K):
    torch.manual_seed(0)
    document_BT = (torch.rand(B, T) < 0.1).cumsum(1).int()
    if T > 3:
        document_BT[:, -2:] = -1
    return [torch.randn(B, T, I), torch.randn(I, K), torch.randn(I)], document_BT


def compare(B, T, I, K, **options):
    tensors, document_BT = inputs(B, T, I, K)
    check(
        lambda *x: causal_conv(*x, document_BT),
        lambda *x: reference(*x, document_BT),
        tensors,
        **options,
    )


def test_the_definition_is_the_sum_it_states():
    (x, w, bias), document_BT = inputs(2, 30, 3, 4)
    y = reference(x, w, bias, document_BT)
    for b in range(2):
        for t in range(30):
            taps = [
                t - j for j in range(4) if t >= j and document_BT[b, t - j] == document_BT[b, t]
            ]
            expected = bias + sum(w[:, 3 - t + s] * x[b, s] for s in taps)
            torch.testing.assert_close(y[b, t], expected)


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.sampled_from([1, 2, 3, 63, 64]),
    I=st.sampled_from([1, 7, 8, 33]),
    K=st.integers(1, 5),
)
def test_equals_the_definition(B, T, I, K):
    # A single gradient that is a sum of 128 terms may come near 0, and keeps the terms' rounding.
    compare(B, T, I, K, tolerance=5e-5)


def test_odd_lengths():
    compare(2, 1000, 5, 4)


@pytest.mark.parametrize("path", ["c", "reference"])
def test_rows_in_another_order(path, monkeypatch):
    """Positions scattered over both sequences give what they give in order."""
    monkeypatch.setattr(causal_conv_module, "choose", lambda op, fast: path)
    tensors, document_BT = inputs(2, 75, 9, 4)
    place_N = torch.randperm(150)
    places = place_N, place_N.argsort()

    def moved(x, w, bias):
        x = permute_rows(x, *places[::-1])
        return permute_rows(causal_conv(x, w, bias, document_BT, places), *places)

    expected = lambda *x: reference(*x, document_BT)  # noqa: E731
    check(moved, expected, tensors, tolerance=5e-5, compiled=path == "c")


def test_compiles():
    compare(2, 20, 5, 4, compiled=True)


def test_no_tap_reaches_another_document():
    (x, w, bias), _ = inputs(1, 40, 6, 4)
    document_BT = torch.tensor([[0] * 15 + [1] * 20 + [-1] * 5])
    expected = causal_conv(x, w, bias, document_BT)
    alone = causal_conv(x[:, 15:35], w, bias, document_BT[:, 15:35])
    torch.testing.assert_close(alone, expected[:, 15:35])
    x[:, :15] = torch.nan
    x[:, 35:] = torch.nan
    x.requires_grad_()
    y = causal_conv(x, w, bias, document_BT)
    assert torch.equal(y[:, 15:35], expected[:, 15:35])
    y[:, 15:35].sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:, :15].abs().max() == 0


def test_steps_equal_the_whole():
    (x, w, bias), _ = inputs(2, 20, 3, 4)
    y = causal_conv(x, w, bias, torch.zeros(2, 20))
    window = torch.zeros(2, 4, 3)
    for t in range(20):
        step, window = causal_conv_step(window, x[:, t], w, bias)
        torch.testing.assert_close(step, y[:, t])


def test_refuses_shapes_that_disagree():
    (x, w, bias), document_BT = inputs(2, 20, 3, 4)
    with pytest.raises(ValueError, match="disagree"):
        causal_conv(x, w[:2], bias, document_BT)
    with pytest.raises(ValueError, match="disagree"):
        causal_conv(x, w, bias, document_BT[:1])


def test_the_op_holds_together():
    (x, w, bias), document_BT = inputs(2, 70, 5, 4)
    tensors = [t.requires_grad_() for t in (x, w.T.contiguous(), bias)]
    check_op(conv_op, (*tensors, document_BT, "c"))


def test_threads_change_nothing():
    tensors, document_BT = inputs(3, 200, 17, 4)
    tensors = [x.requires_grad_() for x in tensors]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = causal_conv(*tensors, document_BT)
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_gradcheck_in_float64():
    tensors, document_BT = inputs(1, 9, 2, 3)
    tensors = [x.double().requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *x: causal_conv(*x, document_BT), tensors)
