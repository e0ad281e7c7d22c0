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
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
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
        kind, key = hints[name], prefix + name
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key!r} must be a table")
            values[name] = _build(kind, value, where, f"{key}.")  # type: ignore[arg-type]
            continue
        try:
            values[name] = _coerce(kind, value)
        except TypeError:
            wanted = getattr(kind, "__name__", kind) if get_origin(kind) is None else kind
            raise ConfigError(f"{where}: {key!r} must be of type {wanted}, is {value!r}") from None
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from None


def _coerce(kind: Any, value: Any) -> Any:
    """`value` of TOML as `kind`: Path from string, float from integer, tuple from array. Errors: TypeError."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _coerce_union(inner, value)
    if origin in (list, tuple) and isinstance(value, list):  # a tuple is tuple[X, ...]
        return origin(_coerce(inner[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _coerce(inner[1], item) for key, item in value.items()}
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:  # not isinstance: true is no integer
        return value
    raise TypeError


def _coerce_union(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _coerce(kind, value)
        except TypeError:
            continue
    raise TypeError


def describe(cls: type[Any]) -> str:
    """Every option with its sentence and default, as TOML that `load` accepts. An option without default is commented out."""
    return "\n".join(_describe(cls, "")).strip() + "\n"


def _describe(cls: type[Any], table: str) -> list[str]:
    lines: list[str] = []
    tables: list[str] = []
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            name = f"{table}.{f.name}" if table else f.name
            tables += ["", f"[{name}]", *_describe(hints[f.name], name)]
            continue
        lines += [f"# {sentence}" for sentence in f.metadata.get("doc", "").splitlines()]
        # Not from an instance: a whole one may be refused by __post_init__ until the user has filled it in.
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        empty = default is None or default is dataclasses.MISSING
        lines.append(f"# {f.name} =" if empty else f"{f.name} = {_toml(default)}")
    return lines + tables


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)  # also inf and nan, which JSON spells otherwise
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
