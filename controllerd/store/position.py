"""Where a copy of the state stands: the last log entry in it, the epoch that wrote it, the cloud it belongs to.

Kept in the table `_log` of the file itself, so that it commits with the data. That table is no part of the state: the log does
not carry it, every copy writes its own. It has one row, and gets missing columns whenever it is opened for writing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import apsw

TABLE = "_log"

_COLUMNS = {
    "seq": "INTEGER NOT NULL DEFAULT 0",
    "epoch": "INTEGER NOT NULL DEFAULT 0",
    "cluster_id": "TEXT NOT NULL DEFAULT ''",
    "batch": "BLOB NOT NULL DEFAULT x''",
    "readable_from": "INTEGER NOT NULL DEFAULT 0",
    "now": "REAL NOT NULL DEFAULT 0",
}


@dataclass(frozen=True)
class Position:
    """`batch`: the last entry's, empty after a commit that no log carries. `schema`: the file's; software that knows schema
    `readable_from` or a newer one can work with it. `now`: the newest time that a transaction has seen."""

    seq: int = 0
    epoch: int = 0
    cluster_id: str = ""
    batch: bytes = b""
    readable_from: int = 0
    now: float = 0.0
    schema: int = 0

    @property
    def blank(self) -> bool:
        """Nothing was ever in it."""
        return self.schema == 0 and self.seq == 0


def prepare(connection: apsw.Connection) -> None:
    """Makes the table, or adds what an older software did not know. Call it outside a transaction."""
    with connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (one INTEGER PRIMARY KEY)")
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({TABLE})")}
        for name, kind in _COLUMNS.items():
            if name not in there:
                connection.execute(f"ALTER TABLE {TABLE} ADD COLUMN {name} {kind}")
        connection.execute(f"INSERT OR IGNORE INTO {TABLE} (one) VALUES (1)")


def read(connection: apsw.Connection) -> Position:
    row = next(iter(connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM {TABLE}")))
    schema = next(iter(connection.execute("PRAGMA user_version")))[0]
    found = Position(**dict(zip(_COLUMNS, row, strict=True)), schema=schema)
    return found if found.readable_from else replace(found, readable_from=schema)  # nobody has told


def write(connection: apsw.Connection, position: Position) -> None:
    """In a transaction. The schema is the migrations' to set."""
    sets = ", ".join(f"{name} = ?" for name in _COLUMNS)
    connection.execute(f"UPDATE {TABLE} SET {sets}", tuple(getattr(position, name) for name in _COLUMNS))
