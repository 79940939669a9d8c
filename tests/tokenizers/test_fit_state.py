import pytest
import torch
from torch import nn

from plait.tokenizers.fit_state import FitState, Loop


class KilledError(Exception):
    pass


def train(state, *, steps=12, kill_at=None, optimizer=torch.optim.AdamW):
    """A small loop with a running mean, dropout by a generator, and a decaying learning rate."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    model, mean = (
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)),
        nn.Linear(4, 1),
    )
    steps_of = optimizer(model.parameters(), lr=0.1)
    parts = {"model": model, "mean": mean}
    loop = Loop(state, parts, {"optimizer": steps_of}, {"generator": generator})
    first = loop.start()
    for step in range(first, steps):
        if step == kill_at:
            raise KilledError
        for group in steps_of.param_groups:
            group["lr"] = 0.1 * (1 - step / steps)
        x = torch.randn(16, 4, generator=generator)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        steps_of.zero_grad()
        loss.backward()
        steps_of.step()
        with torch.no_grad():
            mean.weight.lerp_(x.mean(0, keepdim=True), 0.1)
        loop.end_step(step)
    return first, [*model.state_dict().values(), *mean.state_dict().values()]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_killed_loop_ends_with_the_same_weights(tmp_path, optimizer):
    _, whole = train(FitState(), optimizer=optimizer)
    path = tmp_path / "fit" / "state"
    for kill_at in (4, 9):
        with pytest.raises(KilledError):
            train(FitState(path, "a", 0.0), kill_at=kill_at, optimizer=optimizer)
    first, found = train(FitState(path, "a", 0.0), optimizer=optimizer)
    assert first == 9
    assert all(map(torch.equal, found, whole))


def test_only_the_state_of_the_same_fit_is_taken_up(tmp_path):
    path = tmp_path / "state"
    FitState(path, "one fit").save({"step": torch.tensor(4)})
    found = FitState(path, "one fit").load()
    assert found is not None and int(found["step"]) == 4
    assert FitState(path, "another").load() is None
    path.write_bytes(b"cut short")
    assert FitState(path, "one fit").load() is None
    FitState(path).clear()
    assert FitState(path, "one fit").load() is None


def test_it_is_not_written_all_the_time(tmp_path):
    state = FitState(tmp_path / "state", every_s=3600.0)
    assert not state.due() and not FitState().due()
    FitState().save({"step": torch.tensor(1)})
    assert list(tmp_path.iterdir()) == []
