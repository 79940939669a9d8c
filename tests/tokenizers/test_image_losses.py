import pytest
import torch
from safetensors.torch import save_file

from plait.tokenizers.errors import ConfigError
from plait.tokenizers.image_losses import (
    Adversary,
    PictureLoss,
    VGGFeatures,
    feature_loss,
    gradient_loss,
    read_weights,
)
from plait.tokenizers.image_options import FitOptions


def pictures(seed, size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def options(**changes):
    return FitOptions(quantizer="fsq", **changes)


def test_pixels_by_hand():
    x, y = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    assert PictureLoss(options())(y, x).item() == pytest.approx(0.25)
    assert PictureLoss(options(pixels="l1"))(y, x).item() == pytest.approx(0.5)
    assert PictureLoss(options(perceptual=3.0))(y, x).item() == pytest.approx(0.25)


def test_gradient_loss_by_a_loop():
    x, y = pictures(0, 8), pictures(1, 8)
    error, terms = y - x, []
    for _ in range(3):
        height, width = error.shape[2:]
        down = [(error[:, :, i + 1] - error[:, :, i]).abs() for i in range(height - 1)]
        right = [(error[..., i + 1] - error[..., i]).abs() for i in range(width - 1)]
        terms += [torch.stack(down).mean(), torch.stack(right).mean()]
        error = error.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert gradient_loss(y, x).item() == pytest.approx(float(torch.stack(terms).mean()))
    assert gradient_loss(x + 0.3, x).item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(gradient_loss(y[..., :1, :1], x[..., :1, :1]))


@pytest.fixture(scope="module")
def weights():
    from torchvision.models import vgg16

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = vgg16(weights=None).features
    return {f"features.{name}": t.clone() for name, t in layers.state_dict().items()}


def test_feature_loss(weights):
    network = VGGFeatures(weights)
    x, y = pictures(0), pictures(1)
    assert [tuple(f.shape) for f in network(x)] == [
        (2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4), (2, 512, 2, 2)
    ]  # fmt: skip
    assert feature_loss(network, x, x).item() == pytest.approx(0, abs=1e-6)
    near, far = (feature_loss(network, x + s * (y - x), x).item() for s in (0.1, 1.0))
    assert 0 < near < far
    y.requires_grad_()
    feature_loss(network, y, x).backward()
    assert y.grad is not None and torch.isfinite(y.grad).all()


def test_weights_of_a_file(weights, tmp_path):
    save_file(weights, tmp_path / "vgg16.safetensors")
    named = {"perceptual": 1.0, "perceptual_weights": str(tmp_path / "vgg16.safetensors")}
    measure = PictureLoss(options(**named))
    x, y = pictures(0), pictures(1)
    expected = (y - x).square().mean() + feature_loss(VGGFeatures(weights), y, x)
    assert measure(y, x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_wrong_weights(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name in ("broken.safetensors", "none.safetensors"):
        with pytest.raises(ConfigError, match="perceptual_weights"):
            read_weights(tmp_path / name)
    with pytest.raises(ConfigError, match="VGG-16"):
        VGGFeatures({"features.0.weight": torch.zeros(2, 2)})


def test_the_discriminator_learns_and_its_weight_adapts():
    torch.manual_seed(0)
    adversary = Adversary(0.5)
    x, y = pictures(0), torch.zeros(2, 3, 32, 32)
    for _ in range(30):
        adversary.learn(x, y)
    assert adversary.network(x).mean() > adversary.network(y).mean() + 0.5
    layer = torch.nn.Conv2d(3, 3, 1)
    decoded = layer(x)
    error = (decoded - x).square().mean()
    loss = adversary.loss(error, decoded, layer.weight)
    of_loss, of_error = (
        torch.autograd.grad(v, layer.weight, retain_graph=True)[0].norm() for v in (loss, error)
    )
    assert of_loss.item() == pytest.approx(0.5 * of_error.item(), rel=1e-2)
