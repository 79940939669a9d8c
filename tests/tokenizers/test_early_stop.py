import pytest
from torch import nn

from plait.tokenizers.early_stop import CHECKS, EarlyStop, check_patience, set_aside
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.fit_state import FitState, Loop


def fit(losses, patience, *, state=None, kill_at=None):
    """A fit of a look a step whose weight is the number of the step; returns (steps, weight)."""
    kept = nn.Linear(1, 1)
    stop = EarlyStop(kept, len(losses), patience, lambda: losses[step])
    loop = Loop(state or FitState(), {"kept": kept, "stop": stop}, {}, {})
    step = 0
    for step in range(loop.start(), len(losses)):
        if step == kill_at:
            raise KeyboardInterrupt
        nn.init.constant_(kept.weight, float(step))
        if stop.ends(step):
            break
        loop.end_step(step)
    stop.restore()
    return step + 1, int(kept.weight)


LOSSES = [5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 2.2, 1.0, 0.5]


@pytest.mark.parametrize(
    ("patience", "ended"), [(0, (9, 8)), (1, (3, 1)), (2, (6, 3)), (3, (7, 3)), (4, (9, 8))]
)
def test_it_ends_after_so_many_looks_without_a_better_one_and_keeps_the_best(patience, ended):
    assert fit(LOSSES, patience) == ended


def test_a_killed_fit_ends_where_it_would_have(tmp_path):
    path = tmp_path / "state"
    for kill_at in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            fit(LOSSES, 3, state=FitState(path, "", 0.0), kill_at=kill_at)
    assert fit(LOSSES, 3, state=FitState(path, "", 0.0)) == fit(LOSSES, 3)


def test_there_are_as_many_looks_whatever_the_steps():
    looks = []
    stop = EarlyStop(
        nn.Linear(1, 1),
        20 * CHECKS,
        3,
        lambda: -len(looks),
        lambda message, share, loss_aside: looks.append((share, loss_aside)),
    )
    for step in range(20 * CHECKS):
        assert not stop.ends(step)
    assert len(looks) == CHECKS and looks[-1] == (1.0, 1.0 - CHECKS)


def test_a_tenth_is_set_aside_and_nothing_is_in_both():
    assert set_aside([1, 2, 3], 0) == ([1, 2, 3], ())
    assert set_aside([1, 2], 1) == ([2], [1])
    learned, aside = set_aside(range(5000), 1)
    assert len(aside) == 64 and len(learned) == 4936 and not set(learned) & set(aside)
    assert aside[-1] > 4900  # not of the first source alone
    learned, aside = set_aside(range(100), 1)
    assert aside == list(range(0, 100, 10)) and len(learned) == 90
    with pytest.raises(ConfigError, match="two samples or more"):
        set_aside([1], 1)


def test_patience_is_a_number_of_looks():
    check_patience(50)
    with pytest.raises(ConfigError, match=r"patience is 51, and should be in 0\.\.50"):
        check_patience(51)
