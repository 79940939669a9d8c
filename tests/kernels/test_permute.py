import torch

from plait.kernels.permute import permute, permute_rows

from .check import check


def order(count):
    index_N = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return index_N, index_N.argsort()


def test_equals_an_index():
    index_N, back_N = order(63)
    x_ND = [torch.randn(63, 2, 3)]
    check(lambda x: permute(x, index_N, back_N), lambda x: x[index_N], x_ND, compiled=True)


def test_rows_of_a_batch():
    index_N, back_N = order(12)
    x_BTD = torch.randn(3, 4, 5)
    moved_BTD = permute_rows(x_BTD, index_N, back_N)
    assert torch.equal(moved_BTD.flatten(0, 1), x_BTD.flatten(0, 1)[index_N])
    assert torch.equal(permute_rows(moved_BTD, back_N, index_N), x_BTD)


def test_gradients_of_gradients():
    index_N, back_N = order(5)
    x_ND = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: permute(x, index_N, back_N), x_ND)
    assert torch.autograd.gradgradcheck(lambda x: permute(x, index_N, back_N), x_ND)
