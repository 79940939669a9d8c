import math

import pytest
import torch

from plait.tokenizers.quantize import FSQ, CodeUse


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 7), (2, 2, 2, 2, 2)])
def test_every_code_is_one_grid_point(levels):
    fsq = FSQ(levels)
    index = torch.arange(fsq.codebook_size)
    points = fsq.to_point(index)
    assert fsq.codebook_size == math.prod(levels)
    assert torch.equal(fsq.to_index(points), index)
    assert torch.equal(fsq(points.double()), points.double())
    assert len(points.unique(dim=0)) == fsq.codebook_size
    assert (points >= 0).all() and (points.amax(0) == torch.tensor(levels) - 1).all()


def test_codes_count_the_last_axis_fastest():
    fsq = FSQ((4, 3, 2))
    by_loop = [a * 6 + b * 2 + c for a in range(4) for b in range(3) for c in range(2)]
    points = torch.tensor([(a, b, c) for a in range(4) for b in range(3) for c in range(2)])
    assert fsq.to_index(points).tolist() == by_loop
    assert torch.equal(fsq.grid(), points.float())


def test_rounds_to_the_nearest_level_and_clamps():
    fsq = FSQ((3, 2))
    y = torch.tensor([[0.4, 0.6], [1.7, -3.0], [9.0, 9.0], [-0.1, 0.2]])
    assert fsq(y).tolist() == [[0, 1], [2, 0], [2, 1], [0, 0]]


def test_gradient_is_straight_through_within_the_grid():
    y = torch.tensor([[0.4, 0.6], [-2.0, 1.2]], requires_grad=True)
    slope = torch.tensor([[3.0, -1.0], [5.0, 7.0]])
    (FSQ((3, 3))(y) * slope).sum().backward()
    assert y.grad is not None
    assert y.grad.tolist() == [[3, -1], [0, 7]]


@pytest.mark.parametrize("levels", [(), (1, 4), (8, 0)])
def test_levels_are_checked(levels):
    with pytest.raises(ValueError, match="level"):
        FSQ(levels)


def test_code_use_against_counting():
    ids = torch.tensor([[3, 3, 3], [1, 1, 4]])
    use = CodeUse.of(ids, 6)
    entropy = -sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6))
    assert (use.tokens, use.codes_used, use.codes_dead) == (6, 3, 3)
    assert use.perplexity == pytest.approx(math.exp(entropy))


def test_code_use_of_an_even_codebook_and_of_nothing():
    assert CodeUse.of(torch.arange(50).repeat(3), 50).perplexity == pytest.approx(50)
    assert CodeUse.of(torch.zeros(0, dtype=torch.int64), 5).codes_used == 0
    with pytest.raises(IndexError, match="5 codes"):
        CodeUse.of(torch.tensor([5]), 5)
