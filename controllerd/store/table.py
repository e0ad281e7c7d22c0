"""Rows as domain objects: a table is described by its frozen dataclass, field by column.

Only the plain acts (insert, get, update, delete, page) are here; every other query stands as SQL in its noun's file. Columns
of type bool are stored as 0/1; tuples, dicts and tuples of dataclasses as JSON.

What comes out of the store is not checked again: it was when it went in, and a rule that has become stricter since must not
make old rows unreadable. That also makes long lists cheap.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from controllerd.domain.page import Page, PageOf
from controllerd.store.database import Row, Tx
from daemonkit.errors import NotFound

R = TypeVar("R")


class Table(Generic[R]):
    """`kind` is the noun in errors; `name` the SQL table; `key` its primary key column; `born` its creation time."""

    def __init__(self, cls: type[R], name: str, kind: str, key: str = "id", born: str = "created_at") -> None:
        self.cls, self.name, self.kind, self.key, self.born = cls, name, kind, key, born
        hints = get_type_hints(cls)
        self.columns = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        loaders = {c: _loader(hints[c]) for c in self.columns}
        self._load = {c: loader for c, loader in loaders.items() if loader is not None}
        marks = ", ".join("?" * len(self.columns))
        self._insert = f"INSERT INTO {name} ({', '.join(self.columns)}) VALUES ({marks})"
        self._select = f"SELECT {', '.join(f'{name}.{c}' for c in self.columns)} FROM {name}"

    def of(self, row: Row) -> R:
        """`row` must have every column; further ones are left out."""
        values = {c: row[c] for c in self.columns}
        for column, load in self._load.items():
            values[column] = load(values[column])
        item = object.__new__(self.cls)
        item.__dict__.update(values)
        return item

    def insert(self, tx: Tx, item: R) -> R:
        tx.run(self._insert, *(_dump(getattr(item, c)) for c in self.columns))
        return item

    def find(self, tx: Tx, key: str) -> R | None:
        row = tx.one(f"{self._select} WHERE {self.name}.{self.key} = ?", key)
        return None if row is None else self.of(row)

    def get(self, tx: Tx, key: str) -> R:
        """Errors: NotFound."""
        item = self.find(tx, key)
        if item is None:
            raise NotFound(self.kind, key)
        return item

    def where(self, tx: Tx, condition: str, *values: Any) -> list[R]:
        """Rows of `SELECT ... WHERE condition` (may end in ORDER BY and LIMIT; may begin with a JOIN before WHERE)."""
        joined = condition if condition.lstrip().upper().startswith(("JOIN", "WHERE", "ORDER")) else f"WHERE {condition}"
        return [self.of(row) for row in tx.each(f"{self._select} {joined}", *values)]

    def update(self, tx: Tx, key: str, **changes: Any) -> None:
        """Errors: NotFound."""
        sets = ", ".join(f"{c} = ?" for c in changes)
        values = [_dump(v) for v in changes.values()]
        if not tx.run(f"UPDATE {self.name} SET {sets} WHERE {self.key} = ?", *values, key):
            raise NotFound(self.kind, key)

    def delete(self, tx: Tx, key: str) -> bool:
        return bool(tx.run(f"DELETE FROM {self.name} WHERE {self.key} = ?", key))

    def page(self, tx: Tx, page: Page, condition: str, *values: Any) -> PageOf[R]:
        """Ordered by (birth, id): stable, and found by marker, never by offset."""
        after = f"({self.name}.{self.born}, {self.name}.{self.key}) > (?, ?)"
        sql = f"{self._select} WHERE ({condition}) AND {after} ORDER BY {self.name}.{self.born}, {self.name}.{self.key} LIMIT ?"
        items = [self.of(row) for row in tx.each(sql, *values, page.after_time, page.after_id, page.limit + 1)]
        return PageOf.cut(items, page.limit, lambda item: (getattr(item, self.born), getattr(item, self.key)))


def _dump(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, tuple | dict | list):
        return json.dumps(value, default=dataclasses.asdict, separators=(",", ":"))
    return value


def _loader(hint: Any) -> Callable[[Any], Any] | None:
    """None where the value is stored as it is."""
    origin = get_origin(hint)
    if hint is bool:
        return bool
    if origin is dict or hint is dict:
        return _load_json
    if origin is tuple:
        inner: Any = get_args(hint)[0]
        if dataclasses.is_dataclass(inner):
            make = cast(Callable[..., Any], inner)
            return lambda text: tuple(make(**item) for item in json.loads(text))
        return lambda text: tuple(json.loads(text))
    return None


def _load_json(text: str) -> Any:
    return {} if text == "{}" else json.loads(text)


def like_name(name: str) -> tuple[str, Sequence[str]]:
    """Condition and values for an optional exact name filter."""
    return ("name = ?", [name]) if name else ("1", [])
