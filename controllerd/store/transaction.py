"""One transaction, as the code that runs in it sees it: SQL in, rows out, what it touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import apsw

from daemonkit.runtime import Runtime

Row = dict[str, Any]

# What the file below us did. Code that survives any error of one item must let these through: nothing more can be written.
STORE_ERRORS = (apsw.FullError, apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.NoMemError, apsw.BusyError)


@dataclass
class Tx:
    """One transaction. `now`: the term's time (`store.term_clock`) in seconds, the same for the whole transaction."""

    connection: apsw.Connection
    now: float
    epoch: int
    runtime: Runtime
    touched: set[str] = field(default_factory=set)

    def all(self, sql: str, *values: Any) -> list[Row]:
        return list(self.each(sql, *values))

    def each(self, sql: str, *values: Any) -> Iterator[Row]:
        cursor = self.connection.execute(sql, values)
        names: list[str] = []
        for row in cursor:
            names = names or [column[0] for column in cursor.description]
            yield dict(zip(names, row, strict=True))

    def one(self, sql: str, *values: Any) -> Row | None:
        return next(self.each(sql, *values), None)

    def value(self, sql: str, *values: Any) -> Any:
        """First column of the first row, None without one."""
        row = next(iter(self.connection.execute(sql, values)), None)
        return None if row is None else row[0]

    def run(self, sql: str, *values: Any) -> int:
        """Number of rows changed."""
        self.check()
        before = self.connection.total_changes()
        self.connection.execute(sql, values)
        return int(self.connection.total_changes() - before)

    def check(self) -> None:
        """When the disk is full SQLite may undo the transaction by itself; what is written after that would stand alone.

        Errors: one of STORE_ERRORS.
        """
        if not self.connection.in_transaction:
            raise apsw.FullError("the transaction was undone by SQLite")

    def touch(self, *resource_ids: str) -> None:
        """Tells subscribers, after the commit, that these resources (ids of nodes, servers, volumes...) changed."""
        self.touched.update(i for i in resource_ids if i)

    def new_id(self) -> str:
        return self.runtime.new_id()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What the block wrote and touched is undone if it raises."""
        self.check()
        touched = set(self.touched)
        self.connection.execute("SAVEPOINT inner")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:  # SQLite may have undone all of it already
                self.connection.execute("ROLLBACK TO inner; RELEASE inner")
            self.touched = touched
            raise
        self.connection.execute("RELEASE inner")
