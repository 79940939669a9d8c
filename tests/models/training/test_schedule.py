import math

import pytest

from plait.models.training.optimizer import OptimizerConfig
from plait.models.training.schedule import lr_share
from plait.tokenizers.errors import ConfigError


def shares(steps: int, **options) -> list[float]:
    config = OptimizerConfig(warmup=10, **options)
    return [lr_share(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("options", [{}, {"schedule": "linear"}, {"schedule": "constant"}])
def test_warm_up_is_linear_and_ends_at_the_peak(options):
    found = shares(50, **options)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(found) == 1.0


def test_curves_from_their_formulas():
    for step, share in enumerate(shares(110, min_lr=0.2)[10:]):
        assert share == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * step / 100)) / 2)
    for step, share in enumerate(shares(110, min_lr=0.2, schedule="linear")[10:]):
        assert share == pytest.approx(0.2 + 0.8 * (1 - step / 100))
    assert shares(110, schedule="constant")[10:] == [1.0] * 100


@pytest.mark.parametrize(
    ("shape", "left"), [("sqrt", lambda t: 1 - t**0.5), ("linear", lambda t: 1 - t)]
)
def test_a_constant_rate_cools_down_over_the_last_share(shape, left):
    options = {"schedule": "constant", "cooldown": 0.2, "cooldown_shape": shape, "min_lr": 0.0}
    found = shares(100, **options)
    assert found[10:81] == [1.0] * 71
    assert found[80:] == pytest.approx([left(i / 20) for i in range(20)])
    assert shares(300, **options)[:240] == [*found[:80], *[1.0] * 160], "more steps, the same past"
    assert shares(100, **{**options, "cooldown": 1.0})[10] == 1.0, "never before the warm-up ends"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cooldown": 0.1}, "cooldown: schedule 'cosine' falls from the start"),
        ({"schedule": "constant", "cooldown": 1.5}, "cooldown: a share from 0 to 1, not 1.5"),
    ],
)
def test_what_does_not_fit_together_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**options)
