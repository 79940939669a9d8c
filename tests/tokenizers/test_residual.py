import itertools

import pytest
import torch

from plait.tokenizers import residual


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x_ND = torch.randn(600, 12, generator=generator)
    return x_ND, residual.fit_codebooks(x_ND, 4, 16)


def error(x_ND: torch.Tensor, codes_NL: torch.Tensor, books_LKD: torch.Tensor) -> torch.Tensor:
    return (x_ND - residual.decode(codes_NL, books_LKD)).square().sum(1)


def by_hand(x_D: torch.Tensor, books_LKD: torch.Tensor, beam: int) -> list[int]:
    """The definition: all chains one code longer, the nearest of which go on."""
    chains: list[list[int]] = [[]]
    for book_KD in books_LKD:
        longer = [[*chain, code] for chain in chains for code in range(len(book_KD))]

        def distance(chain: list[int]) -> float:
            heard = sum(books_LKD[level, code].double() for level, code in enumerate(chain))
            return float((x_D.double() - heard).square().sum())

        chains = sorted(longer, key=distance)[:beam]
    return chains[0]


@pytest.mark.parametrize("beam", [2, 5])
def test_a_beam_keeps_the_nearest_chains(problem, beam):
    x_ND, books_LKD = problem
    codes = residual.encode(x_ND[:20], books_LKD, beam=beam)
    assert codes.tolist() == [by_hand(x_D, books_LKD, beam) for x_D in x_ND[:20]]


def test_a_wide_beam_finds_the_best_of_all_chains(problem):
    x_ND, books_LKD = problem[0][:50], problem[1][:2]
    every = torch.tensor(list(itertools.product(range(16), repeat=2)))
    sounds = residual.decode(every, books_LKD)
    best = (x_ND[:, None].double() - sounds.double()).square().sum(2).argmin(1)
    assert torch.equal(residual.encode(x_ND, books_LKD, beam=256), every[best])


def test_wider_beams_come_nearer_and_one_is_level_by_level(problem):
    x_ND, books_LKD = problem
    errors = [error(x_ND, residual.encode(x_ND, books_LKD, beam=b), books_LKD) for b in (1, 2, 8)]
    means = [float(e.mean()) for e in errors]
    assert means[0] > 1.02 * means[1] > 1.04 * means[2]


def test_rows_are_coded_alike_in_any_batch(problem, monkeypatch):
    x_ND, books_LKD = problem
    whole = residual.encode(x_ND, books_LKD, beam=4)
    alone = torch.cat([residual.encode(x_1D, books_LKD, beam=4) for x_1D in x_ND.split(1)])
    assert torch.equal(whole, alone)
    monkeypatch.setattr(residual, "SCORES", 1000)
    assert torch.equal(whole, residual.encode(x_ND, books_LKD, beam=4))


def test_equals_are_taken_by_the_lower_code_and_silence_stays_silence(problem):
    x_ND, books_LKD = problem
    twice_LKD = torch.cat([books_LKD, books_LKD], dim=1)
    codes = residual.encode(x_ND, twice_LKD, beam=3)
    assert codes.max() < 16
    silent = residual.encode(torch.zeros(3, 12), twice_LKD, beam=3)
    assert not silent.any()
    assert not residual.encode(x_ND[:3], torch.zeros(2, 4, 12), beam=3).any()


def test_vectors_far_beyond_the_codebooks(problem):
    x_ND, books_LKD = problem
    for size in (1e6, 1e30):
        codes = residual.encode(x_ND[:40] * size, books_LKD, beam=4)
        assert codes.shape == (40, 4) and 0 <= codes.min() <= codes.max() < 16
