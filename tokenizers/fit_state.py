"""What a long fit needs to go on after it was killed: one file of tensors, replaced as a whole.

A training loop saves its step, modules, optimizer and random generators now and then; a repeated
`plait fit` with the same samples and options goes on from there, and ends with the same weights to
the last bit.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

EVERY_S = 20.0


class FitState:
    """The state of a fit in `path`; without a path nothing is kept.

    `facts` says which fit it is: another one's state is not taken up.
    """

    def __init__(self, path: Path | None = None, facts: str = "", every_s: float = EVERY_S) -> None:
        self._path, self._facts, self._every_s = path, facts, every_s
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last; None if there is nothing, or it is of another fit or damaged."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                if (file.metadata() or {}).get("facts") != self._facts:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None

    def due(self) -> bool:
        """Whether it is time to save again."""
        return self._path is not None and time.monotonic() - self._saved >= self._every_s

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was saved."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.writing")
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata={"facts": self._facts})
        temporary.replace(self._path)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove it: the fit is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


KEPT_NOWHERE = FitState()
"""For a fit that is not resumed."""


class Loop:
    """A training loop's parts, saved and restored together."""

    def __init__(
        self,
        state: FitState,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        generators: Mapping[str, torch.Generator],
    ) -> None:
        self._state = state
        self._modules, self._optimizers, self._generators = modules, optimizers, generators

    def start(self) -> int:
        """The first step that is still to be made, with all parts as they were before it."""
        tensors = self._state.load()
        if tensors is None:
            return 0
        for name, module in self._modules.items():
            module.load_state_dict(_below(tensors, name))
        for name, optimizer in self._optimizers.items():
            found = optimizer.state_dict()
            found["state"] = {}
            for key, value in _below(tensors, name).items():
                number, _, field = key.partition(".")
                found["state"].setdefault(int(number), {})[field] = value
            optimizer.load_state_dict(found)
        for name, generator in self._generators.items():
            generator.set_state(tensors[name])
        return int(tensors["step"])

    def end_step(self, step: int) -> None:
        """Step `step` is made: save, if it is time."""
        if self._state.due():
            self._state.save(self._tensors(step + 1))

    def _tensors(self, step: int) -> dict[str, Tensor]:
        found = {"step": torch.tensor(step)}
        for name, module in self._modules.items():
            found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for number, fields in optimizer.state_dict()["state"].items():
                found |= {f"{name}.{number}.{key}": value for key, value in fields.items()}
        for name, generator in self._generators.items():
            found[name] = generator.get_state()
        return found


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
