"""Changesets of SQLite's session extension: recorded while a group of transactions runs, applied to a copy.

A changeset is netted (a row that was inserted and deleted leaves nothing) and carries old values, so a copy that differs is
noticed. What SQLite does not notice is checked here: it passes over tables that are missing or have fewer columns.
"""

from __future__ import annotations

import apsw

from controllerd.leadership.entry import Diverged
from controllerd.store import position

_CONFLICTS = {
    apsw.SQLITE_CHANGESET_DATA: "a row has other values",
    apsw.SQLITE_CHANGESET_NOTFOUND: "a row is missing",
    apsw.SQLITE_CHANGESET_CONFLICT: "a row is there already",
    apsw.SQLITE_CHANGESET_CONSTRAINT: "a constraint does not hold",
    apsw.SQLITE_CHANGESET_FOREIGN_KEY: "a foreign key does not hold",
}


class Recorder:
    """Records what this connection changes from now on, until `close`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._session = apsw.Session(connection, "main")
        self._session.config(apsw.SQLITE_SESSION_OBJCONFIG_SIZE, 1)
        self._session.table_filter(lambda name: name != position.TABLE)
        self._session.attach()

    @property
    def bytes_max(self) -> int:
        """The changeset so far is not larger; it may be smaller."""
        return self._session.changeset_size

    def changeset(self) -> bytes:
        """b"" when nothing has changed."""
        return self._session.changeset()

    def close(self) -> None:
        self._session.close()


def row_changes(changeset: bytes) -> int:
    return sum(1 for _ in apsw.Changeset.iter(changeset))


def apply(connection: apsw.Connection, changeset: bytes, rows: int) -> None:
    """In a transaction, with triggers and foreign keys off. Errors: Diverged, or apsw.Error of the file below."""
    _check_fits(connection, changeset, rows)
    conflicts: list[str] = []

    def abort(reason: int, change: apsw.TableChange) -> int:
        conflicts.append(f"{change.op} of table {change.name}: {_CONFLICTS.get(reason, f'conflict {reason}')}")
        return apsw.SQLITE_CHANGESET_ABORT

    before = connection.total_changes()
    try:
        apsw.Changeset.apply(changeset, connection, conflict=abort)
    except (apsw.AbortError, apsw.ConstraintError) as error:
        raise Diverged(conflicts[0] if conflicts else str(error)) from None
    changed = connection.total_changes() - before
    if changed < rows:  # more is possible: an update may need an intermediate one
        raise Diverged(f"{changed} of {rows} row changes were made")


def _check_fits(connection: apsw.Connection, changeset: bytes, rows: int) -> None:
    """Errors: Diverged."""
    columns: dict[str, int] = {}
    found = 0
    try:
        for change in apsw.Changeset.iter(changeset):
            columns[change.name] = change.column_count
            found += 1
    except apsw.CorruptError as error:
        raise Diverged(f"a changeset is damaged: {error}") from None
    if found != rows:
        raise Diverged(f"a changeset has {found} row changes instead of {rows}")
    for name, count in columns.items():
        there = len(list(connection.execute("SELECT 1 FROM pragma_table_info(?)", (name,))))
        if there != count:
            raise Diverged(f"table {name} has {there} columns here and {count} in the log")
