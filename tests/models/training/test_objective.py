import pytest
import torch

from plait.models.plan import Plan
from plait.models.training.objective import Objective, ObjectiveConfig
from plait.tokenizers.errors import ConfigError

from ..conftest import CONFIGS, gradients

NAMES = ("text", "image", "speech")


def test_weights_weigh_targets_and_keep_the_size(new_decoder, new_batch):
    """The weighted mean, from the losses by target; and no weights are weights of 1."""
    batch, decoder = new_batch([(40, 30), (60,)]), new_decoder(CONFIGS["mot"])
    plan = Plan.of(batch)
    losses = decoder.loss(batch, plan)
    weighted = Objective(ObjectiveConfig(weights={"image": 0.5, "speech": 0.0}), NAMES)
    loss = weighted.total(losses) / weighted.targets([plan])
    text, image, _ = losses.sum_M.tolist()
    counts = losses.count_M.tolist()
    assert loss.item() == pytest.approx((text + 0.5 * image) / (counts[0] + 0.5 * counts[1]))
    plain = Objective(ObjectiveConfig(), NAMES)
    assert torch.equal(plain.total(losses), losses.sum_M.sum())
    assert plain.targets([plan, plan]) == 2 * losses.count_M.sum()
    one, two = [1, 2, 3], [10, 20, 30]
    assert weighted.targets([plan], lambda own: [one, two]) == 11 + 0.5 * 22, "of all ranks"
    equal = Objective(ObjectiveConfig(weights=dict.fromkeys(NAMES, 3.0)), NAMES)
    mean = (equal.total(losses) / equal.targets([plan])).item()
    assert mean == pytest.approx((losses.sum_M.sum() / losses.count_M.sum()).item())


def test_a_weight_of_zero_learns_nothing_of_it(new_decoder, new_batch):
    """The same gradient as that of a batch where these targets are masked."""
    batch, found = new_batch([(40, 30)]), []
    for weight in (0.0, 1.0):
        decoder = new_decoder(CONFIGS["mot"])
        objective = Objective(ObjectiveConfig(weights={"image": weight}), NAMES)
        if weight:
            image = batch.target_modality_BT == 1
            batch.loss_mask_BT[image] = False
        plan = Plan.of(batch)
        (objective.total(decoder.loss(batch, plan)) / objective.targets([plan])).backward()
        found.append(gradients(decoder))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6)


def test_targets_that_weigh_nothing_count_nothing(new_batch):
    batch = new_batch([(5,)], modalities=["text"])
    objective = Objective(ObjectiveConfig(weights={"text": 0.0}), NAMES)
    assert objective.targets([Plan.of(batch)]) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"imgae": 1.0}}, "weights: the data has no modality 'imgae'; did you mean im"),
        ({"mask": ("video",)}, "mask: the data has no modality 'video'; there is text, image, sp"),
        ({"mask": NAMES}, "no modality is left to learn"),
        ({"mask": ("text",), "weights": {"image": 0.0, "speech": 0.0}}, "no modality is left"),
        ({"weights": {"text": -1.0}}, "weights: text has -1.0; should be 0 or more"),
        ({"weights": {"text": float("nan")}}, "weights: text has nan"),
    ],
)
def test_wrong_use_says_what_there_is(options, message):
    with pytest.raises(ConfigError, match=message):
        Objective(ObjectiveConfig(**options), NAMES)
