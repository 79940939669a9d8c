"""AdamW for a decoder: groups by kind of parameter, a schedule that is a function of the step.

Memory values have their own learning rate and clip norm and no weight decay (arXiv:2412.09764,
section 5); norms, biases and the scan's `A_log` and `D` are not decayed either.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.models.decoder import Decoder
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 3e-3
    """Peak learning rate."""
    values_lr: float = 1e-2
    """Peak learning rate of memory values, which have no weight decay."""
    min_lr: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    warmup: int = 30
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases and memory values have none."""
    clip: float = 1.0
    """Largest norm of the gradient (memory values are clipped by themselves); 0 is off."""

    def __post_init__(self) -> None:
        for name in ("lr", "values_lr", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optimizer.{name}: should be above 0, not {getattr(self, name)}")
        if not 0 <= self.min_lr <= 1:
            raise ConfigError(f"optimizer.min_lr: a share from 0 to 1, not {self.min_lr}")


def build_optimizer(model: Decoder, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with the groups `decay`, `no_decay` and `values`; each keeps its `peak_lr`."""
    members: dict[str, list[Tensor]] = {"decay": [], "no_decay": [], "values": []}
    kinds = model.parameter_kinds()
    for name, parameter in model.named_parameters():
        members[kinds[name]].append(parameter)
    groups = [
        {
            "params": parameters,
            "kind": kind,
            "peak_lr": config.values_lr if kind == "values" else config.lr,
            "weight_decay": config.weight_decay if kind == "decay" else 0.0,
        }
        for kind, parameters in members.items()
        if parameters
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def lr_share(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at step 0 .. steps - 1: linear warm-up, then a cosine."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> float:
    """Clip memory values and all the rest, each by its own norm; returns the norm of everything."""
    groups = optimizer.param_groups
    parts = [
        [p for g in groups if (g["kind"] == "values") == values for p in g["params"]]
        for values in (False, True)
    ]
    norms = [torch.nn.utils.clip_grad_norm_(part, limit or math.inf) for part in parts if part]
    return math.sqrt(sum(float(norm) ** 2 for norm in norms))


def state_tensors(model: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, for a safetensors file."""
    return {
        f"{name}:{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_state_tensors(
    model: Decoder, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave; ConfigError if it belongs to another model."""
    parameters = dict(model.named_parameters())
    if {key.rpartition(":")[0] for key in tensors} != set(parameters):
        raise ConfigError("the optimizer's state belongs to a model with other parameters")
    for key, value in tensors.items():
        name, _, field = key.rpartition(":")
        device = "cpu" if field == "step" else parameters[name].device
        optimizer.state[parameters[name]][field] = value.to(device)
