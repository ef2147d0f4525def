"""Dataclass configs and YAML/JSON of the same shape: unknown keys are errors, `key=value` overrides."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vivavoce.core.errors import ConfigError

T = TypeVar("T")


def from_dict(cls: type[T], data: dict[str, Any], where: str = "config") -> T:
    """Build dataclass `cls` from nested plain data. Raises ConfigError on unknown keys and wrong types."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping for {cls.__name__}, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(names), key=str)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; {cls.__name__} has: {', '.join(names)}")
    values = {k: _coerce(hints[k], v, f"{where}.{k}") for k, v in data.items()}
    try:
        return cls(**values)
    except TypeError as e:
        raise ConfigError(f"{where}: {e}") from None


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _coerce(next(o for o in options if o is not type(None)), value, where)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        inner = typing.get_args(hint)[0] if typing.get_args(hint) else Any
        return origin(_coerce(inner, v, where) for v in value)
    if hint is float:
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)  # YAML reads 3e-4 as a string
        except (TypeError, ValueError):
            raise ConfigError(f"{where}: expected a number, got {value!r}") from None
    if hint is str and value is False:
        return "no"  # as which YAML took a bare one: precision=no
    if hint in (int, bool, str) and type(value) is not hint:  # isinstance would take True for an int
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def load_config(cls: type[T], path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> T:
    """Read a YAML file into `cls`, then apply `key=value` overrides (`model.dim=64` reaches into nests).

    Raises ConfigError naming the file and key.
    """
    data: dict[str, Any] = {}
    where = str(path) if path else cls.__name__
    if path is not None:
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such config file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: not valid YAML ({e})") from None
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read ({e.strerror})") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: expected a mapping for {cls.__name__}, got {type(data).__name__}")
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep:
            raise ConfigError(f"override {item!r}: expected key=value")
        node = data
        *parents, last = key.split(".")
        for p in parents:
            if node.get(p) is None:  # absent, or a section left empty
                node[p] = {}
            node = node[p]
            if not isinstance(node, dict):
                raise ConfigError(f"override {item!r}: {p!r} is not a section")
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override {item!r}: {text!r} is not valid YAML") from None
    return from_dict(cls, data, where)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested data of a dataclass config, ready for YAML or JSON."""
    return dataclasses.asdict(config)
