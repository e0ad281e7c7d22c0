"""A hash over all rows of a database: equal for copies that hold the same, however their files are laid out."""

from __future__ import annotations

import hashlib

import apsw

from controllerd.store import position


def digest(connection: apsw.Connection) -> str:
    """SHA-256 in hex over every table's name, columns and rows in the order of their keys; `_log` is left out."""
    total = hashlib.sha256()
    names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite#_%' ESCAPE '#' ORDER BY name"
    for (name,) in connection.execute(names):
        if name == position.TABLE:
            continue
        columns = list(connection.execute("SELECT name, pk FROM pragma_table_info(?)", (name,)))
        keys = [f'"{column}"' for column, pk in sorted(columns, key=lambda c: c[1]) if pk]
        total.update(repr((name, columns)).encode())
        for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY {", ".join(keys)}'):
            total.update(repr(row).encode())
    return total.hexdigest()
