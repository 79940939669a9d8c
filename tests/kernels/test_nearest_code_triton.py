"""The Triton search for the nearest code in the interpreter (`triton_checks` says how)."""

import pytest
import torch

from plait.kernels import nearest_code as module
from plait.kernels.nearest_code import nearest_code, nearest_op, reference

from .check import check_op, nan_filled
from .triton_checks import compiled, fenced, interpreted

pytest.importorskip("triton")


@interpreted
@pytest.mark.parametrize(("N", "K", "D"), [(70, 130, 40), (1, 1, 1), (0, 3, 2), (65, 64, 33)])
def test_equals_the_definition(N, K, D, monkeypatch):
    monkeypatch.setattr(module, "_fastest", lambda *facts: "triton")
    torch.manual_seed(0)
    x, codebook = fenced(torch.randn(N, D)), fenced(torch.randn(K, D))
    with nan_filled():
        assert torch.equal(nearest_code(x, codebook), reference(x, codebook))
        code, gap = nearest_op(x, codebook, fenced(codebook.square().sum(1) / 2))
    score = codebook.double().square().sum(1) / 2 - x.double() @ codebook.double().T
    least = score.topk(min(2, K), largest=False).values
    assert torch.equal(code, score.argmin(1))
    wanted = least[:, -1] - least[:, 0] if K > 1 else torch.full((N,), torch.inf).double()
    torch.testing.assert_close(gap.double(), wanted, rtol=1e-4, atol=1e-4)


@interpreted
def test_float64_decides_what_float32_cannot(monkeypatch):
    """Equal codes in other tiles, and codes that differ by less than float32 products do."""
    monkeypatch.setattr(module, "_fastest", lambda *facts: "triton")
    torch.manual_seed(0)
    codebook = torch.randn(40, 16).repeat(3, 1) * 100
    codebook[40:80] += codebook[40:80] * 1e-7
    x = codebook[torch.randint(120, (50,))] + torch.randn(50, 16) * 1e-5
    assert torch.equal(nearest_code(x, codebook), reference(x, codebook))
    by_score, _ = nearest_op(x, codebook, codebook.square().sum(1) / 2)
    assert not torch.equal(by_score, reference(x, codebook))


@interpreted
def test_the_op_holds_together():
    codebook = torch.randn(3, 2)
    check_op(nearest_op, (torch.randn(4, 2), codebook, codebook.square().sum(1) / 2))


@compiled
def test_the_choice():
    assert module._fastest("cuda", False) == "triton"
    assert module._fastest("cuda", True) == module._fastest("cpu", False) == "chunked"
