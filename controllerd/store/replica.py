"""A copy of the state that follows the log: what a controller keeps while it does not lead.

It owns the file alone, and writes nothing of its own: entries are applied in order, each with everything that tells whether it
fits (seq, epoch, schema, row changes, old values). What does not fit is Diverged: nothing of it is kept, the copy takes no
further entry, and whoever holds it must stop. What a power failure takes from the end of the file comes again from the log.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import apsw

from controllerd.leadership.entry import Diverged, Entry, Kind, Unusable
from controllerd.store import changeset
from controllerd.store import migration as migrating
from controllerd.store import position as positions
from controllerd.store.digest import digest
from controllerd.store.migration import Migration, migrations
from controllerd.store.position import Position
from daemonkit.errors import ConfigError, SkyrackError, Unavailable
from daemonkit.runtime import Runtime, Threads

ENTRIES_MAX = 500  # a local transaction
_BESIDE = ("-wal", "-shm", "-journal")  # files that SQLite keeps beside the database


class Replica:
    def __init__(self, path: Path, runtime: Runtime, known: Sequence[Migration] | None = None) -> None:
        """`known`: migrations that the software brings; those in its files by default."""
        self._path, self._runtime = path, runtime
        self._known = migrations() if known is None else known
        self._threads: Threads
        self._connection: apsw.Connection | None = None
        self._refused: SkyrackError | None = None
        self.position = Position()

    @property
    def _db(self) -> apsw.Connection:
        assert self._connection is not None, "the copy is not open"
        return self._connection

    @property
    def needed_schema(self) -> int:
        """The highest of those from which the migrations that this software would bring are readable; 0 without any."""
        return max((m.readable_from for m in self._known if m.number > self.position.schema), default=0)

    async def open(self) -> None:
        """Makes a blank copy when there is none. Errors: ConfigError (damaged file, newer schema)."""
        self._threads = self._runtime.threads("store-replica", 1)
        try:
            await self._threads.run(self._open)
        except BaseException:
            await self.close()
            raise

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._connection = apsw.Connection(str(self._path))
            self._path.chmod(0o600)
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
                self._db.execute(f"PRAGMA {pragma}")
            for option in (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, apsw.SQLITE_DBCONFIG_ENABLE_FKEY):
                self._db.config(option, 0)  # what they did is in the entry
            positions.prepare(self._db)
            self.position = positions.read(self._db)
        except apsw.Error as error:
            raise ConfigError(f"{self._path}: {error}") from None
        migrating.check_readable(self.position.schema, self.position.readable_from, self._known)

    async def close(self) -> None:
        """It may be opened again."""
        await self._threads.run(self._close)
        self._threads.close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- entries

    async def apply(self, entries: Sequence[Entry]) -> None:
        """In ascending order, without a gap, the first right behind `position` (one at `position` is compared, not applied).

        Errors: Diverged; ConfigError for a schema that this software must not touch; Unavailable when the disk does not
        take it (what is applied then is told by `position`; try again).
        """
        await self._threads.run(self._apply, entries)

    def _apply(self, entries: Sequence[Entry]) -> None:
        if self._refused:
            raise self._refused
        for first in range(0, len(entries), ENTRIES_MAX):
            try:
                with self._db:
                    position = self.position
                    for entry in entries[first : first + ENTRIES_MAX]:
                        position = self._applied(position, entry)
                    positions.write(self._db, position)
                self.position = position
            except (Diverged, ConfigError) as error:
                self._refused = error
                raise
            except apsw.Error as error:
                raise Unavailable(f"this copy cannot be written: {error}") from None

    def _applied(self, at: Position, entry: Entry) -> Position:
        """Where the copy stands after it. Errors: Diverged, ConfigError, apsw.Error."""
        if entry.seq == at.seq:
            return _same(at, entry)
        if entry.seq != at.seq + 1:
            raise Diverged(f"entry {entry.seq} does not follow on {at.seq}")
        if entry.epoch <= at.epoch if entry.kind == Kind.BARRIER else entry.epoch != at.epoch:
            raise Diverged(f"entry {entry.seq} is of epoch {entry.epoch}, this copy of {at.epoch}")
        after = replace(at, seq=entry.seq, epoch=entry.epoch, batch=entry.batch, now=max(at.now, entry.now))
        try:
            if entry.kind == Kind.MIGRATION:
                return self._migrated(after, entry)
            if entry.schema != at.schema:
                raise Diverged(f"the log has schema {entry.schema}, this copy {at.schema}")
            if entry.kind == Kind.BARRIER:
                return _of_cloud(after, entry.body.decode(errors="replace"))
            changeset.apply(self._db, entry.body, entry.rows)
            return after
        except Diverged as error:
            raise type(error)(f"entry {entry.seq}: {error.message}") from None

    def _migrated(self, after: Position, entry: Entry) -> Position:
        migration = migrating.of_body(entry.body)
        if not after.schema < migration.number == entry.schema:
            raise Diverged(f"migration to schema {migration.number} for a copy that has {after.schema}")
        readable_from = max(after.readable_from, migration.readable_from)
        migrating.check_readable(migration.number, readable_from, self._known)
        try:
            rows = migrating.apply(self._db, migration)
        except (apsw.SQLError, apsw.ConstraintError) as error:
            raise Diverged(f"migration to schema {migration.number}: {error}") from None
        if rows != entry.rows:
            raise Diverged(f"migration to schema {migration.number} changed {rows} rows here and {entry.rows} elsewhere")
        return replace(after, schema=migration.number, readable_from=readable_from)

    # ---- whole copies

    async def install(self, snapshot: Path) -> None:
        """Takes the place of all there was; the file is consumed. On the same file system as the copy.

        Errors: Unusable for a damaged file, or another cloud's; ConfigError for a newer schema. Nothing has changed then.
        """
        await self._threads.run(self._install, snapshot)

    def _install(self, snapshot: Path) -> None:
        found = _inspect(snapshot)
        ours = self.position.cluster_id
        if ours and found.cluster_id != ours:
            raise Unusable(f"the snapshot is of cloud {found.cluster_id}, this copy of {ours}")
        migrating.check_readable(found.schema, found.readable_from, self._known)
        snapshot.chmod(0o600)
        _sync(snapshot)
        self._close()
        for suffix in _BESIDE:  # a crash from here on leaves an older copy or the new one, both whole
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        snapshot.replace(self._path)
        _sync(self._path.parent)
        self._refused = None
        self._open()

    async def digest(self) -> str:
        """Of all rows: equal for equal copies."""
        return await self._threads.run(lambda: digest(self._db))


def _same(at: Position, entry: Entry) -> Position:
    if entry.batch != at.batch:
        raise Diverged(f"entry {entry.seq} is not the one that this copy has")
    return at


def _of_cloud(after: Position, cluster_id: str) -> Position:
    if after.cluster_id not in ("", cluster_id):
        raise Unusable(f"the log is of cloud {cluster_id}, this copy of {after.cluster_id}")
    return replace(after, cluster_id=cluster_id)


def _inspect(snapshot: Path) -> Position:
    """Errors: Unusable."""
    connection = None
    try:
        connection = apsw.Connection(str(snapshot), flags=apsw.SQLITE_OPEN_READWRITE)
        wrong = [row[0] for row in connection.execute("PRAGMA quick_check(1)") if row[0] != "ok"]
        if wrong:
            raise Unusable(f"the snapshot is damaged: {wrong[0]}")
        return positions.read(connection)
    except (apsw.Error, StopIteration) as error:
        raise Unusable(f"the snapshot is not usable: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
