"""Schema migrations: numbered SQL files, and how they travel in the log.

`migrations/NNNN_name.sql`; the first line may be `-- readable from schema K`: software whose newest schema is K works with the
result as well (it reads and writes tables by column names, so it does not see an added column that has a default). Without
that line no older software does. A migration runs on every copy by itself, so its SQL must give the same everywhere: no
random(), no 'now', no LIMIT without a complete order, no triggers.

Software that is older than the schema follows and leads all the same when the schema says so, and refuses it otherwise.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources

import apsw

from controllerd.leadership.entry import Unusable
from daemonkit.errors import ConfigError

_READABLE = re.compile(r"--\s*readable from schema (\d+)\s*\n")


@dataclass(frozen=True)
class Migration:
    """`number`: of the schema after it. `readable_from`: the oldest schema whose software works with the result."""

    number: int
    name: str
    readable_from: int
    sql: str

    def body(self) -> bytes:
        """Of its log entry."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def parse(number: int, name: str, sql: str) -> Migration:
    told = _READABLE.match(sql)
    return Migration(number, name, int(told[1]) if told else number, sql)


def of_body(body: bytes) -> Migration:
    """Errors: Unusable for what is none. Fields that this software does not know are left out."""
    try:
        told = json.loads(body)
        return Migration(int(told["number"]), str(told["name"]), int(told["readable_from"]), str(told["sql"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"a migration in the log is not readable: {error!r}") from None


@functools.cache
def migrations() -> Sequence[Migration]:
    """All that this software brings, in ascending order."""
    files = [f for f in (resources.files("controllerd.store") / "migrations").iterdir() if f.name.endswith(".sql")]
    found = [parse(int(f.name[:4]), f.name[5:].removesuffix(".sql"), f.read_text()) for f in files]
    return sorted(found, key=lambda m: m.number)


def newest(known: Sequence[Migration]) -> int:
    return known[-1].number


def check_readable(schema: int, readable_from: int, known: Sequence[Migration]) -> None:
    """Errors: ConfigError for a schema that software with these migrations must not touch."""
    ours = newest(known)
    if schema > ours and readable_from > ours:
        raise ConfigError(
            f"the database has schema {schema}, readable from {readable_from}, and this software knows {ours}: "
            "install the newer software"
        )


def apply(connection: apsw.Connection, migration: Migration) -> int:
    """In a transaction, with foreign keys off; gives the number of rows changed. Errors: apsw.Error."""
    before = connection.total_changes()
    for _row in connection.execute(migration.sql):  # a statement that gives rows would hold up those behind it
        pass
    connection.execute(f"PRAGMA user_version={migration.number}")
    return int(connection.total_changes() - before)
