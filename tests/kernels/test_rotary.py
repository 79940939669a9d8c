import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.kernels.compile_c import library
from plait.kernels.rotary import reference, rotary_heads, rotary_op

from .check import check, check_op

needs_c = pytest.mark.skipif(library("rotary") is None, reason="no C compiler")


def compare(counts, heads, half, normed=True, **options):
    torch.manual_seed(0)
    angle_NC, given = 9 * torch.randn(sum(counts), half), counts if normed else ()
    turn_NC = angle_NC.cos(), angle_NC.sin()
    qkv_N3HK = torch.randn(sum(counts), 3, heads, 2 * half)
    gains = [torch.randn(2, len(counts), 2 * half)] if normed else []

    def run(function):
        def all_of(qkv, *gain):
            q, k, v = function(qkv, turn_NC, *(gain or (None,)), given, 1e-5)
            return torch.stack((q, k * 2, v * 3))

        return all_of

    check(run(rotary_heads), run(reference), [qkv_N3HK, *gains], **options)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 63, 65]), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    half=st.sampled_from([1, 2, 3, 8, 16, 17, 32, 64]),
    normed=st.booleans(),
)
def test_equals_the_definition(counts, heads, half, normed):
    compare(tuple(counts), heads, half, normed)


@pytest.mark.parametrize("normed", [True, False])
def test_compiles(normed):
    compare((5, 0, 3), 2, 4, normed, compiled=True)


@needs_c
def test_schema():
    qkv_N3HK = torch.randn(9, 3, 2, 6, requires_grad=True)
    gain_2MK = torch.randn(2, 2, 6, requires_grad=True)
    turn = torch.randn(9, 3), torch.randn(9, 3)
    check_op(rotary_op, (qkv_N3HK, *turn, gain_2MK, [4, 5], 1e-5))


@needs_c
def test_rows_apart_in_memory_and_threads_do_not_matter():
    wide_NG = torch.randn(700, 3 * 2 * 8 + 5)
    qkv_N3HK = wide_NG[:, :48].view(700, 3, 2, 8).requires_grad_()
    turn = torch.randn(700, 4), torch.randn(700, 4)
    gain_2MK = torch.randn(2, 2, 8, requires_grad=True)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        heads = rotary_heads(qkv_N3HK, turn, gain_2MK, (300, 400))
        loss = sum(x.square().sum() for x in heads)
        results.append([*heads, *torch.autograd.grad(loss, [qkv_N3HK, gain_2MK])])
    torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    wanted = reference(qkv_N3HK.contiguous(), turn, gain_2MK, (300, 400), 1e-5)
    for one, definition in zip(results[0], wanted, strict=False):
        torch.testing.assert_close(one, definition)


def test_one_head_of_one_token_by_hand():
    """Norm 3, 4 to root mean square 1; a quarter turn takes (a, b) to (-b, a)."""
    qkv = torch.tensor([[[[3.0, 4.0]], [[0.0, 2.0]], [[7.0, 8.0]]]])
    turn = torch.zeros(1, 1), torch.ones(1, 1)
    q, k, v = rotary_heads(qkv, turn, torch.ones(2, 1, 2), (1,), 0.0)
    scale = 12.5**-0.5
    torch.testing.assert_close(q[0, 0], torch.tensor([-4 * scale, 3 * scale]))
    torch.testing.assert_close(k[0, 0], torch.tensor([-(2**0.5), 0.0]))
    assert v.flatten().tolist() == [7.0, 8.0]


def test_counts_must_fit():
    with pytest.raises(ValueError, match="counts"):
        rotary_heads(torch.randn(3, 3, 1, 2), (torch.ones(3, 1),) * 2, torch.ones(2, 2, 2), (1, 1))
