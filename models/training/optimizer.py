"""AdamW for a decoder: learning rates and weight decay by kind of parameter and by name.

Memory values have their own learning rate, clip norm and weight decay (arXiv:2412.09764, section
5), and an optimizer that touches only the rows that were read (values.py); norms, biases and the
scan's `A_log` and `D` are not decayed. `optimizer.groups` says otherwise for any others, and
freeze.py what stands still. schedule.py has the learning rate by step.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from plait.models.decoder import VALUES, Decoder
from plait.models.training.freeze import freeze
from plait.models.training.names import MODALITY, matching, short
from plait.models.training.parallel import clip_norm
from plait.models.values import TableOptimizer
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Numbers of the parameters whose names match; of several groups, the last one counts.

    Where its rate differs from `lr`, it is logged as `lr/MATCH`.
    """

    match: tuple[str, ...]
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        where = f"optimizer.groups, match = {list(self.match)}"
        if self.lr is None and self.weight_decay is None:
            raise ConfigError(f"{where}: give lr, weight_decay or both")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"{where}: lr should be above 0, not {self.lr}; see optimizer.freeze")
        if not (self.weight_decay or 0) >= 0:
            raise ConfigError(f"{where}: weight_decay should be 0 or more")
        if any(pattern.startswith(MODALITY) for pattern in self.match):
            raise ConfigError(f"{where}: a group is of whole parameters, which modalities share")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, and its learning rate by step."""

    lr: float = 3e-3
    """Peak learning rate."""
    values_lr: float = 1e-2
    """Peak learning rate of memory values."""
    values_weight_decay: float = 0.0
    """Weight decay of memory values, made up for when a row is read again."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate after warm-up. More `steps` on resuming stretch all but "constant"."""
    cooldown: float = 0.0
    """With "constant": share of all steps, the last ones, in which it falls; 0 is none."""
    cooldown_shape: Literal["sqrt", "linear"] = "sqrt"
    """How it falls: 1 - sqrt(t), or 1 - t."""
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
    groups: Annotated[tuple[GroupConfig, ...], tyro.conf.Suppress] = ()
    """Other numbers for some parameters, in the TOML file alone: `[[optimizer.groups]]` with
    `match = ["router", "blocks.0.*"]` (parts of names, or globs), `lr` and `weight_decay`."""
    only: tuple[str, ...] = ()
    """Train nothing but these parameters: parts of names as `auxiliary`, globs as `blocks.0.*`, or
    `modality:image`, a modality's slices of untied weights and its rows of embedding and head."""
    freeze: tuple[str, ...] = ()
    """Parameters that keep every bit, named as in `only`; `modality:text` keeps a text model."""

    def __post_init__(self) -> None:
        for name in ("lr", "values_lr", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optimizer.{name}: should be above 0, not {getattr(self, name)}")
        for name in ("min_lr", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"optimizer.{name}: a share from 0 to 1, not {getattr(self, name)}"
                )
        if self.cooldown and self.schedule != "constant":
            raise ConfigError(
                f"optimizer.cooldown: schedule {self.schedule!r} falls from the start as it is; "
                "cooldown goes with 'constant'"
            )


class Optimizer:
    """AdamW for all parameters but the memory's table, and `TableOptimizer` for that."""

    def __init__(self, model: Decoder, config: OptimizerConfig) -> None:
        self.model, self.config = model, config
        betas = (config.beta1, config.beta2)
        trained, self.partial = freeze(model, config.only, config.freeze)
        self.numbers = _numbers(model, config)
        groups: dict[tuple[float, float], dict] = {}
        for name in sorted(trained.keys() - {VALUES}, key=list(self.numbers).index):
            lr, decay = self.numbers[name]
            key = lr, 0.0 if name in self.partial else decay
            group = {"params": [], "peak": lr, "weight_decay": key[1]}
            groups.setdefault(key, group)["params"].append(trained[name])
        self.adam = torch.optim.AdamW(
            list(groups.values()) or [{"params": []}],
            lr=config.lr,
            betas=betas,
            eps=config.eps,
            fused=True,
        )
        self.table = None
        if model.values is not None and VALUES in trained:
            self.table = TableOptimizer(
                model.values, betas=betas, eps=config.eps, weight_decay=self.numbers[VALUES][1]
            )
        self.values_norm, self.clipped = 0.0, 1.0
        """The last norm of the memory values' gradient, and what `clip` made of the rest's."""
        self.peaks = {
            ",".join(group.match): group.lr
            for group in config.groups
            if group.lr is not None and group.lr != config.lr
        }
        """Peak learning rates that differ from `lr`, by what a group matches, and of the values."""
        if self.table is not None:
            self.peaks["values"] = self.numbers[VALUES][0]
        self._table_scale = 1.0
        self._forget()

    def _forget(self) -> None:
        """Moments of zero at step 0, as AdamW makes them at its first step."""
        for group in self.adam.param_groups:
            for p in group["params"]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                self.adam.state[p] = {"step": torch.zeros((), device=p.device), **zeros}

    def zero_grad(self) -> None:
        """Forget all gradients, and the table's readings."""
        self.adam.zero_grad()
        if self.table is not None:
            self.table.table.ledger.clear()

    def clip(self) -> float:
        """Clip memory values and all the rest, each by its own norm; the norm of everything.

        The gradient of what is frozen counts nothing: it is set to 0 before.
        """
        for partial in self.partial.values():
            partial.zero_gradient()
        limit = self.config.clip or math.inf
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        norm = clip_norm(parameters, limit)
        self.clipped = min(1.0, limit / (norm + 1e-6))
        table = self.values_norm = 0.0 if self.table is None else self.table.norm()
        self._table_scale = min(1.0, limit / (table + 1e-6))
        return math.hypot(norm, table)

    def step(self, lr_share: float) -> None:
        """Move everything, at this share of the peak learning rates; `clip` was called before."""
        for group in self.adam.param_groups:
            group["lr"] = group.get("peak", 0.0) * lr_share
        for name, partial in self.partial.items():
            lr, decay = self.numbers[name]
            partial.decay(lr * lr_share * decay)
        self.adam.step()
        if self.table is not None:
            self.table.step(self.numbers[VALUES][0] * lr_share, self._table_scale)

    def describe(self) -> list[str]:
        """Lines for a person: each group's numbers and parameters, and what is frozen."""
        lines: dict[str, list[tuple[str, int]]] = {}
        for name, p in self.model.named_parameters():
            lr, decay = self.numbers[name]
            still = 0 if p.requires_grad else p.numel()
            if name in self.partial:
                still = p[0].numel() * int((~self.partial[name].live).sum())
            group = f"lr {lr:.1e}, weight decay {decay:g}"
            for text, count in ((group, p.numel() - still), ("frozen", still)):
                if count:
                    lines.setdefault(text, []).append((name, count))
        return [
            f"{text}: {sum(count for _, count in found):,} parameters in "
            f"{short([name for name, _ in found])}"
            for text, found in sorted(lines.items(), key=lambda line: line[0] == "frozen")
        ]

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors; what is written into them is the state."""
        found = {
            f"{name}:{key}": value
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
            self.adam.state[parameters[name]][field].copy_(value)
        if self.table is not None:
            self.table.load_state_tensors(table)


def _numbers(model: Decoder, config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of each parameter, those with decay first."""
    kinds = model.parameter_kinds()
    defaults = {
        "decay": (config.lr, config.weight_decay),
        "no_decay": (config.lr, 0.0),
        "values": (config.values_lr, config.values_weight_decay),
    }
    found = {n: defaults[k] for kind in defaults for n, k in kinds.items() if k == kind}
    for group in config.groups:
        for name in {n for p in group.match for n in matching(p, found, "optimizer.groups")}:
            lr, decay = found[name]
            lr = lr if group.lr is None else group.lr
            found[name] = lr, decay if group.weight_decay is None else group.weight_decay
    return found
