"""AdamW for a decoder: groups by kind of parameter, a schedule that is a function of the step.

Memory values have their own learning rate, clip norm and weight decay (arXiv:2412.09764, section
5), and an optimizer that touches only the rows that were read (values.py); norms, biases and the
scan's `A_log` and `D` are not decayed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.models.decoder import VALUES, Decoder
from plait.models.values import TableOptimizer
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 3e-3
    """Peak learning rate."""
    values_lr: float = 1e-2
    """Peak learning rate of memory values."""
    values_weight_decay: float = 0.0
    """Weight decay of memory values, made up for when a row is read again."""
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
    """Decoupled weight decay of matrices; norms and biases have none."""
    clip: float = 1.0
    """Largest norm of the gradient (memory values are clipped by themselves); 0 is off."""
    only: tuple[str, ...] = ()
    """Train no parameters but those whose name has one of these in it, as `auxiliary`."""

    def __post_init__(self) -> None:
        for name in ("lr", "values_lr", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optimizer.{name}: should be above 0, not {getattr(self, name)}")
        if not 0 <= self.min_lr <= 1:
            raise ConfigError(f"optimizer.min_lr: a share from 0 to 1, not {self.min_lr}")


class Optimizer:
    """AdamW for all parameters but the memory's table, and `TableOptimizer` for that."""

    def __init__(self, model: Decoder, config: OptimizerConfig) -> None:
        self.model, self.config = model, config
        betas = (config.beta1, config.beta2)
        kinds = _freeze(model, config.only)
        groups = [
            {
                "params": [p for name, p in model.named_parameters() if kinds.get(name) == kind],
                "weight_decay": config.weight_decay if kind == "decay" else 0.0,
            }
            for kind in ("decay", "no_decay")
        ]
        self.adam = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
        self.table = None
        if model.values is not None and VALUES in kinds:
            self.table = TableOptimizer(
                model.values, betas=betas, eps=config.eps, weight_decay=config.values_weight_decay
            )
        self._table_scale = 1.0

    def forget(self) -> None:
        """Moments of zero at step 0: the state before the first step, written out."""
        for group in self.adam.param_groups:
            for p in group["params"]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                self.adam.state[p] = {"step": torch.zeros(()), **zeros}

    def zero_grad(self) -> None:
        """Forget all gradients, and the table's readings."""
        self.adam.zero_grad()
        if self.table is not None:
            self.table.table.ledger.clear()

    def clip(self) -> float:
        """Clip memory values and all the rest, each by its own norm; the norm of everything."""
        limit = self.config.clip or math.inf
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        table = 0.0 if self.table is None else self.table.norm()
        self._table_scale = min(1.0, limit / (table + 1e-6))
        return math.hypot(norm, table)

    def step(self, lr_share: float) -> None:
        """Move everything, at this share of the peak learning rates; `clip` was called before."""
        for group in self.adam.param_groups:
            group["lr"] = self.config.lr * lr_share
        self.adam.step()
        if self.table is not None:
            self.table.step(self.config.values_lr * lr_share, self._table_scale)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a safetensors file."""
        found = {
            f"{name}:{key}": value.contiguous()
            for name, parameter in self.model.named_parameters()
            for key, value in self.adam.state.get(parameter, {}).items()
        }
        if self.table is not None:
            found |= {f"{VALUES}:{key}": t for key, t in self.table.state_tensors().items()}
        return found

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_tensors` gave; ConfigError if it belongs to another model."""
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if {key.rpartition(":")[0] for key in tensors} != set(parameters):
            raise ConfigError("the optimizer's state belongs to a model with other parameters")
        table = {}
        for key, value in tensors.items():
            name, _, field = key.rpartition(":")
            if name == VALUES:
                table[field] = value
                continue
            device = "cpu" if field == "step" else parameters[name].device
            self.adam.state[parameters[name]][field] = value.to(device)
        if self.table is not None:
            self.table.load_state_tensors(table)


def _freeze(model: Decoder, only: tuple[str, ...]) -> Mapping[str, str]:
    """Kinds of the parameters to train by name; all others lose their gradient."""
    kinds = model.parameter_kinds()
    for name, parameter in model.named_parameters():
        if only and not any(part in name for part in only):
            parameter.requires_grad_(False)
            del kinds[name]
    if not kinds:
        raise ConfigError(f"optimizer.only: no parameter has {' or '.join(only)} in its name")
    return kinds


def lr_share(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at step 0 .. steps - 1: linear warm-up, then a cosine."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
