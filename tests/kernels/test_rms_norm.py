import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels import rms_norm as module
from plait.kernels.compile_c import library
from plait.kernels.rms_norm import norm_op, reference, rms_norm

from .check import check, check_op

needs_c = pytest.mark.skipif(library("rms_norm") is None, reason="no C compiler")


def compare(counts, *shape, **options):
    torch.manual_seed(0)
    inputs = [torch.randn(sum(counts), *shape), torch.randn(len(counts), shape[-1])]
    check(
        lambda x, w: rms_norm(x, w, counts, 1e-5),
        lambda x, w: reference(x, w, counts, 1e-5),
        inputs,
        **options,
    )


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 63, 65]), min_size=1, max_size=5),
    heads=st.lists(st.integers(1, 3), max_size=1),
    width=st.integers(4, 33),
)
def test_equals_the_definition(counts, heads, width):
    compare(counts, *heads, width)


@pytest.mark.parametrize("counts", [(1000,), (63, 936, 1), (0, 64, 0, 64)])
def test_odd_lengths(counts):
    compare(counts, 37)
    compare(counts, 3, 16)


def test_compiles():
    compare((5, 0, 3), 4, compiled=True)


@needs_c
def test_schema():
    x_NRD = torch.randn(9, 2, 5, requires_grad=True)
    check_op(norm_op, (x_NRD, torch.randn(2, 5, requires_grad=True), [4, 5], 1e-5, "c"))


def test_a_view_among_queries_keys_and_values():
    qkv_N3HK, w_MK = torch.randn(70, 3, 2, 8), torch.randn(2, 8)
    for x_NHK in qkv_N3HK.unbind(1):
        y_NHK = rms_norm(x_NHK, w_MK, (30, 40), 1e-5)
        torch.testing.assert_close(y_NHK, reference(x_NHK, w_MK, (30, 40), 1e-5))
    across = qkv_N3HK.transpose(2, 3)[:, 0, :, :]
    w_M2 = w_MK[:, :2].contiguous()
    torch.testing.assert_close(
        rms_norm(across, w_M2, (30, 40), 1e-5), reference(across, w_M2, (30, 40), 1e-5)
    )


def test_an_absent_modality_gets_zeros_not_none():
    w_MD = torch.randn(3, 5, requires_grad=True)
    rms_norm(torch.randn(6, 5), w_MD, (2, 0, 4), 1e-5).sum().backward()
    assert torch.equal(w_MD.grad[1], torch.zeros(5))
    assert w_MD.grad[0].abs().min() > 0


@needs_c
def test_threads_do_not_matter():
    x_ND, w_MD = torch.randn(1000, 33), torch.randn(3, 33, requires_grad=True)
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        y_ND = rms_norm(x_ND, w_MD, (500, 1, 499), 1e-5)
        results.append((y_ND.detach(), *torch.autograd.grad(y_ND.square().sum(), w_MD)))
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_a_row_does_not_depend_on_the_others():
    x_ND, w_MD = torch.randn(130, 24), torch.randn(1, 24)
    whole = rms_norm(x_ND, w_MD, (130,), 1e-5)
    assert torch.equal(whole[77:78], rms_norm(x_ND[77:78], w_MD, (1,), 1e-5))


def test_not_a_number_stays_in_its_row():
    x_ND = torch.randn(5, 8)
    x_ND[2, 3] = torch.nan
    y_ND = rms_norm(x_ND, torch.ones(2, 8), (3, 2), 1e-5)
    assert y_ND.isnan().any(1).tolist() == [False, False, True, False, False]


def test_other_precisions_take_the_definition(monkeypatch):
    monkeypatch.setattr(module, "call", None)
    x_ND, w_MD = torch.randn(4, 8, dtype=torch.bfloat16), torch.ones(1, 8, dtype=torch.bfloat16)
    assert rms_norm(x_ND, w_MD, (4,), 1e-5).dtype is torch.bfloat16


@pytest.mark.parametrize("counts", [(2, 3), (6,), (2, 2, 2)])
def test_refuses_what_does_not_fit(counts):
    with pytest.raises(ValueError, match="disagree"):
        rms_norm(torch.randn(6, 3), torch.randn(2, 3), counts, 1e-5)
