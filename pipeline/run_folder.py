"""What a training run's folder tells: its size, losses, tokens, and when it was taken up again."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plait.tokenizers.errors import ConfigError

Line = dict[str, float]
"""One line of `metrics.jsonl`: step, loss, loss/<modality>, validation/loss, tokens, ..."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A step whose batch was not learned (models/training/guard.py)."""

    step: int
    reason: str
    documents: list[str]
    """Keys of what it held."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run, read from its files; what is not there yet is empty."""

    path: Path
    preset: str
    parameters: int
    active: dict[str, int]
    """Parameters that a token of each modality uses."""
    versions: dict[str, str]
    git_commit: str | None
    lines: list[Line] = field(repr=False)
    resumed: list[int] = field(default_factory=list)
    """Steps at which the run was taken up again."""
    skipped: list[Skipped] = field(default_factory=list)
    config: dict[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """Read it; ConfigError if a file is damaged."""
        config = _table(path / "config.toml")
        environment = _object(path / "environment.json")
        parameters = _mapping(environment.get("parameters"))
        lines = list(_lines(path / "metrics.jsonl"))
        resumed = _lines(path / "resumed.jsonl")
        return cls(
            path=path,
            preset=str(environment.get("preset") or config.get("preset") or ""),
            parameters=_int(parameters.get("total")),
            active={k: _int(v) for k, v in _mapping(parameters.get("active")).items()},
            versions={k: str(v) for k, v in _mapping(environment.get("versions")).items() if v},
            git_commit=str(environment["git_commit"]) if environment.get("git_commit") else None,
            lines=lines,
            resumed=[int(x["step"]) for x in resumed if "step" in x],
            skipped=[_skipped(x) for x in _lines(path / "skipped.jsonl")],
            config=config,
        )

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((int(line["step"]) for line in self.lines if "step" in line), default=0)

    def losses(self, prefix: str = "") -> dict[str, float]:
        """Last losses by modality and over `all`; prefix is "" or "validation/"."""
        last: dict[str, float] = {}
        for name in self._names(prefix):
            key = f"{prefix}loss" if name == "all" else f"{prefix}loss/{name}"
            values = [line[key] for line in self.lines if line.get(key) is not None]
            last |= {name: values[-1]} if values else {}
        return last

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a key, where it was logged."""
        points = [(x["step"], x[key]) for x in self.lines if x.get(key) is not None]
        table = np.array(points, np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def last(self, key: str) -> float | None:
        """The last logged value of a key."""
        values = self.curve(key)[1]
        return float(values[-1]) if values.size else None

    def tokens(self) -> dict[str, int]:
        """Tokens seen so far, by modality."""
        keys = {k for line in self.lines for k in line if k.startswith("tokens/")}
        return {k.removeprefix("tokens/"): int(self.last(k) or 0) for k in _in_order(keys, self)}

    def _names(self, prefix: str) -> list[str]:
        keys = {k for line in self.lines for k in line if k.startswith(f"{prefix}loss/")}
        return ["all", *(k.removeprefix(f"{prefix}loss/") for k in _in_order(keys, self))]


def _in_order(keys: set[str], run: RunFolder) -> list[str]:
    """Keys in the order in which the lines have them."""
    seen = dict.fromkeys(key for line in run.lines for key in line)
    return [key for key in seen if key in keys]


def _skipped(line: dict) -> Skipped:
    documents = [str(_mapping(d).get("key", "")) for d in line.get("documents") or []]
    reason = str(line.get("reason", ""))
    return Skipped(step=_int(line.get("step")), reason=reason, documents=documents)


def _lines(path: Path) -> Iterator[Line]:
    """Lines of a JSONL file; a last line that is being written is left out."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ConfigError(f"{path}, line {number}: not JSON: {error}") from None
        if isinstance(value, dict):
            yield value


def _table(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _object(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _mapping(value: object) -> dict[str, object]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _int(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
