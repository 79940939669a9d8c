from dataclasses import dataclass, field
from typing import Literal

import pytest

from plait.pipeline import config as toml
from plait.tokenizers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)
    kind: Literal["x", "y"] = "x"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 1
    flag: bool = False
    note: str | None = None
    inner: Inner = field(default_factory=Inner)


def read(tmp_path, text: str) -> Outer:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return toml.build(Outer, toml.read_toml(path), "run.toml")


def test_round_trip(tmp_path):
    config = Outer(steps=7, flag=True, inner=Inner(rate=2.0, names=("b", "c"), kind="y"))
    assert read(tmp_path, toml.to_toml(config)) == config


def test_integer_is_taken_for_a_float(tmp_path):
    config = read(tmp_path, "[inner]\nrate = 3\n")
    assert config.inner.rate == 3.0
    assert isinstance(config.inner.rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "run.toml: unknown key 'stepz'; did you mean 'steps'"),
        ("[inner]\nqqqqq = 3", "run.toml: inner: unknown key 'qqqqq'; it may be one of rate"),
        ("steps = 'many'", "run.toml: steps: should be int, not 'many'"),
        ("steps = true", "run.toml: steps: should be int, not True"),
        ("inner = 3", "run.toml: inner: should be a table"),
        ("[inner]\nkind = 'z'", "'z' is not one of 'x', 'y'"),
        ("steps = = 3", "cannot read this TOML file"),
    ],
)
def test_errors_say_what_and_where(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read(tmp_path, text)


def test_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read"):
        toml.read_toml(tmp_path / "none.toml")


def test_differences_are_dotted():
    old, new = Outer(), Outer(steps=2, inner=Inner(rate=1.0))
    assert toml.differences(old, new) == {"steps": (1, 2), "inner.rate": (0.5, 1.0)}
