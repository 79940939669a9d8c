import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import product_key_lookup as lookup
from plait.kernels.product_key_lookup import lookup_op, product_key_lookup, reference

from .check import check, check_op, peak_bytes


def inputs(N, H, n, d, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=dtype) for shape in ((N, H, 2, d), (H, 2, n, d))]


@settings(max_examples=30, deadline=None)
@given(
    N=st.sampled_from([0, 1, 63]), H=st.integers(1, 3), n=st.integers(1, 30),
    d=st.integers(1, 19), chunk=st.sampled_from([1, 500, 1 << 20]), data=st.data(),
)  # fmt: skip
def test_equals_the_definition(N, H, n, d, chunk, data):
    k = data.draw(st.integers(1, n))
    given_inputs = inputs(N, H, n, d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "SCORES", chunk)
        assert torch.equal(product_key_lookup(*given_inputs, k)[1], reference(*given_inputs, k)[1])
        check(lambda *x: product_key_lookup(*x, k)[0], lambda *x: reference(*x, k)[0], given_inputs)


def test_other_paths_are_the_same(monkeypatch):
    query, keys = inputs(9, 3, 40, 6)
    score, slot = product_key_lookup(query, keys, 7)
    doubled = product_key_lookup(query.double(), keys.double(), 7)
    assert torch.equal(doubled[1], slot)
    torch.testing.assert_close(doubled[0].float(), score)
    monkeypatch.setattr(lookup, "library", lambda name: None)
    check(lambda *x: product_key_lookup(*x, 7)[0], lambda *x: reference(*x, 7)[0], (query, keys))


def test_the_op_holds_together_and_compiles():
    given_inputs = inputs(5, 2, 40, 8)
    check_op(lookup_op, (*(x.requires_grad_() for x in given_inputs), 7))
    given_inputs = inputs(5, 2, 40, 8)
    check(
        lambda *x: product_key_lookup(*x, 7)[0],
        lambda *x: reference(*x, 7)[0],
        given_inputs,
        compiled=True,
    )


def test_the_threads_change_nothing():
    def gradients(threads):
        torch.set_num_threads(threads)
        query, keys = (x.requires_grad_() for x in inputs(300, 3, 64, 16))
        score, slot = product_key_lookup(query, keys, 8)
        score.square().sum().backward()
        return slot, query.grad, keys.grad

    before = torch.get_num_threads()
    try:
        assert all(map(torch.equal, gradients(1), gradients(3)))
    finally:
        torch.set_num_threads(before)


def test_scores_are_never_kept_whole():
    query, keys = (x.requires_grad_() for x in inputs(4000, 4, 512, 16))
    whole = 4 * 2 * 4000 * 4 * 512  # the scores of both halves
    peak = peak_bytes(lambda: product_key_lookup(query, keys, 8)[0].sum().backward())
    assert peak < whole / 4


def test_refuses():
    query, keys = inputs(2, 1, 4, 3)
    with pytest.raises(ValueError, match="5 best slots"):
        product_key_lookup(query, keys, 5)
    with pytest.raises(ValueError, match="half keys"):
        product_key_lookup(query, keys[..., :2], 2)
