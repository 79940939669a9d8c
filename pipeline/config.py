"""TOML to nested frozen dataclasses and back; an unknown key is an error that names the nearest."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from plait.tokenizers.errors import ConfigError

T = typing.TypeVar("T")


def read_toml(path: Path) -> dict[str, object]:
    """The table of a TOML file; ConfigError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this TOML file: {error}") from None


def build(cls: type[T], table: Mapping[str, object], where: str) -> T:
    """A dataclass from a table; `where` names the file (and section) in errors."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(typing.cast(type, cls))]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it may be one of {', '.join(names)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    values = {k: _convert(hints[k], v, f"{where}: {k}") for k, v in table.items()}
    return cls(**values)


def to_toml(config: object) -> str:
    """The TOML text of a dataclass; fields that are None are left out."""
    return tomli_w.dumps(_plain(dataclasses.asdict(typing.cast(typing.Any, config))))


def differences(old: object, new: object, prefix: str = "") -> dict[str, tuple[object, object]]:
    """Fields in which two dataclasses of one type differ: dotted name to (old, new)."""
    found: dict[str, tuple[object, object]] = {}
    for field in dataclasses.fields(typing.cast(typing.Any, old)):
        a, b = getattr(old, field.name), getattr(new, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
            found.update(differences(a, b, f"{name}."))
        elif a != b:
            found[name] = (a, b)
    return found


def _convert(hint: object, value: object, where: str) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next(a for a in args if a is not types.NoneType)
        return _convert(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: should be a table, not {value!r}")
        return build(hint, value, where)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(args[0], item, where) for item in items)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: should be a table, not {value!r}")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Annotated:
        return _convert(args[0], value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):  # pyright: ignore
        name = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{where}: should be {name}, not {value!r}")
    return value


def _plain(value: object) -> typing.Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
