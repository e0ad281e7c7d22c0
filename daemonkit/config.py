"""Configuration: one TOML file a daemon, read once into a frozen dataclass.

Every option has a default and a sentence, written by `option(...)`; `describe` prints them all as a commented TOML file.
Unknown keys and wrong types are refused with the file and the key. Checks between options go to `__post_init__`, which
raises ConfigError.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from daemonkit.errors import ConfigError

C = TypeVar("C")


def option(default: Any, doc: str) -> Any:
    """A field with its default and its sentence; a list default is copied for each instance."""
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"doc": doc})
    return dataclasses.field(default=default, metadata={"doc": doc})


def section(cls: type[C]) -> C:
    """A nested table `[name]` with its own dataclass."""
    return dataclasses.field(default_factory=cls)


def load(cls: type[C], path: Path) -> C:
    """Reads `path`. Errors: ConfigError naming file and key."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(cls, raw, str(path))


def parse(cls: type[C], raw: dict[str, Any], where: str = "configuration") -> C:
    return _build(cls, raw, where, "")


def _build(cls: type[C], raw: dict[str, Any], where: str, prefix: str) -> C:
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {prefix + key!r}; known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, value in raw.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix + name!r} must be a table")
            values[name] = _build(kind, value, where, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            values[name] = _coerce(kind, value, where, prefix + name)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from None


def _coerce(kind: Any, value: Any, where: str, key: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(kind) in (Union, types.UnionType):
        if any(_fits(a, value) for a in get_args(kind)):
            return value
    elif _fits(kind, value):
        return value
    raise ConfigError(f"{where}: {key!r} must be of type {getattr(kind, '__name__', kind)}, is {value!r}")


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is list:
        (inner,) = get_args(kind)
        return isinstance(value, list) and all(_fits(inner, v) for v in value)
    if get_origin(kind) is dict:
        inner_key, inner_value = get_args(kind)
        return isinstance(value, dict) and all(_fits(inner_key, k) and _fits(inner_value, v) for k, v in value.items())
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def describe(cls: type[Any]) -> str:
    """Every option with its sentence and default, as TOML that `load` accepts."""
    return "\n".join(_describe(cls, "")).rstrip() + "\n"


def _describe(cls: type[Any], table: str) -> list[str]:
    lines: list[str] = []
    tables: list[str] = []
    hints = get_type_hints(cls)
    defaults = cls()
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            name = f"{table}.{f.name}" if table else f.name
            tables += ["", f"[{name}]", *_describe(hints[f.name], name)]
            continue
        value = getattr(defaults, f.name)
        text = json.dumps(str(value) if isinstance(value, Path) else value)
        lines += [f"# {f.metadata.get('doc', '')}", f"{f.name} = {text}"]
    return lines + tables
