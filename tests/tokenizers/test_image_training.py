"""Training of encoder, bottleneck and decoder together: killed and resumed, ended early."""

import pytest

pytest.importorskip("vector_quantize_pytorch")

import torch

from plait.tokenizers.fit_state import FitState
from plait.tokenizers.image import ConvCodes, FitOptions, KLAutoencoder, fit
from plait.tokenizers.image_bottleneck import Codes, Noise
from plait.tokenizers.image_codes_train import PictureLoss, loss_of
from plait.tokenizers.pictures import to_thumbnail
from plait.tokenizers.quantize_scalar import FiniteScalar

from .made_pictures import picture

PICTURES = [picture(seed, 40 + seed % 30, 70 - seed % 25) for seed in range(30)]
TINY = {
    "size": 16,
    "stride": 4,
    "levels": (5, 4, 3),
    "codes": 64,
    "codebooks": 2,
    "channels": 5,
    "preset": "tiny",
    "steps": 20,
    "n_patches": 500,
    "threads": 1,
}


class KilledError(Exception):
    pass


def killed_at(step, steps):
    """A progress that kills a fit when `step` of it is reached."""

    def progress(message, share, **figures):
        if "error" in figures and round(share * steps) == step:
            raise KilledError

    return progress


@pytest.mark.parametrize(
    "changes",
    [
        {"quantizer": "vq"},
        {"quantizer": "simvq"},
        {"quantizer": "rvq", "patience": 50},
        {"quantizer": "fsq", "adversarial": 0.1},
        {"quantizer": "lfq"},
        {"method": "kl"},
        {"method": "kl", "adversarial": 0.1, "perceptual": 0.5},
    ],
    ids=str,
)
def test_a_killed_fit_ends_with_the_same_weights(changes, tmp_path):
    """Killed at steps 10 and 30 of 40, after the discriminator began and dead codes settled."""
    options = FitOptions(**{**TINY, "steps": 40, **changes})
    whole = fit(PICTURES, options).fingerprint
    for step in (10, 30):
        state = FitState(tmp_path / "state", "a", 0.0)
        with pytest.raises(KilledError):
            fit(PICTURES, options, state=state, progress=killed_at(step, 40))
    state, steps = FitState(tmp_path / "state", "a", 0.0), []
    found = fit(
        PICTURES,
        options,
        state=state,
        progress=lambda message, share, **figures: steps.extend(
            [share] if "error" in figures else []
        ),
    )
    assert min(steps) == 0.75
    assert found.fingerprint == whole


@pytest.mark.parametrize("changes", [{"quantizer": "fsq"}, {"method": "kl"}], ids=str)
def test_patience_ends_a_fit_and_keeps_its_best(changes):
    looks, shares = [], []

    def progress(message, share, **figures):
        looks.extend(v for name, v in figures.items() if name == "loss_aside")
        shares.extend([share] if "error" in figures else [])

    options = FitOptions(**{**TINY, "steps": 400, "patience": 3, **changes})
    tokenizer = fit(PICTURES[:8], options, progress=progress)
    assert 3 < len(looks) < 50 and max(shares) < 0.9
    assert min(looks) not in looks[-3:]
    assert isinstance(tokenizer, ConvCodes | KLAutoencoder)
    codec = tokenizer.codec
    codec.encoder.float()
    if "quantizer" in changes:
        bottleneck = Codes(FiniteScalar(options.levels))
    else:
        bottleneck = Noise(options.channels, options.kl_weight)
    loss = loss_of(codec, bottleneck, PictureLoss(options), [to_thumbnail(PICTURES[0], 16)], 16)
    assert loss == pytest.approx(min(looks), rel=1e-4)


def test_noise_by_its_definition():
    torch.manual_seed(0)
    noise = Noise(3, 0.5)
    with torch.no_grad():
        noise.change_D.copy_(torch.tensor([0.0, 0.15, 0.3]))
    assert noise.log_variance_D.tolist() == pytest.approx([-5.0, -2.0, 1.0])
    mean_BDhw = torch.randn(1, 3, 1, 1).expand(1, 3, 300, 300)
    z_BDhw, loss = noise(mean_BDhw)
    spread_D = (z_BDhw - mean_BDhw).std((0, 2, 3))
    torch.testing.assert_close(spread_D, (noise.log_variance_D / 2).exp(), rtol=0.02, atol=0)
    ours = torch.distributions.Normal(mean_BDhw, (noise.log_variance_D / 2).exp()[:, None, None])
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(ours, standard).mean()
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    assert noise.figures()["kl_nats"] == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(noise.plain(mean_BDhw), mean_BDhw)
