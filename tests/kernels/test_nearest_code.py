import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.nearest_code import nearest_code, reference


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from([0, 1, 63, 300]),
    k=st.sampled_from([1, 2, 63, 1000]),
    d=st.integers(1, 40),
    chunk=st.sampled_from([1, 7, 256]),
    seed=st.integers(0, 9),
)
def test_equals_the_definition_whatever_the_chunk(n, k, d, chunk, seed):
    torch.manual_seed(seed)
    x_ND, codebook_KD = torch.randn(n, d), torch.randn(k, d)
    expected_N = reference(x_ND, codebook_KD)
    assert torch.equal(nearest_code(x_ND, codebook_KD, chunk=chunk), expected_N)


def test_ties_go_to_the_lowest_id():
    codebook_KD = torch.randn(50, 8).repeat(3, 1)
    index_N = nearest_code(torch.randn(400, 8), codebook_KD)
    assert index_N.max() < 50


def test_distances_that_float32_cannot_tell_apart():
    codes_KD = 1000 + torch.randn(200, 16) * 1e-3
    x_ND = codes_KD[torch.randperm(200)] + torch.randn(200, 16) * 1e-4
    assert torch.equal(nearest_code(x_ND, codes_KD), reference(x_ND, codes_KD))
    product_N = (codes_KD.square().sum(1) - 2 * x_ND @ codes_KD.T).argmin(1)
    assert not torch.equal(product_N, reference(x_ND, codes_KD))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    x_ND, codebook_KD = torch.randn(100, 12).to(dtype), torch.randn(40, 12).to(dtype)
    assert torch.equal(nearest_code(x_ND, codebook_KD), reference(x_ND, codebook_KD))


def test_threads_and_autocast_change_nothing():
    x_ND, codebook_KD = torch.randn(1000, 24), torch.randn(700, 24)
    expected_N = nearest_code(x_ND, codebook_KD)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(nearest_code(x_ND, codebook_KD), expected_N)
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(x_ND, codebook_KD), expected_N)


@pytest.mark.parametrize(
    ("x", "codebook", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), "shape|takes"),
        (torch.zeros(2, 3), torch.zeros(0, 3), "empty"),
        (torch.full((2, 3), torch.nan), torch.zeros(1, 3), "not finite"),
        (torch.zeros(2, 3), torch.full((1, 3), torch.inf), "not finite"),
    ],
)
def test_refuses(x, codebook, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(x, codebook)
