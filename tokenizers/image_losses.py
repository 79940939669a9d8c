"""How far a decoded picture is from its original, as losses to train an autoencoder with.

The pixels' error, squared or absolute, is the base. A perceptual loss may be added: LPIPS without
its learned weights (arXiv:1801.03924, eq. 1, all w = 1) on VGG-16, where a safetensors file with
torchvision's weights is given, and otherwise the absolute error of the pictures' gradients at
three scales, which also asks for sharp edges. A patch discriminator (arXiv:1611.07004) may be added
late, with the hinge loss and the adaptive weight of VQGAN (arXiv:2012.09841, eq. 7).

On emoji, tiny VQ of 300 steps has 20.81 dB and a Frechet distance of 5.9e-3; with the gradients'
error at 0.1 20.71 dB and 6.5e-3, with the discriminator at 0.1 20.81 dB and 5.8e-3: neither gains
much at so few steps (benchmarks/image_tokenizer.py).

Pictures are [B, 3, H, W], values about -1..1.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, leaky_relu, relu

from plait.tokenizers.errors import ConfigError
from plait.tokenizers.image_options import FitOptions

SCALES = 3
TAPS = (3, 8, 15, 22, 29)
"""Layers of VGG-16's `features` after whose ReLU features are compared, as LPIPS does."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's networks take off their pictures of values 0..1, and divide them by."""
DISCRIMINATOR_DIM, DISCRIMINATOR_LR, LARGEST_WEIGHT = 32, 2e-4, 1e4


class PictureLoss:
    """Pixels, and where it has a weight the perceptual loss."""

    def __init__(self, options: FitOptions) -> None:
        self.absolute, self.perceptual = options.pixels == "l1", options.perceptual
        self.features = None
        if options.perceptual and options.perceptual_weights:
            self.features = VGGFeatures(read_weights(Path(options.perceptual_weights)))

    def __call__(self, y_B3HW: Tensor, x_B3HW: Tensor) -> Tensor:
        """The loss of decoded pictures `y`, a scalar."""
        error = y_B3HW - x_B3HW
        loss = error.abs().mean() if self.absolute else error.square().mean()
        if self.features is not None:
            loss = loss + self.perceptual * feature_loss(self.features, y_B3HW, x_B3HW)
        elif self.perceptual:
            loss = loss + self.perceptual * gradient_loss(y_B3HW, x_B3HW)
        return loss


def gradient_loss(y_B3HW: Tensor, x_B3HW: Tensor) -> Tensor:
    """Mean absolute error of the differences of neighbouring pixels, over `SCALES` scales."""
    error, terms = y_B3HW - x_B3HW, []
    for scale in range(SCALES):
        error = error if scale == 0 else avg_pool2d(error, 2, ceil_mode=True)
        terms += [error.diff(dim=axis).abs().mean() for axis in (2, 3) if error.shape[axis] > 1]
    return torch.stack(terms).mean() if terms else error.abs().mean()


class VGGFeatures(nn.Module):
    """The convolutions of torchvision's VGG-16, frozen."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):
            self.layers = vgg16().features
        wanted = self.layers.state_dict()
        found = {n.removeprefix("features."): t for n, t in weights.items()}
        found = {name: t.float() for name, t in found.items() if name in wanted}
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in wanted.items()}:
            raise ConfigError(
                "perceptual_weights: these are not the weights of torchvision's VGG-16"
            )
        self.layers.load_state_dict(found, assign=True)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x_B3HW: Tensor) -> list[Tensor]:
        """Features at the taps, [B, channels, h, w]; small pictures have fewer."""
        x = ((x_B3HW + 1) / 2 - self.mean) / self.deviation
        features = []
        for number, layer in enumerate(self.layers.children()):
            if isinstance(layer, nn.MaxPool2d) and min(x.shape[2:]) < 2:
                break
            x = relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            if number in TAPS:
                features.append(x)
        return features


def feature_loss(network: VGGFeatures, y_B3HW: Tensor, x_B3HW: Tensor) -> Tensor:
    """Squared distances of features that are scaled to length 1 at each place."""
    with torch.no_grad():
        goal = [_unit(f) for f in network(x_B3HW)]
    terms = [
        (_unit(f) - g).square().sum(1).mean() for f, g in zip(network(y_B3HW), goal, strict=True)
    ]
    return torch.stack(terms).sum()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ConfigError if it is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"perceptual_weights: {path}: {error}") from None


class Adversary:
    """A discriminator of patches, trained beside the autoencoder."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.network = Discriminator()
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=DISCRIMINATOR_LR, betas=(0.5, 0.9)
        )

    def loss(self, error: Tensor, y_B3HW: Tensor, last_layer: Tensor) -> Tensor:
        """What the autoencoder gains by being taken for real, weighted to match `error`.

        The weight is the ratio of both losses' gradients at the decoder's last layer.
        """
        gain = -self.network(y_B3HW).mean()
        by_error, by_gain = (
            torch.autograd.grad(value, last_layer, retain_graph=True)[0].norm()
            for value in (error, gain)
        )
        ratio = (by_error / (by_gain + 1e-6)).clamp(max=LARGEST_WEIGHT).detach()
        return self.weight * ratio * gain

    def learn(self, x_B3HW: Tensor, y_B3HW: Tensor) -> None:
        """One step of the discriminator on originals `x` and decoded `y`, hinge loss."""
        wrong = relu(1 - self.network(x_B3HW)).mean() + relu(1 + self.network(y_B3HW)).mean()
        gradients = torch.autograd.grad(wrong / 2, list(self.network.parameters()))
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()


class Discriminator(nn.Module):
    """Patches of 22 pixels to scores: above 0 is real."""

    def __init__(self, dim: int = DISCRIMINATOR_DIM) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, dim, 4, stride=2, padding=1),
                nn.Conv2d(dim, 2 * dim, 4, stride=2, padding=1),
                nn.Conv2d(2 * dim, 1, 4, padding=2),
            ]
        )

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Scores [B, 1, h, w]."""
        for layer in self.layers[:-1]:
            x_B3HW = leaky_relu(layer(x_B3HW), 0.2)
        return self.layers[-1](x_B3HW)


def _unit(x_BChw: Tensor) -> Tensor:
    return x_BChw / (x_BChw.square().sum(1, keepdim=True).sqrt() + 1e-10)
