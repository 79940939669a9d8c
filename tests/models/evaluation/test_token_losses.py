import json
import shutil
import tomllib

import numpy as np
import pytest
import torch

from plait.models.evaluation import token_losses
from plait.models.evaluation.token_losses import HeldOut
from plait.models.plan import prompt_batch
from plait.tokenizers.errors import ConfigError, PlaitError


@pytest.fixture(scope="module")
def held_out(sample_run):
    return HeldOut.open(sample_run)


def test_mean_is_the_validation_loss_of_the_run(held_out, sample_run):
    """The rows that training validated on give the figures that it logged after its last step."""
    rows, vocabulary = held_out.rows, held_out.model.vocabulary
    config = tomllib.loads((sample_run / "config.toml").read_text())
    count = min(len(rows), config["validation"]["batches"] * config["rows"]["batch_size"])
    parts = [range(i, min(i + 16, count)) for i in range(0, count, 16)]
    nats = np.concatenate([held_out.nats(part) for part in parts])
    modality = vocabulary.modality_of(rows.batch(range(count)).tokens_BT.numpy())
    last = json.loads((sample_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert held_out.apart and held_out.step == last["step"]
    assert np.nanmean(nats) == pytest.approx(last["validation/loss"], rel=1e-4)
    for m, name in enumerate(vocabulary.modalities):
        own = nats[(modality == m) & np.isfinite(nats)]
        assert own.mean() == pytest.approx(last[f"validation/loss/{name}"], rel=1e-4)


def test_each_token_has_its_nats_given_its_own_document(held_out):
    """Against documents one by one, by the logits of a whole pass."""
    row, nats = held_out.rows[1], held_out.nats([1])[0]
    for document in range(row.document.max() + 1):
        here = np.flatnonzero(row.document == document)
        if row.position[here[0]]:
            continue  # goes on from another row: its first token stands not at place 0
        ids = row.tokens[here].tolist()
        logits = held_out.model(prompt_batch([ids], held_out.model.vocabulary))[0]
        wanted = -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(nats[here[1:]], wanted.detach(), rtol=1e-3, atol=1e-4)
        assert np.isnan(nats[here[0]])
    assert np.isnan(nats[row.document < 0]).all()


def changed(run, folder, old: str, new: str):
    shutil.copytree(run, folder)
    path = folder / "config.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return folder


def test_what_is_only_read_is_no_target(held_out, sample_run, tmp_path):
    """And where nothing was held out, rows are those of training."""
    run = changed(sample_run, tmp_path / "run", "mask = []", 'mask = ["text"]')
    few, vocabulary = range(8), held_out.model.vocabulary
    tokens, nats = held_out.rows.batch(few).tokens_BT.numpy(), HeldOut.open(run).nats(few)
    text = vocabulary.modality_of(tokens) == 0
    assert np.isnan(nats[text & (tokens >= len(vocabulary.specials))]).all()
    assert np.isfinite(nats[~text]).sum() == np.isfinite(held_out.nats(few)[~text]).sum() > 0
    run = changed(sample_run, tmp_path / "all", "share = 0.2", "share = 0.0")
    assert not HeldOut.open(run).apart


def test_runs_that_cannot_be_scored_say_why(sample_run, tmp_path, monkeypatch):
    run = changed(sample_run, tmp_path / "moved", 'data = [\n    "', 'data = [\n    "/gone')
    with pytest.raises(PlaitError, match="/gone"):
        HeldOut.open(run)
    environment = sample_run / "environment.json"
    shutil.copytree(sample_run, tmp_path / "other")
    facts = json.loads(environment.read_text())
    facts["data"] = dict.fromkeys(facts["data"], "another")
    (tmp_path / "other" / "environment.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"not the stream that .* was trained on"):
        HeldOut.open(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        HeldOut.open(tmp_path / "other")
    monkeypatch.setattr(token_losses, "LONGEST", 255)
    with pytest.raises(ConfigError, match="tokens are too long"):
        HeldOut.open(sample_run)
